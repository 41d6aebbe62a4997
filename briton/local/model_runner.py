"""The compiled model and its KV cache: arrays in, logits out. It, `step_graphs` and `models` alone know OpenVINO."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from briton.errors import BuildError, ConfigError
from briton.local.cpus import available_cpus
from briton.local.lookahead.costs import LONG_CONTEXT, CostCurve
from briton.local.memory import num_graph_copies, num_kv_blocks
from briton.local.models.decoder import build_decoder
from briton.local.models.weights import Weights
from briton.local.padding import MAX_PADDED_SIZE, pad_tokens, padded_size
from briton.local.plan import Forward, StepInputs
from briton.local.probe import first_tokens, measure_costs, one_sequence
from briton.local.ranks.collectives import Collectives, SingleRank
from briton.local.settings import BLOCK_SIZE, LocalSettings, Precision
from briton.local.step_graphs import GraphCompiler, LaterGraphs, StepGraph
from briton.model.engine_dir import EngineManifest, rank_file

logger = logging.getLogger(__name__)

_PRECISIONS: tuple[Precision, ...] = ("f32", "bf16")  # what every CPU computes first


class ModelRunner:
    """One rank's model. `num_blocks` blocks of BLOCK_SIZE tokens; pages of the cache are touched, and so cost
    memory, when first used."""

    def __init__(
        self,
        directory: Path,
        manifest: EngineManifest,
        settings: LocalSettings,
        *,
        drafts: bool = False,
        fixed_sizes: Sequence[int] | None = None,
        fixed_later: bool = False,
        collectives: Collectives | None = None,
    ) -> None:
        """Compile and allocate. `drafts`: steps will have drafts. `fixed_sizes` are those of FIXED_SIZES that get a
        graph of their own; None: as many as there is memory for. `fixed_later`: not now, but when `compile_later` is
        called.

        With `collectives` this is one rank's part, and all ranks make theirs at the same time: what depends on the
        machine (element types, sizes) is agreed upon, so that each of them runs the same graphs. `forward` then returns
        this rank's columns of the logits.
        """
        core, collectives = ov.Core(), collectives or SingleRank()
        best = settings.precision or _best_precision(core)
        self.precision = _PRECISIONS[collectives.smallest(_PRECISIONS.index(best))]
        self.kv_cache_dtype = _kv_cache_dtype(settings, manifest, self.precision)
        positions = manifest.local_model.max_position_embeddings
        self.max_seq_len = min(settings.max_seq_len or positions, positions)
        weights_path = directory / rank_file(collectives.rank)
        self._max_num_tokens = settings.max_num_tokens
        self._weights = Weights(weights_path)
        self.weights_bytes = weights_path.stat().st_size
        if fixed_sizes is None:
            num_copies = collectives.smallest(num_graph_copies(collectives.sum_on_host(self.weights_bytes)))
            fixed_sizes = _affordable_sizes(num_copies, self.weights_bytes, drafts)
        threads = settings.threads or available_cpus()
        properties = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "KV_CACHE_PRECISION": self.kv_cache_dtype,
            "INFERENCE_NUM_THREADS": max(1, threads // collectives.ranks_on_host),
            "PERFORMANCE_HINT": "LATENCY",
            # each process would pin its threads to the first cores
            **({"ENABLE_CPU_PINNING": False} if collectives.ranks_on_host > 1 else {}),
        }
        shard = manifest.shards[collectives.rank]
        model = build_decoder(manifest.local_model, self._weights, self.max_seq_len, shard, collectives.sum_over_ranks)
        compiler = GraphCompiler(core, model, properties)
        self._dynamic, *fixed = compiler.compile((None,) if fixed_later else (None, *fixed_sizes))
        self.fixed_sizes = tuple(fixed_sizes)  # ready now, or later
        self._fixed: Mapping[int, StepGraph] = {graph.num_tokens: graph for graph in fixed if graph.num_tokens}
        self._compiler = compiler if fixed_later else None
        self._later: LaterGraphs | None = None
        ports = self._dynamic.kv_cache_ports()
        shapes = {name: [d.get_length() for d in list(port.get_partial_shape())[1:]] for name, port in ports.items()}
        if any(shape[1] < BLOCK_SIZE for shape in shapes.values()):
            raise ConfigError(
                f"this OpenVINO lays out KV cache blocks as {shapes}; {BLOCK_SIZE} tokens a block were expected"
            )
        self.block_bytes = sum(
            int(np.prod(shapes[name])) * port.get_element_type().bitwidth // 8 for name, port in ports.items()
        )
        block_bytes = collectives.sum_on_host(self.block_bytes)
        later_bytes = self.weights_bytes * len(self.fixed_sizes) if fixed_later else 0
        self.num_blocks = collectives.smallest(num_kv_blocks(settings, self.max_seq_len, block_bytes, later_bytes))
        # two blocks more than anybody knows of: for padding, and for graphs that warm up beside running requests
        self._kv_cache = {
            name: ov.Tensor(port.get_element_type(), [self.num_blocks + 2, *shapes[name]])
            for name, port in ports.items()
        }
        for graph in (self._dynamic, *fixed):
            graph.set_kv_cache(self._kv_cache)

    def warm_up(self, max_batch_size: int, forward: Forward) -> None:
        """Run one-token batches of 1, 2, 4, ... sequences, and a short prompt in every graph, so that no user pays
        for what the plugin prepares at a first call. `forward` is this runner's, or that of all ranks together.

        Writes to the cache's first blocks, which nobody has yet. Raises BuildError when the logits are not numbers.
        """
        largest = min(max_batch_size, self.num_blocks)
        batches = [first_tokens(2**power) for power in range(largest.bit_length())]
        prompts = [one_sequence(min(size, self.max_seq_len)) for size in (*self._fixed, BLOCK_SIZE)]
        for inputs in batches + prompts:
            if not np.isfinite(forward(inputs)).all():
                raise BuildError("the model's logits are not finite numbers: its weights are damaged")

    def compile_later(self) -> None:
        """Start to compile the graphs that were left for later, in the background. Steps use each as soon as it has run
        once, in a block of its own."""
        if self._compiler is not None and self.fixed_sizes:
            self._later = self._compiler.compile_later(self.fixed_sizes, self._take)
        self._compiler = None

    def stop_compiling(self) -> None:
        """Compile no more graphs. Does not wait for the one at hand."""
        if self._later is not None:
            self._later.stop()

    def await_graphs(self, timeout_s: float | None = None) -> bool:
        """Whether no graph is left to be compiled, within this time."""
        return self._later is None or self._later.wait(timeout_s)

    @property
    def ready_sizes(self) -> tuple[int, ...]:
        """Those of `fixed_sizes` that have their graph."""
        return tuple(self._fixed)

    def _take(self, graph: StepGraph) -> None:
        """Run a new graph, which the executor's thread does not know yet, and let it know. Raises BuildError."""
        assert graph.num_tokens is not None
        graph.set_kv_cache(self._kv_cache)
        steps = [first_tokens(graph.num_tokens)]
        if graph.num_tokens <= self.max_seq_len:
            steps.append(one_sequence(graph.num_tokens))
        for inputs in steps:
            alone = inputs._replace(block_indices=np.full_like(inputs.block_indices, self.num_blocks + 1))
            if not np.isfinite(graph.compute(alone)).all():
                raise BuildError(f"logits of steps of {graph.num_tokens} tokens are not finite numbers")
        self._fixed = {**self._fixed, graph.num_tokens: graph}  # a new one: a step may be reading the old

    def write_first_blocks(self) -> None:
        """Give the blocks that `measure_costs` reads pages of their own: pages never written are all one, and read too
        fast."""
        for tensor in self._kv_cache.values():
            tensor.data[: -(-self._num_probed_positions // BLOCK_SIZE)] = 0

    def measure_costs(self, forward: Forward) -> CostCurve:
        """What a step costs by its number of tokens: some seconds of steps, in the cache's first blocks, which nobody
        has yet."""
        return measure_costs(
            forward,
            max_num_tokens=self._max_num_tokens,
            max_num_positions=self._num_probed_positions,
            fixed_sizes=self.fixed_sizes,  # which cost a tenth less than they do now, where they are not ready
        )

    @property
    def _num_probed_positions(self) -> int:
        return min(LONG_CONTEXT + MAX_PADDED_SIZE, self.max_seq_len, self.num_blocks * BLOCK_SIZE)

    def forward(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Compute one step: write the new tokens' keys and values, return logits [rows, vocab], valid until the next
        call."""
        fixed = self._fixed
        size = padded_size(inputs, fixed)
        if size > len(inputs.token_ids):
            inputs = pad_tokens(inputs, size, scratch_block=self.num_blocks)
        return fixed.get(size, self._dynamic).compute(inputs)


def _affordable_sizes(num_copies: int, weights_bytes: int, drafts: bool) -> list[int]:
    """The fixed sizes worth a copy of the weights each, the most useful first; logs what was decided."""
    wanted = [8, 1, 4, 16] if drafts else [1, 4, 8, 16]
    sizes = wanted[:num_copies]
    logger.info(
        "graphs of their own for steps of %s tokens: %.2f GiB of weights each, packed anew",
        sizes or "no fixed number of",
        weights_bytes / 2**30,
    )
    return sizes


def _kv_cache_dtype(settings: LocalSettings, manifest: EngineManifest, precision: str) -> str:
    """The config's, else the engine's. Paged attention takes an unquantized cache in the activations' own type only."""
    asked = settings.kv_cache_dtype or manifest.kv_cache_dtype
    return asked if asked == "u8" else precision


def _best_precision(core: ov.Core) -> Precision:
    """bf16 where the CPU computes it natively, else f32."""
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
