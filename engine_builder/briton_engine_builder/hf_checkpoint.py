"""A directory with config.json and safetensors, as Hugging Face models come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from briton.errors import BuildError
from briton.model.generation_config import GENERATION_CONFIG
from briton.text.tokenizer import Tokenizer
from briton_engine_builder.hf_config import eos_token_ids, model_config
from briton_engine_builder.safetensors_reader import read_safetensors_directory
from briton_engine_builder.tensor import Tensor

CONFIG = "config.json"
QUANT_CONFIG = "hf_quant_config.json"  # of a checkpoint that NVIDIA's Model Optimizer has quantized
ADAPTER_CONFIG, ADAPTER_MODEL = "adapter_config.json", "adapter_model.safetensors"  # of a LoRA adapter
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    "chat_template.jinja",
    "chat_template.json",
)
_TOP_LEVEL = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
_IN_LAYER = {
    "input_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class HFCheckpoint:
    """An open checkpoint directory. Raises BuildError if it is damaged or incomplete, Unsupported for other models."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = read_json(path / CONFIG)
        self.model = model_config(path / CONFIG, config)
        self.generation_config = read_json(path / GENERATION_CONFIG) if (path / GENERATION_CONFIG).is_file() else None
        self.stop_token_ids = stop_token_ids(path, config, self.generation_config)
        self._tensors = read_safetensors_directory(path)

    def tensor(self, role: str) -> Tensor:
        """See Checkpoint."""
        name = _hf_name(role)
        try:
            return self._tensors[name]
        except KeyError:
            raise BuildError(f"{self.path}: tensor {name} is missing") from None

    def has(self, role: str) -> bool:
        """See Checkpoint."""
        return _hf_name(role) in self._tensors

    def write_tokenizer(self, directory: Path) -> None:
        """Copy the tokenizer's files."""
        copy_tokenizer(self.path, directory)


def copy_tokenizer(checkpoint: Path, directory: Path) -> None:
    """Copy tokenizer.json and what belongs to it from a checkpoint directory. Raises BuildError where there is none."""
    if not (checkpoint / TOKENIZER).is_file():
        raise BuildError(f"{checkpoint} has no {TOKENIZER}: only fast tokenizers are supported")
    for name in TOKENIZER_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, directory / name)


def stop_token_ids(checkpoint: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> tuple[int, ...]:
    """Tokens that end a generation: what both configs name, and the tokenizer's `eos_token`, as vLLM and SGLang do.

    Raises BuildError for what is not an id, and for a tokenizer that cannot be read.
    """
    found = set(eos_token_ids(checkpoint, config, generation))
    eos = _eos_token(checkpoint)
    if eos is not None and (checkpoint / TOKENIZER).is_file():
        token_id = Tokenizer.load(checkpoint).backend.token_to_id(eos)
        if token_id is not None and token_id < config.get("vocab_size", token_id + 1):  # no other can be generated
            found.add(token_id)
    return tuple(sorted(found))


def _eos_token(checkpoint: Path) -> str | None:
    """The tokenizer's end token, spelled as a string or as an added token."""
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP):
        eos = read_json(checkpoint / name).get("eos_token") if (checkpoint / name).is_file() else None
        if isinstance(eos, dict):
            eos = eos.get("content")
        if isinstance(eos, str):
            return eos
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BuildError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise BuildError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise BuildError(f"{path} must hold a JSON object")
    return value


def _hf_name(role: str) -> str:
    stem, suffix = (role.removesuffix(".bias"), "bias") if role.endswith(".bias") else (role, "weight")
    if stem in _TOP_LEVEL:
        return f"{_TOP_LEVEL[stem]}.{suffix}"
    _, layer, kind = stem.split(".")
    return f"model.layers.{layer}.{_IN_LAYER[kind]}.{suffix}"
