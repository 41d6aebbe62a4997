"""The compiled model and its KV cache: arrays in, logits out. With `models`, the only room that knows OpenVINO."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from briton.engine_dir import EngineManifest, rank_file
from briton.errors import BuildError, ConfigError
from briton.local.memory import num_kv_blocks
from briton.local.models.decoder import build_decoder
from briton.local.models.weights import Weights
from briton.local.plan import StepInputs
from briton.local.settings import BLOCK_SIZE, LocalSettings

logger = logging.getLogger(__name__)


class ModelRunner:
    """One rank's model. `num_blocks` blocks of BLOCK_SIZE tokens; pages of the cache are touched, and so cost
    memory, when first used."""

    def __init__(self, directory: Path, manifest: EngineManifest, settings: LocalSettings) -> None:
        core = ov.Core()
        self.precision = settings.precision or _best_precision(core)
        self.kv_cache_dtype = _kv_cache_dtype(settings, manifest, self.precision)
        self.max_seq_len = min(
            settings.max_seq_len or manifest.model.max_position_embeddings, manifest.model.max_position_embeddings
        )
        self._weights = Weights(directory / rank_file(0))
        model = build_decoder(manifest.model, self._weights, self.max_seq_len)
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precision,
                "KV_CACHE_PRECISION": self.kv_cache_dtype,
                "INFERENCE_NUM_THREADS": settings.threads or len(os.sched_getaffinity(0)),
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self._request = compiled.create_infer_request()
        caches = {port.get_any_name(): port for port in compiled.inputs if "_cache." in port.get_any_name()}
        shapes = {name: [d.get_length() for d in list(port.get_partial_shape())[1:]] for name, port in caches.items()}
        if any(shape[1] < BLOCK_SIZE for shape in shapes.values()):
            raise ConfigError(
                f"this OpenVINO lays out KV cache blocks as {shapes}; {BLOCK_SIZE} tokens a block were expected"
            )
        self.block_bytes = sum(
            int(np.prod(shapes[name])) * port.get_element_type().bitwidth // 8 for name, port in caches.items()
        )
        self.num_blocks = num_kv_blocks(settings, self.max_seq_len, self.block_bytes)
        self._kv_cache = []
        for name, port in caches.items():
            tensor = ov.Tensor(port.get_element_type(), [self.num_blocks, *shapes[name]])
            self._kv_cache.append(tensor)
            self._request.set_tensor(name, tensor)

    def warm_up(self, max_batch_size: int) -> None:
        """Run one-token batches of 1, 2, 4, ... sequences, so that no user pays for what the plugin prepares at a
        first call.

        Writes to the cache's first blocks, which nobody has yet. Raises BuildError when the logits are not numbers.
        """
        batch_size = 1
        while batch_size <= min(max_batch_size, self.num_blocks):
            ones, steps = np.ones(batch_size, np.int64), np.arange(batch_size + 1, dtype=np.int32)
            logits = self.forward(
                StepInputs(
                    ones,
                    0 * ones,
                    0 * steps[1:],
                    steps,
                    steps[:-1],
                    steps,
                    1,
                    steps[:-1].astype(np.int64),
                    np.zeros(0, np.uint8),
                    0 * steps,
                )
            )
            if not np.isfinite(logits).all():
                raise BuildError("the model's logits are not finite numbers: its weights are damaged")
            batch_size *= 2

    def forward(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Compute one step: write the new tokens' keys and values, return logits [rows, vocab], valid until the next
        call."""
        for name, value in zip(inputs._fields, inputs, strict=True):
            # max_context_len must stay 0-d: np.ascontiguousarray would make it 1-d, and the call would be refused
            array = np.array(value, np.int32) if name == "max_context_len" else value
            self._request.set_tensor(name, ov.Tensor(array))
        self._request.infer()
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data
        return logits


def _kv_cache_dtype(settings: LocalSettings, manifest: EngineManifest, precision: str) -> str:
    """The config's, else the engine's. Paged attention takes an unquantized cache in the activations' own type only."""
    asked = settings.kv_cache_dtype or manifest.kv_cache_dtype
    return asked if asked == "u8" else precision


def _best_precision(core: ov.Core) -> str:
    """bf16 where the CPU computes it natively, else f32."""
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
