"""A golden: what transformers in float32 answered on one model, kept small enough to commit.

Knows arrays and one file format; neither the reference implementation nor ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DIRECTORY = Path(__file__).parent


class Row(NamedTuple):
    """The logits after `position + 1` tokens of a sequence (prompt and output together), at some token ids."""

    sequence: int
    position: int
    token_ids: NDArray[np.int64]  # [k]
    logits: NDArray[np.float32]  # [k]
    logsumexp: float  # over the whole vocabulary: logit - logsumexp is the natural-log probability


@dataclass(frozen=True)
class Golden:
    """Prompts, their greedy continuations, and a few rows of logits."""

    prompts: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    rows: tuple[Row, ...]

    def rows_of(self, sequence: int) -> list[Row]:
        """The rows of one sequence, by position."""
        return [row for row in self.rows if row.sequence == sequence]

    def save(self, path: Path) -> None:
        """Write the .npz file."""
        np.savez_compressed(
            path,
            prompts=np.concatenate([np.array(p, np.uint32) for p in self.prompts]),
            prompt_lengths=np.array([len(p) for p in self.prompts], np.uint32),
            outputs=np.array(self.outputs, np.uint32),
            sequence=np.array([row.sequence for row in self.rows], np.uint32),
            position=np.array([row.position for row in self.rows], np.uint32),
            token_ids=np.array([row.token_ids for row in self.rows], np.uint32),
            logits=np.array([row.logits for row in self.rows], np.float32),
            logsumexp=np.array([row.logsumexp for row in self.rows], np.float64),
        )


def load(name: str) -> Golden:
    """Read the golden of that name, which `make_goldens.py` wrote beside this file."""
    with np.load(DIRECTORY / f"{name}.npz") as file:
        ends = np.cumsum(file["prompt_lengths"])[:-1]
        rows = zip(
            file["sequence"].tolist(),
            file["position"].tolist(),
            file["token_ids"].astype(np.int64),
            file["logits"],
            file["logsumexp"].tolist(),
            strict=True,
        )
        return Golden(
            prompts=tuple(tuple(prompt.tolist()) for prompt in np.split(file["prompts"], ends)),
            outputs=tuple(tuple(output) for output in file["outputs"].tolist()),
            rows=tuple(Row(*row) for row in rows),
        )
