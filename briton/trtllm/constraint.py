"""What one request's logits must keep to: its guide, and stop tokens that may not come yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from briton.engine.types import GenerationRequest
from briton.guidance.guide import Guide


class Failure(NamedTuple):
    """A request that cannot go on."""

    error: Exception
    num_tokens: int  # of the output, that were still as asked


@dataclass(slots=True)
class ConstrainedSequence:
    """One of the n sequences, under the id that the library gave it."""

    guide: Guide | None
    num_output: int = 0  # tokens that the guide has consumed

    def follow(self, token_ids: Sequence[int], num_prompt: int) -> None:
        """Bring the guide to the end of prompt and output. Does nothing when called again with the same, as chunks of
        context do. Raises RuntimeError for a token that the guide does not allow."""
        num_output = len(token_ids) - num_prompt
        if self.guide is not None:
            if num_output < self.num_output:
                self.guide.rollback(self.num_output - num_output)
                self.num_output = num_output
            new = token_ids[num_prompt + self.num_output :]
            if new and not self.guide.advance(new):
                raise RuntimeError(f"the guide refused tokens {list(new)}, which its own masks allowed")
        self.num_output = num_output


class Constraint:
    """The state of one request in the logits processor, which alone touches it from `add` to `drop`; `failure` is set
    there, and read by whoever handles responses."""

    def __init__(self, request: GenerationRequest, stop_token_ids: Collection[int]) -> None:
        """Copies the guide for every sequence: a guide that cannot be copied is its caller's error."""
        self.num_prompt = len(request.prompt_token_ids)
        self.min_tokens = request.sampling.min_tokens
        self.stop_token_ids = tuple(sorted(stop_token_ids))
        self.failure: Failure | None = None
        self._template = request.guide
        self._guides = [] if request.guide is None else [request.guide.copy() for _ in range(request.sampling.n)]
        self._sequences: dict[int, ConstrainedSequence] = {}

    @staticmethod
    def is_needed(request: GenerationRequest, stop_token_ids: Collection[int]) -> bool:
        """Whether a request's logits must be edited at all.

        The library's own min_tokens holds off one end_id, and no stop word: several stop ids are held off here.
        """
        return request.guide is not None or (request.sampling.min_tokens > 0 and len(stop_token_ids) > 0)

    def sequence(self, library_id: int) -> ConstrainedSequence:
        """The sequence with an id of the library's, which is made when it is first seen."""
        sequence = self._sequences.get(library_id)
        if sequence is None:
            if not self._guides and self._template is not None:
                self._guides.append(self._template.copy())
            sequence = ConstrainedSequence(self._guides.pop() if self._guides else None)
            self._sequences[library_id] = sequence
        return sequence

    def num_sound(self, library_id: int) -> int:
        """Tokens of a sequence's output that its guide has consumed."""
        sequence = self._sequences.get(library_id)
        return 0 if sequence is None else sequence.num_output

    def fail(self, error: Exception, num_tokens: int) -> bool:
        """Note the first failure; whether this was it."""
        if self.failure is not None:
            return False
        self.failure = Failure(error, num_tokens)
        return True
