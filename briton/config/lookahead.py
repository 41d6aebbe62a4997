"""The sizes of lookahead decoding, which a config, an engine and a request name in the same words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LookaheadConfig:
    """Sizes of lookahead decoding (Fu et al. 2024), named as TensorRT-LLM's executor names them.

    A request's may be no larger than the engine's in any of the three; (1, 1, 0) turns lookahead off.
    """

    window_size: int  # W: columns of the window
    ngram_size: int  # N: tokens of an n-gram, the one it continues included
    verification_set_size: int  # G: n-grams tried in one step

    @property
    def is_off(self) -> bool:
        """(1, 1, 0)."""
        return self.window_size == self.ngram_size == 1 and self.verification_set_size == 0

    @property
    def draft_tokens(self) -> int:
        """The draft tokens of one step, as TensorRT-LLM counts them."""
        w, n, g = self.window_size, self.ngram_size, self.verification_set_size
        return (0 if n == 1 else n - 2) + (w - 1 + g) * (n - 1)

    @property
    def has_window(self) -> bool:
        """Whether n-grams are guessed in a window: of one column, or with n-grams of one token, there is none."""
        return self.window_size > 1 and self.ngram_size > 1

    @property
    def max_draft_tokens(self) -> int:
        """The most that these sizes allow. N-grams of one token draft nothing by themselves: (W, 1, G) allows W tokens
        from the longest matching suffix."""
        return self.window_size if self.ngram_size == 1 else self.draft_tokens
