"""Stop strings: text is held back exactly as long as it may still be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence

from briton.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000  # characters


class StopMatcher:
    """Looks for stop strings in one growing text, however it is cut into pieces.

    The stop that is complete first wins; of several complete at the same character, the longest. Nothing of the stop
    that won is ever returned. What is held back is the longest end of the text that begins a stop, so never more than
    the longest stop less one character. Cost: O(stops) a character, amortised (a Knuth-Morris-Pratt automaton a stop).
    """

    def __init__(self, stops: Sequence[str], *, field: str = "stop") -> None:
        """Raises InvalidRequest naming `field` for over 16 stops, an empty one, or one of over 1,000 characters."""
        if len(stops) > MAX_STOPS:
            raise InvalidRequest(f"{field} has {len(stops)} entries; the limit is {MAX_STOPS}", field)
        for i, stop in enumerate(stops):
            if not 1 <= len(stop) <= MAX_STOP_LENGTH:
                raise InvalidRequest(
                    f"{field}[{i}] must be of 1 to {MAX_STOP_LENGTH} characters, not {len(stop)}", f"{field}[{i}]"
                )
        self._patterns = [_Pattern(stop) for stop in dict.fromkeys(stops)]
        self._held = ""
        self._matched: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take the next piece: (the text that is safe to send, the stop that matched or None).

        After a match nothing more is safe, and the match stays.
        """
        if self._matched is not None:
            return "", self._matched
        if not self._patterns:
            return text, None
        seen = self._held + text
        for i, character in enumerate(text, start=len(self._held) + 1):
            longest = 0
            for pattern in self._patterns:
                if pattern.advance(character) and len(pattern.text) > longest:
                    longest = len(pattern.text)
                    self._matched = pattern.text
            if longest:
                self._held = ""
                return seen[: i - longest], self._matched
        safe = len(seen) - max(pattern.state for pattern in self._patterns)
        self._held = seen[safe:]
        return seen[:safe], None

    def flush(self) -> str:
        """The end of the text: what was held back and turned out to be no stop. "" after a match."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """Knuth-Morris-Pratt for one stop; the failure table grows only as far as a text has ever matched."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.state = 0  # characters of the stop that the text ends with
        self._failure = [0, 0]  # failure[n]: the longest proper border of the first n characters

    def advance(self, character: str) -> bool:
        """Consume a character; True when it completes the stop."""
        text, failure, state = self.text, self._failure, self.state
        while state and text[state] != character:
            state = failure[state]
        if text[state] == character:
            state += 1
            if state == len(failure):
                failure.append(self._border(state))
        self.state = state
        return state == len(text)

    def _border(self, length: int) -> int:
        text, failure = self.text, self._failure
        last, border = text[length - 1], failure[length - 1]
        while border and text[border] != last:
            border = failure[border]
        return border + 1 if text[border] == last else 0
