"""The same prompts answered with lookahead and without, prompt by prompt in turns, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from answers import OFF, Answer, Asker
from prompt_set import Prompt

from briton.config.lookahead import LookaheadConfig

WITH, WITHOUT, PLAIN = "with", "without", "plain"  # plain: another engine, that has no speculator


class Side(NamedTuple):
    """One way to answer."""

    name: str
    asker: Asker
    lookahead: LookaheadConfig | None  # None: as its engine is configured


def sides(asker: Asker, plain: Asker | None = None) -> list[Side]:
    """An engine with lookahead, and the same engine asked to do without."""
    two = [Side(WITH, asker, None), Side(WITHOUT, asker, OFF)]
    return two if plain is None else [*two, Side(PLAIN, plain, None)]


@dataclass
class Rate:
    """Tokens and the seconds they took."""

    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """More of both."""
        self.tokens += tokens
        self.seconds += seconds

    @property
    def per_second(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class Round(NamedTuple):
    """What one round of one workload took, by side."""

    decode: dict[str, Rate]  # first token to last; of requests alone in the engine
    end_to_end: dict[str, Rate]


@dataclass
class Comparison:
    """Rounds of one workload."""

    rounds: list[Round] = field(default_factory=list)
    answers: list[tuple[Answer, Answer]] = field(default_factory=list)  # with, without
    num_output_tokens: int = 0  # with lookahead,
    num_steps: int = 0  # in so many steps of sequences
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    def note(self, answer: Answer) -> None:
        """Count what drafting did for an answer."""
        self.num_output_tokens += len(answer.token_ids)
        self.num_steps += answer.speculation.num_steps
        self.num_draft_tokens += answer.speculation.num_draft_tokens
        self.num_accepted_tokens += answer.speculation.num_accepted_tokens

    def decode_ratio(self, over: str = WITHOUT) -> float:
        """Decoded tokens a second with lookahead over those of another side: the median of rounds."""
        return median(self.decode_ratios(over))

    def decode_ratios(self, over: str = WITHOUT) -> list[float]:
        """Of each round."""
        return [each.decode[WITH].per_second / each.decode[over].per_second for each in self.rounds]

    def end_to_end_ratio(self, over: str = WITHOUT) -> float:
        """The same of output tokens a second, prompts included."""
        return median(each.end_to_end[WITH].per_second / each.end_to_end[over].per_second for each in self.rounds)

    def off_ratio(self) -> float:
        """An engine with its speculator turned off over one that has none: below 1 it costs something to have one."""
        return median(each.decode[WITHOUT].per_second / each.decode[PLAIN].per_second for each in self.rounds)

    @property
    def tokens_per_step(self) -> float:
        """Output tokens of a sequence for each time that it was sampled."""
        return self.num_output_tokens / max(1, self.num_steps)

    @property
    def acceptance(self) -> float:
        """Of the draft tokens, the share that became output."""
        return self.num_accepted_tokens / max(1, self.num_draft_tokens)

    @property
    def different(self) -> list[tuple[Answer, Answer]]:
        """Answers that lookahead changed, which bf16 does not exclude."""
        return [(ours, other) for ours, other in self.answers if ours.token_ids != other.token_ids]


def compare_alone(into: Comparison, of: Sequence[Side], prompts: Sequence[Prompt], number: int, guided: bool) -> None:
    """A round of one request at a time: each prompt is answered by every side, by turns first."""
    decode, end_to_end = {side.name: Rate() for side in of}, {side.name: Rate() for side in of}
    for i, prompt in enumerate(prompts):
        answered: dict[str, Answer] = {}
        first = (i + number) % len(of)
        for side in (*of[first:], *of[:first]):
            run = side.asker.ask([prompt], lookahead=side.lookahead, guided=guided)
            (answer,) = run.answers
            answered[side.name] = answer
            decode[side.name].add(answer.decode_tokens, answer.decode_s)
            end_to_end[side.name].add(len(answer.token_ids), run.wall_s)
        into.note(answered[WITH])
        into.answers.append((answered[WITH], answered[WITHOUT]))
    into.rounds.append(Round(decode, end_to_end))


def compare_batch(
    into: Comparison, of: Sequence[Side], prompts: Sequence[Prompt], number: int, concurrency: int, repeats: int
) -> None:
    """A round of `concurrency` requests at a time: every side answers all prompts `repeats` times, by turns first."""
    end_to_end = {side.name: Rate() for side in of}
    for repeat in range(repeats):
        first = (number + repeat) % len(of)
        answered: dict[str, list[Answer]] = {}
        for side in (*of[first:], *of[:first]):
            run = side.asker.ask(prompts, concurrency=concurrency, lookahead=side.lookahead)
            answered[side.name] = run.answers
            end_to_end[side.name].add(sum(len(answer.token_ids) for answer in run.answers), run.wall_s)
        for answer in answered[WITH]:
            into.note(answer)
        into.answers += zip(answered[WITH], answered[WITHOUT], strict=True)
    into.rounds.append(Round({}, end_to_end))
