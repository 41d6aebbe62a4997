"""Which part of a model each tensor-parallel rank holds (Shoeybi et al. 2019, Megatron-LM).

Query, key, value, gate and up are split by output (column-wise), output and down by input (row-wise), embedding and
lm_head by vocabulary, so that a layer needs two sums over ranks. A key/value head and the query heads that share it
stay together. Numbers that do not divide are split unevenly, the first ranks getting more.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from briton.errors import ConfigError

_UNIT = 32  # of split widths, where there are enough: quantized weights share a scale in groups of so many


class Sizes(Protocol):
    """What of a model is divided (`briton.model.engine_dir.ModelConfig`, `briton.model.shapes.ModelShapes`)."""

    @property
    def num_attention_heads(self) -> int:
        """Query heads."""
        ...

    @property
    def num_key_value_heads(self) -> int:
        """Heads that groups of query heads share."""
        ...

    @property
    def intermediate_size(self) -> int:
        """The MLP's inner width."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids."""
        ...


class Span(NamedTuple):
    """Numbers begin..end-1."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        """How many."""
        return self.end - self.begin

    def times(self, factor: int) -> Span:
        """The same, each number standing for `factor` others: heads to rows."""
        return Span(self.begin * factor, self.end * factor)


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part, as numbers of the whole model."""

    heads: Span  # query heads
    key_value_heads: Span  # those that the query heads share; ranks may hold the same one
    intermediate: Span  # the MLP's inner width
    vocab: Span  # token ids: rows of embedding and lm_head


def shard_model(model: Sizes, num_ranks: int) -> tuple[Shard, ...]:
    """The shards of all ranks. Raises ConfigError, naming both numbers, for more ranks than heads."""
    if num_ranks > model.num_attention_heads:
        raise ConfigError(
            f"tensor parallelism over {num_ranks} ranks is too much for a model with "
            f"{model.num_attention_heads} attention heads: each rank needs one",
            "trt_llm.build.tensor_parallel_count",
        )
    heads = _head_spans(model.num_attention_heads, model.num_key_value_heads, num_ranks)
    intermediate = divide(model.intermediate_size, num_ranks, _UNIT)
    vocab = divide(model.vocab_size, num_ranks, _UNIT)
    return tuple(Shard(*spans, inner, ids) for spans, inner, ids in zip(heads, intermediate, vocab, strict=True))


def divide(total: int, parts: int, unit: int = 1) -> list[Span]:
    """0..total-1 in consecutive spans that differ by one unit at most, in whole units but for the last.

    Units become 1 where there are fewer of them than parts. Raises ValueError for more parts than numbers.
    """
    if total < parts:
        raise ValueError(f"{total} cannot be divided into {parts} parts")
    num_units = -(-total // unit)
    if num_units < parts:
        return divide(total, parts)
    each, extra = divmod(num_units, parts)
    ends = [min(total, unit * (each * part + min(part, extra))) for part in range(parts + 1)]
    return [Span(begin, end) for begin, end in itertools.pairwise(ends)]


def _head_spans(heads: int, key_value_heads: int, num_ranks: int) -> list[tuple[Span, Span]]:
    """(query heads, key/value heads) of each rank: whole groups, or a part of one group where ranks are many."""
    group = heads // key_value_heads  # query heads that share one key/value head
    if num_ranks <= key_value_heads:
        return [(span.times(group), span) for span in divide(key_value_heads, num_ranks)]
    spans = []
    for head, ranks in enumerate(divide(num_ranks, key_value_heads)):
        shared = Span(head, head + 1)
        parts = divide(group, ranks.size)
        spans += [(Span(head * group + part.begin, head * group + part.end), shared) for part in parts]
    return spans
