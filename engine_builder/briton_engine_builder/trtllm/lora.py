"""A LoRA adapter as Hugging Face's peft saves it, laid out as TensorRT-LLM's executor takes it.

The layout is the one of TensorRT-LLM's public documentation of LoRA: weights [1, rows, width] and a description
[1, rows, 3], in the two files that `briton.trtllm.lora.read_adapter` reads. B is scaled already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briton.errors import BuildError
from briton.model.shapes import ModelShapes
from briton.trtllm.host_tensor import BFLOAT16
from briton.trtllm.lora import (
    DESCRIPTION,
    LORA_MODULE_IDS,
    LORA_MODULES,
    WEIGHTS,
    adapter_directory,
    module_sizes,
)
from briton_engine_builder.encodings import round_to_bf16
from briton_engine_builder.hf_checkpoint import ADAPTER_CONFIG, ADAPTER_MODEL, read_json
from briton_engine_builder.safetensors_reader import read_safetensors
from briton_engine_builder.tensor import Tensor

_TENSOR = re.compile(r"(?:.*\.)?layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_(A|B)\.weight")
# What changes an adapter's answers, and has no place in the layout: key, and the values that say it is not used.
_UNSUPPORTED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("use_dora", (None, False)),
    ("lora_bias", (None, False)),
    ("bias", (None, "none")),
    ("modules_to_save", (None, [])),
    ("alpha_pattern", (None, {})),
    ("layer_replication", (None, [])),
    ("trainable_token_indices", (None, [], {})),
)


def write_adapter(
    checkpoint: Path, engine: Path, name: str, shapes: ModelShapes, modules: Sequence[str], max_rank: int
) -> None:
    """Convert an adapter for a model of these shapes into the engine directory. Raises BuildError for one of another
    model, of modules or a rank that the engine is not built for, and for what is more than LoRA."""
    weights, description = convert_adapter(checkpoint, shapes, modules, max_rank)
    directory = adapter_directory(engine, name)
    directory.mkdir(parents=True)
    np.save(directory / WEIGHTS, weights, allow_pickle=False)
    np.save(directory / DESCRIPTION, description, allow_pickle=False)


def convert_adapter(
    checkpoint: Path, shapes: ModelShapes, modules: Sequence[str], max_rank: int
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """(weights, description) of an adapter's directory; see `write_adapter`."""
    alpha, use_rslora = _scaling(checkpoint)
    rows, description = list[NDArray[Any]](), list[tuple[int, int, int]]()
    for (layer, name), factors in sorted(_pairs(checkpoint).items()):
        module = LORA_MODULES.get(name)
        if module is None or module not in modules:
            allowed = ", ".join(hf for hf, own in LORA_MODULES.items() if own in modules)
            raise BuildError(
                f"{checkpoint} changes {name}; trt_llm.build.lora_configuration.lora_target_modules allows {allowed}"
            )
        if layer >= shapes.num_hidden_layers:
            raise BuildError(f"{checkpoint} changes layer {layer}; the model has {shapes.num_hidden_layers}")
        if set(factors) != {"A", "B"}:
            raise BuildError(f"{checkpoint}: {name} of layer {layer} has no lora_{'B' if 'A' in factors else 'A'}")
        inputs, outputs = module_sizes(module, shapes)
        rank = factors["A"].shape[0]
        if not 1 <= rank <= max_rank:
            raise BuildError(
                f"{checkpoint} has rank {rank}; trt_llm.build.lora_configuration.max_lora_rank is {max_rank}"
            )
        a = factors["A"].check_shape((rank, inputs)).read()
        b = factors["B"].check_shape((outputs, rank)).read() * np.float32(alpha / (rank**0.5 if use_rslora else rank))
        rows.append(_stored(np.concatenate([a.ravel(), b.ravel()]), shapes.dtype))
        description.append((LORA_MODULE_IDS[module], layer, rank))
    if not rows:
        raise BuildError(f"{checkpoint / ADAPTER_MODEL} holds no adapter")
    weights = np.zeros((1, len(rows), max(map(len, rows))), rows[0].dtype)
    for i, row in enumerate(rows):
        weights[0, i, : len(row)] = row
    return weights, np.asarray([description], np.int32)


def _scaling(checkpoint: Path) -> tuple[float, bool]:
    """(lora_alpha, whether it is divided by the rank's root) of adapter_config.json."""
    file = checkpoint / ADAPTER_CONFIG
    if not file.is_file():
        raise BuildError(f"{checkpoint} is no LoRA adapter: it has no {ADAPTER_CONFIG}")
    config = read_json(file)
    if config.get("peft_type") != "LORA":
        raise BuildError(f"{file}: peft_type is {config.get('peft_type')!r}; LORA is supported")
    for key, unused in _UNSUPPORTED:
        if config.get(key) not in unused:
            raise BuildError(f"{file}: {key} is {config[key]!r}, which TensorRT-LLM's LoRA has no place for")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, (int, float)):
        raise BuildError(f"{file}: lora_alpha must be a number, not {alpha!r}")
    return float(alpha), bool(config.get("use_rslora"))


def _pairs(checkpoint: Path) -> dict[tuple[int, str], dict[str, Tensor]]:
    """(layer, module as peft calls it) -> A and B."""
    found = dict[tuple[int, str], dict[str, Tensor]]()
    for name, tensor in read_safetensors(checkpoint / ADAPTER_MODEL).items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise BuildError(f"{checkpoint}: tensor {name} is not of an attention's or an MLP's LoRA")
        if len(tensor.shape) != 2:
            raise BuildError(f"{checkpoint}: tensor {name} has shape {list(tensor.shape)}, which is no matrix")
        found.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    return found


def _stored(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """In the model's own type, which is the one that the library takes."""
    if dtype == "bfloat16":
        return round_to_bf16(values).view(BFLOAT16)
    return values.astype(np.dtype(dtype))
