"""An engine directory: what the builder writes and an executor reads.

    engine.json             the manifest below
    rank0.safetensors ...   weights, one file a rank, already quantized and fused as the graph wants them
                            (`briton.model.sharding` says which part of each matrix a rank has)
    tokenizer.json          and tokenizer_config.json, chat_template.jinja, generation_config.json where the
                            checkpoint has them

Weight names: `embed_tokens`, `norm`, `lm_head` (absent when tied), and for each layer i `layers.{i}.input_norm`,
`.qkv`, `.o`, `.post_attention_norm`, `.gate_up`, `.down`. `qkv` is [query; key; value] and `gate_up` is [gate; up],
stacked by output row. Norms are F32 [hidden]. A matrix X is [out, in], stored as its dtype says:

    F32, BF16   X
    int8        X I8 [out, in], `X.scale` F16 [out, groups]; groups = 1 is one scale a row, else in / groups weights
                share one
    int4        X U8 [out, in / 2], two 4-bit values a byte, low nibble first; `X.scale` F16 [out, groups];
                `X.zero` [out, groups], U8 (one zero point of 0..15 a byte) or F16 (a fractional zero point, as
                GGUF's Q4_1 has)

so that weight = (q - zero) * scale. A bias is `X.bias`, F32 [out]. Products that are summed over ranks (`o`, `down`)
have theirs on rank 0 alone.

An engine of target "trtllm" has TensorRT-LLM's own files instead of weights: config.json, and rank0.engine and so on;
and for each LoRA adapter lora/NAME/model.lora_weights.npy and model.lora_config.npy (`briton.trtllm.lora`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from briton.config.lookahead import LookaheadConfig
from briton.errors import BuildError
from briton.model.shapes import ModelShapes
from briton.model.sharding import Shard, Span

MANIFEST = "engine.json"
FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the local executor, in the vocabulary of a Hugging Face config.json."""

    architecture: str  # "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None = None  # see briton.local.models.rope
    tie_word_embeddings: bool = False


@dataclass(frozen=True, slots=True)
class TrtllmBuild:
    """What a TensorRT-LLM engine was built for: it runs nowhere else. Limits in tokens and sequences."""

    library_version: str  # of tensorrt-llm
    gpu_architecture: str  # "sm_90"
    vocab_size_padded: int  # width of its logits
    max_seq_len: int  # prompt and output; the engine has room for max_draft_len more
    max_batch_size: int
    max_num_tokens: int
    max_draft_len: int = 0  # drafts in one step
    lookahead: LookaheadConfig | None = None  # None: built without
    paged_context_fmha: bool = True  # what chunked context needs
    pipeline_parallel_size: int = 1
    lora_adapters: tuple[str, ...] = ()  # names, each of which has a directory in lora/
    job: dict[str, Any] = field(default_factory=dict)  # all that the library's builder was told, in its own names


def rank_file(rank: int) -> str:
    """The name of a rank's weights."""
    return f"rank{rank}.safetensors"


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """The content of engine.json."""

    model_name: str
    model: ModelConfig | ModelShapes  # ModelShapes of target "trtllm": what its plan is made from
    quantization_type: str  # as the config says
    weights_dtype: str  # what is stored: "bf16", "f32", "int8", "int4", "int4/int8" (MLP/elsewhere)
    kv_cache_dtype: str  # "bf16", "u8", "f32"
    tokenizer_hash: str  # sha256 of tokenizer.json, hex
    stop_token_ids: tuple[int, ...]
    builder_version: str
    source: dict[str, str]  # checkpoint source, repo, revision
    target: str = "local"  # or "trtllm"
    trtllm: TrtllmBuild | None = None  # of target "trtllm"
    tensor_parallel_size: int = 1
    shards: tuple[Shard, ...] = ()  # one a rank, of target "local"
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> {"size": bytes, "sha256": hex}
    format_version: int = FORMAT_VERSION

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.tensor_parallel_size * (self.trtllm.pipeline_parallel_size if self.trtllm else 1)

    @property
    def local_model(self) -> ModelConfig:
        """The model of the local executor. Raises BuildError for an engine of another."""
        if not isinstance(self.model, ModelConfig):
            raise BuildError(f"the engine was built for target {self.target}; the local executor needs target local")
        return self.model

    def rank_file(self, rank: int) -> str:
        """The name of a rank's weights, or of its engine."""
        return f"rank{rank}.engine" if self.target == "trtllm" else rank_file(rank)

    def save(self, directory: Path) -> None:
        """Write engine.json."""
        (directory / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def load_manifest(directory: Path, rank: int | None = None) -> EngineManifest:
    """Read engine.json and check that every file it names is there with its size. Raises BuildError.

    With a `rank`, the weights of other ranks may be missing: they may be on other hosts.
    """
    path = directory / MANIFEST
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(f"{directory} is not an engine directory: it has no {MANIFEST}") from None
    except ValueError as error:
        raise BuildError(f"{path} is not JSON: {error}") from None
    if raw.get("format_version") != FORMAT_VERSION:
        raise BuildError(
            f"{path} has format version {raw.get('format_version')}; this briton reads {FORMAT_VERSION}: build it again"
        )
    try:
        raw["model"] = (ModelShapes if raw.get("target") == "trtllm" else ModelConfig)(**raw["model"])
        raw["stop_token_ids"] = tuple(raw["stop_token_ids"])
        raw["shards"] = tuple(Shard(**{key: Span(*span) for key, span in shard.items()}) for shard in raw["shards"])
        raw["trtllm"] = _trtllm_build(raw.get("trtllm"))
        manifest = EngineManifest(**raw)
    except (AttributeError, KeyError, TypeError) as error:
        raise BuildError(f"{path} does not have the fields of an engine manifest: {error}") from None
    others = set() if rank is None else {manifest.rank_file(r) for r in range(manifest.world_size) if r != rank}
    for name, entry in manifest.files.items():
        if name in others:
            continue
        file = directory / name
        if not file.is_file() or file.stat().st_size != entry["size"]:
            raise BuildError(f"{file} is missing or truncated: build the engine again")
    return manifest


def _trtllm_build(raw: dict[str, Any] | None) -> TrtllmBuild | None:
    if raw is None:
        return None
    sizes, adapters = raw.get("lookahead"), tuple(raw.get("lora_adapters", ()))
    lookahead = None if sizes is None else LookaheadConfig(**sizes)
    return TrtllmBuild(**{**raw, "lookahead": lookahead, "lora_adapters": adapters})
