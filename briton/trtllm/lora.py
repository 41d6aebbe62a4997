"""LoRA adapters (Hu et al. 2021) in TensorRT-LLM: which modules they change, and the caches that hold them.

An adapter is two factors for each module and layer, A [rank, in] and B [out, rank]. The library knows it by a task id,
gets its tensors once, and keeps them in a cache on the host and one on the GPU (peftCacheManager.cpp): both are made
large enough for every adapter of the config, so that none is ever evicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briton.config.config import Config
from briton.errors import BuildError, ConfigError
from briton.model.shapes import ModelShapes
from briton.trtllm.library_objects import EXECUTOR, Call
from briton.trtllm.parallel import Parallelism

# Hugging Face's module names -> TensorRT-LLM's
LORA_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "up_proj": "mlp_gate",
    "down_proj": "mlp_4h_to_h",
}
# The library's numbers of them, in a tensor that describes an adapter.
LORA_MODULE_IDS = {
    "attn_q": 1,
    "attn_k": 2,
    "attn_v": 3,
    "attn_dense": 4,
    "mlp_h_to_4h": 5,
    "mlp_4h_to_h": 6,
    "mlp_gate": 7,
}
WEIGHTS = "model.lora_weights.npy"  # an adapter's files, as the library names them
DESCRIPTION = "model.lora_config.npy"
# Modules whose matrices the library computes at once: it has adapters for all of a group, or for none of it. Of query,
# key and value it adds what is missing by itself; of a fused MLP it drops the adapter of one without a word.
_GROUPS = (("attn_q", "attn_k", "attn_v"), ("mlp_h_to_4h", "mlp_gate"))
_ROW_SPLIT = ("attn_dense", "mlp_4h_to_h")  # divided over ranks by their inputs, the others by their outputs
_SIXTEEN_BIT = 2  # bytes
_FIELD = "trt_llm.build.lora_adapters"


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter: requests name it as their model, the engine knows it by its task id."""

    name: str
    task_id: int  # 1, 2, ... in the order of the config
    source: str
    repo: str
    revision: str | None


def adapter_directory(engine: Path, name: str) -> Path:
    """Where an engine directory has an adapter."""
    return engine / "lora" / name


def read_adapter(engine: Path, name: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """(weights [rows, width], description [rows, 3]) of an adapter: a row is one module of one layer, its A and then
    its B, padded; it is described by the module's id, the layer and the rank. Raises BuildError."""
    directory = adapter_directory(engine, name)
    try:
        weights, description = (np.load(directory / file, allow_pickle=False) for file in (WEIGHTS, DESCRIPTION))
    except (OSError, ValueError, EOFError) as error:
        raise BuildError(f"the LoRA adapter in {directory} cannot be read: {error}; build the engine again") from None
    if weights.ndim != 3 or description.ndim != 3 or weights.shape[:2] != description.shape[:2] or len(weights) != 1:
        raise BuildError(
            f"the LoRA adapter in {directory} has weights {weights.shape} and description {description.shape}: "
            "build the engine again"
        )
    return weights[0], description[0]


def lora_adapters(config: Config) -> tuple[LoraAdapter, ...]:
    """The config's. Raises ConfigError for a name that could not be asked for, or is no file name."""
    adapters = config.lora_adapters
    for name in adapters:
        if name == config.served_model_name:
            raise ConfigError(f"lora_adapters has {name!r}, which is the name of the served model itself", _FIELD)
        if not name.strip("."):
            raise ConfigError(f"lora_adapters has {name!r}, which is no file name", _FIELD)
    return tuple(
        LoraAdapter(name, number, repository.source.value, repository.repo, repository.revision)
        for number, (name, repository) in enumerate(adapters.items(), start=1)
    )


def lora_modules(config: Config, shapes: ModelShapes) -> list[str]:
    """The modules that adapters may change, in TensorRT-LLM's names; where the config names none, all that the library
    can change; of a group, all of it. Raises ConfigError."""
    lora, possible = config.trt_llm.build.lora_configuration, _possible_modules(shapes)
    named = [LORA_MODULES.get(name, name) for name in (lora.lora_target_modules if lora is not None else [])]
    for module in named:
        if module not in possible:
            names = ", ".join(name for name, own in LORA_MODULES.items() if own in possible)
            raise ConfigError(
                f"lora_target_modules names {module}: of {shapes.architecture} with its sizes, TensorRT-LLM's adapters "
                f"may change {names}",
                "trt_llm.build.lora_configuration.lora_target_modules",
            )
    if not named:
        return possible
    grouped = [module for group in _GROUPS if set(group) & set(named) for module in group]
    return list(dict.fromkeys([*named, *grouped]))


def _possible_modules(shapes: ModelShapes) -> list[str]:
    """Not the MLPs of a mixture of experts; not attention's output where its heads are not as wide as the model, since
    the library takes both for the same (loraModule.cpp)."""
    refused = {"attn_dense"} if shapes.num_attention_heads * shapes.head_dim != shapes.hidden_size else set[str]()
    if shapes.num_experts:
        refused |= {module for module in LORA_MODULE_IDS if module.startswith("mlp")}
    return [module for module in LORA_MODULES.values() if module not in refused]


def max_lora_rank(config: Config) -> int:
    """The largest rank of an adapter; the schema's default is 64. Raises ConfigError."""
    lora = config.trt_llm.build.lora_configuration
    rank = lora.max_lora_rank if lora is not None else 64
    if rank < 1:
        raise ConfigError(
            f"max_lora_rank must be at least 1, not {rank}", "trt_llm.build.lora_configuration.max_lora_rank"
        )
    return rank


def module_sizes(module: str, shapes: ModelShapes) -> tuple[int, int]:
    """(inputs, outputs) of a module's matrix, over all ranks."""
    hidden, mlp = shapes.hidden_size, shapes.intermediate_size
    queries, keys = (heads * shapes.head_dim for heads in (shapes.num_attention_heads, shapes.num_key_value_heads))
    sizes = {"attn_q": (hidden, queries), "attn_k": (hidden, keys), "attn_v": (hidden, keys)}
    sizes |= {"attn_dense": (queries, hidden), "mlp_4h_to_h": (mlp, hidden)}
    return sizes.get(module, (hidden, mlp))


@dataclass(frozen=True, slots=True)
class LoraCache:
    """Pages of the library's caches, each of which holds one adapter of the largest rank: nothing is lost to rows that
    do not fill a page. A slot is as wide as the narrowest module at rank 1."""

    num_module_layers: int  # in units of the widest module at rank 1
    rank: int
    device_bytes: int  # of one rank

    def config(self, module: str = EXECUTOR) -> Call:
        """PeftCacheConfig: the executor's, or the one of the same fields that LLM takes."""
        return Call(
            "PeftCacheConfig",
            {
                "num_host_module_layer": self.num_module_layers,
                "num_device_module_layer": self.num_module_layers,
                "optimal_adapter_size": self.rank,  # the size of a page
                "max_adapter_size": self.rank,
            },
            module,
        )


def lora_cache(config: Config, shapes: ModelShapes, parallelism: Parallelism) -> LoraCache | None:
    """The caches of a config with adapters. Raises ConfigError for ranks that the library cannot divide them over."""
    adapters = len(config.lora_adapters)
    if not adapters:
        return None
    rank = max_lora_rank(config)
    if parallelism.tensor > shapes.num_key_value_heads:
        raise ConfigError(
            f"lora_adapters over {parallelism.tensor} tensor-parallel ranks: the model has "
            f"{shapes.num_key_value_heads} key-value heads, and TensorRT-LLM divides an adapter over no more",
            _FIELD,
        )
    widths = [_width(module, shapes, parallelism) for module in lora_modules(config, shapes)]
    slot = min(widths)
    widest = -(-max(widths) // slot)
    page = parallelism.layers(shapes) * rank * sum(-(-width // slot) for width in widths)
    module_layers = -(-adapters * page // widest)
    pages = -(-module_layers * widest // page)
    return LoraCache(module_layers, rank, pages * page * slot * _SIXTEEN_BIT)


def _width(module: str, shapes: ModelShapes, parallelism: Parallelism) -> int:
    """Both factors' elements at rank 1, on one rank."""
    inputs, outputs = module_sizes(module, shapes)
    if module in _ROW_SPLIT:
        return inputs // parallelism.tensor + outputs
    if module in ("attn_k", "attn_v"):
        return inputs + parallelism.kv_heads(shapes) * shapes.head_dim
    return inputs + outputs // parallelism.tensor
