"""A .gguf file as a checkpoint: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import DTypeLike, NDArray

from briton.errors import BuildError, Unsupported
from briton.model.engine_dir import ModelConfig
from briton_engine_builder.gguf_tokenizer import write_tokenizer
from briton_engine_builder.tensor import Tensor

SUPPORTED_ARCHITECTURE = "llama"
_TOP_LEVEL = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_IN_LAYER = {
    "input_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "post_attention_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_SAMPLING = {  # general.sampling.* -> generation_config.json
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
# Tokens that end a turn, for files that name only the end of the text. llama.cpp looks for the same ones.
_END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>")
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type


class GGUFCheckpoint:
    """An open .gguf file of the llama architecture. Raises BuildError if damaged, Unsupported for other models."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = open_gguf(path)
        self._tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self.model = self._model_config()
        self.stop_token_ids = self._stop_token_ids()
        self.generation_config = self._generation_config()

    def tensor(self, role: str) -> Tensor:
        """See Checkpoint. Query and key rows are put back from llama.cpp's interleaved order."""
        name = _gguf_name(role)
        found = self._tensors.get(name)
        if found is None:
            raise BuildError(f"{self.path}: tensor {name} is missing")
        shape = tuple(int(n) for n in reversed(found.shape.tolist()))
        dtype = found.tensor_type.name
        data = found.data.view(np.uint16) if dtype == "BF16" else found.data
        tensor = Tensor(name, self.path, dtype, shape, data)
        heads = {"q": self.model.num_attention_heads, "k": self.model.num_key_value_heads}
        kind = role.removesuffix(".bias").rpartition(".")[2]
        if kind in heads and role.startswith("layers."):
            if shape[0] != heads[kind] * self.model.head_dim:
                return tensor  # of a wrong shape: whoever asked says so
            return tensor.reordered(rotate_half_rows(heads[kind], self.model.head_dim))
        return tensor

    def has(self, role: str) -> bool:
        """See Checkpoint."""
        return _gguf_name(role) in self._tensors

    def write_tokenizer(self, directory: Path) -> None:
        """Write tokenizer.json and the chat template from the file's own metadata."""
        write_tokenizer(self.reader, directory)

    def _model_config(self) -> ModelConfig:
        architecture = str(self._field("general.architecture"))
        if architecture != SUPPORTED_ARCHITECTURE:
            raise Unsupported(
                f"{self.path}: architecture {architecture} is not supported by the local executor; "
                f"of GGUF files it runs {SUPPORTED_ARCHITECTURE}"
            )
        if (parts := self._field("split.count", 0)) > 1:
            raise BuildError(
                f"{self.path} is one of {parts} parts of a split model: join them with llama-gguf-split --merge"
            )
        if self._field("llama.expert_count", 0):
            raise Unsupported(f"{self.path}: a mixture of experts is not supported by the local executor")
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise BuildError(f"{self.path}: tensor token_embd.weight is missing")
        hidden, heads = self._count("llama.embedding_length"), self._count("llama.attention.head_count")
        head_dim = self._count("llama.attention.key_length", hidden // heads)
        for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
            if self._count(key, head_dim) != head_dim:
                raise Unsupported(
                    f"{self.path}: {key} is {self._count(key)}, which must be the head size of {head_dim}"
                )
        return ModelConfig(
            architecture="llama",
            vocab_size=int(embedding.shape[-1]),
            hidden_size=hidden,
            intermediate_size=self._count("llama.feed_forward_length"),
            num_hidden_layers=self._count("llama.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._count("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position_embeddings=min(
                self._count("llama.context_length"), self._field("llama.attention.sliding_window", None) or sys.maxsize
            ),
            rms_norm_eps=self._real("llama.attention.layer_norm_rms_epsilon"),
            rope_theta=self._real("llama.rope.freq_base", 10000.0),
            rope_scaling=self._rope_scaling(head_dim),
            tie_word_embeddings="output.weight" not in self._tensors,
        )

    def _rope_scaling(self, head_dim: int) -> dict[str, Any] | None:
        kind = str(self._field("llama.rope.scaling.type", "none"))
        if kind not in ("none", "linear"):
            raise Unsupported(f"{self.path}: rope scaling {kind} is not supported; none, linear and llama3 factors are")
        factor = self._real("llama.rope.scaling.factor", 1.0) if kind == "linear" else 1.0
        freqs = self._tensors.get("rope_freqs.weight")
        if freqs is None:
            return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
        if freqs.n_elements != head_dim // 2:
            count = freqs.n_elements
            raise BuildError(
                f"{self.path}: tensor rope_freqs.weight has {count} values; heads of {head_dim} need {head_dim // 2}"
            )
        return {"rope_type": "factors", "factors": [float(f) * factor for f in freqs.data.ravel()]}

    def _stop_token_ids(self) -> tuple[int, ...]:
        ids = [self._field(f"tokenizer.ggml.{name}_token_id", None) for name in ("eos", "eot", "eom")]
        stops = {int(token_id) for token_id in ids if token_id is not None}
        tokens, types = self._field("tokenizer.ggml.tokens", []), self._field("tokenizer.ggml.token_type", [])
        for token_id, (text, kind) in enumerate(zip(tokens, types, strict=False)):
            if kind == _CONTROL_TOKEN and text in _END_OF_TURN:
                stops.add(token_id)
        return tuple(sorted(stops))

    def _generation_config(self) -> dict[str, Any] | None:
        found = {ours: self._field(f"general.sampling.{theirs}", None) for theirs, ours in _SAMPLING.items()}
        given = {name: _short(value) for name, value in found.items() if value is not None}
        return given or None

    def _field(self, key: str, *default: Any) -> Any:
        """A metadata value. Raises BuildError when there is neither it nor a default."""
        field = self.reader.get_field(key)
        if field is not None:
            return field.contents()
        if default:
            return default[0]
        raise BuildError(f"{self.path}: metadata {key} is missing")

    def _count(self, key: str, *default: int) -> int:
        value = self._field(key, *default)
        if isinstance(value, list):  # one value a layer
            if len(set(value)) != 1:
                raise Unsupported(f"{self.path}: {key} differs from layer to layer, which is not supported")
            value = value[0]
        if not isinstance(value, int) or value < 1:
            raise BuildError(f"{self.path}: metadata {key} must be a positive integer, not {value!r}")
        return value

    def _real(self, key: str, *default: float) -> float:
        value = self._field(key, *default)
        if not isinstance(value, (int, float)):
            raise BuildError(f"{self.path}: metadata {key} must be a number, not {value!r}")
        return float(_short(value))


def rotate_half_rows(heads: int, head_dim: int) -> NDArray[np.int64]:
    """Where the rows of the rotate-half order lie among llama.cpp's, which pairs dimension j with j + head_dim / 2.

    [heads * head_dim] of row numbers; the inverse of `permute` in convert_hf_to_gguf.py.
    """
    rows: NDArray[np.int64] = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).ravel()
    return rows


def open_gguf(path: Path) -> gguf.GGUFReader:
    """A reader whose tensors are all there. Raises BuildError for a file that is damaged or truncated."""
    try:
        return _CheckedReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, OSError, UnicodeDecodeError) as error:
        raise BuildError(
            f"{path} is damaged, truncated or not a GGUF file: {error} ({path.stat().st_size} bytes)"
        ) from None


class _CheckedReader(gguf.GGUFReader):  # type: ignore[misc]
    """Says what a truncated file lacks, where the base class fails in an index or a reshape."""

    def _get(self, offset: int, dtype: DTypeLike, count: int = 1, *args: Any, **kwargs: Any) -> NDArray[Any]:
        if offset + np.dtype(dtype).itemsize * int(count) > self.data.size:
            raise ValueError("it ends within its metadata")
        values: NDArray[Any] = super()._get(offset, dtype, count, *args, **kwargs)
        return values

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        for field in fields:
            _, name, _, dims, raw_dtype, offset = field.parts
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(raw_dtype[0])]
            end = start_offs + int(offset[0]) + int(np.prod(dims)) // block * size
            if end > self.data.size:
                raise ValueError(f"tensor {bytes(name).decode()} ends at byte {end}, beyond the end of the file")
        super()._build_tensors(start_offs, fields)


def _gguf_name(role: str) -> str:
    stem, suffix = (role.removesuffix(".bias"), "bias") if role.endswith(".bias") else (role, "weight")
    if stem in _TOP_LEVEL:
        return f"{_TOP_LEVEL[stem]}.{suffix}"
    _, layer, kind = stem.split(".")
    return f"blk.{layer}.{_IN_LAYER[kind]}.{suffix}"


def _short(value: float) -> float:
    """Metadata is float32: 1e-05 rather than 9.999999747378752e-06, which is the same float32."""
    return value if isinstance(value, int) else float(np.format_float_scientific(np.float32(value)))
