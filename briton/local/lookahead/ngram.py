"""What followed when the end of a text was seen before: a suffix automaton over token ids.

The automaton (Blumer, Blumer, Haussler, Ehrenfeucht, Chen, Seiferas 1985) is the smallest that reads every substring of
the text, and it grows token by token in amortised constant time. A state stands for the substrings that end at the same
places; its suffix link leads to the longest of their suffixes that also ends elsewhere. So the link of the whole text
is its longest suffix that was seen before: there is no n-gram size to choose.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOT = 0  # the state of the empty string
NOWHERE = -1  # the root's suffix link


class Continuation(NamedTuple):
    """Tokens that may come next, and how many tokens agreed with the place they were taken from."""

    token_ids: list[int]
    match_length: int


class NgramIndex:
    """All substrings of the tokens told so far, and where they were.

    A state's transitions are stored when there are two of them. Until then there is the one to what followed its first
    occurrence, and the text has that: most states of a long text stay so.
    """

    def __init__(self) -> None:
        self._text = array("i")  # a border is a negative id of its own
        self._num_borders = 0
        self._prefixes = array("i", [ROOT])  # [len(text) + 1], the state of the text's first i tokens
        # Of each state: tokens of its longest string; its suffix link; the first end of its strings in the text, and
        # the last at which it was the longest match, as the number of tokens up to there; its transitions.
        self._length = array("i", [0])
        self._link = array("i", [NOWHERE])
        self._first_end = array("i", [0])
        self._last_end = array("i", [0])
        self._transitions: list[dict[int, int] | None] = [{}]
        self._match = ROOT  # the longest suffix of the text that occurs earlier

    def __len__(self) -> int:
        """Tokens told, borders not counted."""
        return len(self._text) - self._num_borders

    @property
    def match_length(self) -> int:
        """Tokens of the longest suffix of the text that also occurs earlier. The two occurrences may overlap."""
        return self._length[self._match]

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append tokens, ids from 0 to 2^31 - 1. O(1) each, amortised."""
        text, prefixes, transitions = self._text, self._prefixes, self._transitions
        length, link, first_end, last_end = self._length, self._link, self._first_end, self._last_end
        for token_id in token_ids:
            end, parent = len(text), self._match
            text.append(token_id)
            if token_id >= 0 and parent != ROOT:
                last_end[parent] = end  # the longest repeated suffix ended here, and now something follows it here
            last = len(length)
            prefixes.append(last)
            length.append(end + 1)
            link.append(ROOT)
            first_end.append(end + 1)
            last_end.append(end + 1)
            transitions.append(None)

            # Repeated suffixes, longest first, that this token never followed: now it does.
            match = ROOT
            while parent != NOWHERE:
                following = transitions[parent]
                target = self._target(parent, token_id) if following is None else following.get(token_id)
                if target is not None:
                    # One that it has followed: with it, it is the longest repeated suffix now.
                    match = target if length[target] == length[parent] + 1 else self._split(target, parent, token_id)
                    break
                if following is None:
                    following = self._following(parent)
                following[token_id] = last
                parent = link[parent]
            link[last] = self._match = match

    def seal(self) -> None:
        """Close what was told so far: no match spans this place, and no proposal goes beyond it."""
        if self._text and self._text[-1] >= 0:
            self._num_borders += 1
            self.extend((-self._num_borders,))

    def propose(self, limit: int, after: Sequence[int] = ()) -> Continuation:
        """At most `limit` tokens that may follow the text and, behind it, the tokens `after`, which are not told.

        They followed an earlier occurrence in the text of the longest possible suffix: the last at which it was the
        longest match, else the first. (Measured on code and prose, that is as often right as the very last, or as the
        most frequent continuation.) Where a border followed, a shorter suffix is taken. What runs into the end goes on
        with what it began with, so a text that has become periodic is continued for as long as is asked; in LZ77 too, a
        match may overlap what it gives. No match, no tokens.
        """
        if after:
            state, match_length = self._walk(after)
        else:
            state = self._match
            match_length = self._length[state]
        if match_length == 0 or limit < 1:
            return Continuation([], match_length)
        token_ids = self._copy(self._last_end[state], limit, after)
        while not token_ids:
            state = self._link[state]
            match_length = self._length[state]
            if match_length == 0:
                break
            token_ids = self._copy(self._last_end[state], limit, after)
        return Continuation(token_ids, match_length)

    def _following(self, state: int) -> dict[int, int]:
        """Its transitions, stored from now on."""
        following = self._transitions[state]
        if following is None:
            end = self._first_end[state]
            following = self._transitions[state] = {self._text[end]: self._prefixes[end + 1]}
        return following

    def _split(self, state: int, parent: int, token_id: int) -> int:
        """A new state for the strings of `state` that are no longer than parent's and this token: they alone end here
        too. Those that led to `state` by it and are no longer than parent now lead to the new one."""
        short = len(self._length)
        self._length.append(self._length[parent] + 1)
        self._link.append(self._link[state])
        self._first_end.append(self._first_end[state])
        self._last_end.append(self._last_end[state])
        self._transitions.append(None)
        known = self._transitions[state]
        if known is not None:
            self._transitions[short] = known.copy()
        self._link[state] = short
        while parent != NOWHERE and self._target(parent, token_id) == state:
            self._following(parent)[token_id] = short
            parent = self._link[parent]
        return short

    def _walk(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """The longest suffix of the text and these tokens that occurs in the text: its state, its length."""
        state, match_length = self._match, self._length[self._match]
        for token_id in token_ids:
            while (target := self._target(state, token_id)) is None and state != ROOT:
                state = self._link[state]
                match_length = self._length[state]
            if target is not None:
                state, match_length = target, match_length + 1
        return state, match_length

    def _target(self, state: int, token_id: int) -> int | None:
        """Where the transition leads, if there is one."""
        following = self._transitions[state]
        if following is not None:
            return following.get(token_id)
        end = self._first_end[state]
        if end < len(self._text) and self._text[end] == token_id:
            return self._prefixes[end + 1]
        return None

    def _copy(self, source: int, limit: int, after: Sequence[int]) -> list[int]:
        """`limit` tokens from `source` on, fewer where a border comes."""
        token_ids = self._text[source : source + limit].tolist()
        if self._num_borders:
            for i, token_id in enumerate(token_ids):
                if token_id < 0:
                    return token_ids[:i]
        if len(token_ids) < limit:
            token_ids += after[: limit - len(token_ids)]
            token_ids = (token_ids * (limit // len(token_ids) + 1))[:limit] if token_ids else []
        return token_ids
