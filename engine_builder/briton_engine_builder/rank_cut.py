"""Which rows and columns of each matrix go into a rank's file: `briton.model.sharding` in terms of stored arrays."""

from __future__ import annotations

from dataclasses import dataclass

from briton.errors import BuildError
from briton.model.engine_dir import ModelConfig
from briton.model.sharding import Shard, Span
from briton_engine_builder.llama import Matrix


@dataclass(frozen=True, slots=True)
class Cut:
    """One rank's part of one matrix [out, in]."""

    rows: tuple[Span, ...]  # of each part of the matrix
    columns: Span
    has_bias: bool  # a sum over ranks must get it once

    @property
    def num_rows(self) -> int:
        """Of all parts together."""
        return sum(span.size for span in self.rows)

    def above(self, part: int) -> int:
        """How many of the rank's rows lie above those of that part."""
        return sum(span.size for span in self.rows[:part])

    def columns_of(self, width: int, matrix: Matrix) -> Span:
        """The cut's columns in an array that has `width` of them for the matrix's: packed values, or a scale a group.

        One scale for all columns is everybody's. Raises BuildError where a rank would get a part of a group.
        """
        full = matrix.shape[1]
        if width == 1:
            return Span(0, 1)
        if self.columns.begin * width % full or self.columns.end * width % full:
            raise BuildError(
                f"{matrix.name}: columns {self.columns.begin} to {self.columns.end} of one rank do not end with a "
                f"group of {full // width} that shares a scale: choose another number of ranks or quantization_type"
            )
        return Span(self.columns.begin * width // full, self.columns.end * width // full)


def cut(matrix: Matrix, model: ModelConfig, shard: Shard, rank: int) -> Cut:
    """What `rank` gets of a matrix."""
    heads, shared = shard.heads.times(model.head_dim), shard.key_value_heads.times(model.head_dim)
    everything = tuple(Span(0, part.shape[0]) for part in matrix.parts)
    all_columns = Span(0, matrix.shape[1])
    match matrix.name.rpartition(".")[2]:
        case "qkv":
            return Cut((heads, shared, shared), all_columns, has_bias=True)
        case "gate_up":
            return Cut((shard.intermediate, shard.intermediate), all_columns, has_bias=True)
        case "o":
            return Cut(everything, heads, has_bias=rank == 0)
        case "down":
            return Cut(everything, shard.intermediate, has_bias=rank == 0)
        case "embed_tokens" | "lm_head":
            return Cut((shard.vocab,), all_columns, has_bias=True)
        case _:
            raise ValueError(f"how ranks share {matrix.name} is not known")
