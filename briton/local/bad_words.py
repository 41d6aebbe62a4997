"""Token sequences that must not come, compiled once a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BadWords:
    """Which tokens may not follow now. A step looks at the words whose next to last token has just come, not at all."""

    def __init__(self, words: Iterable[Sequence[int]]) -> None:
        """Words of at least one token."""
        self._always: list[int] = []  # words of one token
        self._after: dict[int, list[tuple[list[int], int]]] = {}  # next to last token -> (all but the last, the last)
        for *head, last in words:
            if head:
                self._after.setdefault(head[-1], []).append((head, last))
            else:
                self._always.append(last)

    def __bool__(self) -> bool:
        return bool(self._always or self._after)

    def forbidden(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens that would complete a word after `token_ids`."""
        if not token_ids or token_ids[-1] not in self._after:
            return self._always
        words = self._after[token_ids[-1]]
        return self._always + [last for head, last in words if token_ids[-len(head) :] == head]
