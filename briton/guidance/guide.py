"""The Guide protocol: the state of one constrained sequence, and the masks it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from briton.guidance.vocabulary import Vocabulary

GuideKind = Literal["json_schema", "json_object", "regex", "choice"]


@dataclass(frozen=True, slots=True)
class GuideSpec:
    """What a caller asks for, as it crosses the wire: `text` is a schema or a pattern, `choices` a choice's strings."""

    kind: GuideKind
    text: str = ""
    choices: tuple[str, ...] = ()


class Guide(Protocol):
    """One sequence's place in a grammar. Not thread-safe; `copy` is cheap, so that one template serves every request.

    A mask row is int32 [ceil(vocab_size / 32)], bit i % 32 of word i // 32 set where token i may come next.
    """

    @property
    def vocabulary(self) -> Vocabulary:
        """What it knows of the tokens."""
        ...

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """Write the mask of the next token into `row`. All stop ids are set where the end is allowed.

        All zeros when the guide has failed: the request must end with an error, for its output cannot be completed.
        """
        ...

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Consume tokens, stop ids included. False, and the state unchanged, when one of them is not allowed."""
        ...

    def rollback(self, n: int) -> None:
        """Undo the last n consumed tokens."""
        ...

    def is_terminated(self) -> bool:
        """True when nothing but the end may follow, or a stop id was consumed."""
        ...

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, in canonical tokenization; empty where there is a choice.

        Before each of them the mask holds it alone. The end is none of them: where nothing else may follow,
        `is_terminated` says so.
        """
        ...

    def copy(self) -> Self:
        """An independent guide in the same state."""
        ...
