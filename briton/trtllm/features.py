"""What of a config an engine of TensorRT-LLM 1.2.1 can do together, by the rules of the library's builder.

A combination that the builder would silently weaken is resolved here, with a note; one that it would refuse after hours
is refused now.
"""

from __future__ import annotations

from dataclasses import dataclass

from briton.config.config import Config
from briton.config.lookahead import LookaheadConfig
from briton.errors import ConfigError
from briton.model.shapes import ModelShapes
from briton.trtllm.gpus import Gpu
from briton.trtllm.patches import Patches
from briton.trtllm.quantization import QuantizationPlan


@dataclass(frozen=True, slots=True)
class Features:
    """Limits and switches of an engine and of the executor that runs it."""

    max_seq_len: int  # prompt and output, in tokens
    max_batch_size: int
    max_num_tokens: int  # in one step
    use_paged_context_fmha: bool  # a context can be computed in chunks, and cached blocks reused
    use_fp8_context_fmha: bool
    enable_chunked_context: bool
    enable_block_reuse: bool
    lookahead: LookaheadConfig | None = None
    notes: tuple[str, ...] = ()

    @property
    def max_draft_len(self) -> int:
        """Draft tokens of one sequence in one step: exactly what the sizes need, in the build and at run time."""
        return self.lookahead.draft_tokens if self.lookahead is not None else 0

    @property
    def sequence_tokens(self) -> int:
        """KV cache of a full-length request, in tokens: the builder adds the drafts to max_seq_len."""
        return self.max_seq_len + self.max_draft_len


def features_of(
    config: Config, shapes: ModelShapes, quantization: QuantizationPlan, patches: Patches, gpu: Gpu | None
) -> Features:
    """Resolve a decoder config. Raises ConfigError, naming the field, for what cannot be built or run."""
    build, notes = config.trt_llm.build, list[str]()
    max_seq_len = config.max_seq_len or shapes.max_position_embeddings
    if max_seq_len > shapes.max_position_embeddings:
        notes.append(
            f"max_seq_len {max_seq_len} is more than the model's {shapes.max_position_embeddings} positions: "
            "answers may suffer beyond them, unless its rope scaling makes up for it"
        )
    if not build.plugin_configuration.paged_kv_cache:
        raise ConfigError(
            "trt_llm.build.plugin_configuration.paged_kv_cache is false: in-flight batching needs a paged KV cache",
            "trt_llm.build.plugin_configuration.paged_kv_cache",
        )
    lookahead = _lookahead(config, quantization, patches, gpu, notes)
    paged = build.plugin_configuration.use_paged_context_fmha and _may_be_paged(quantization)
    if build.plugin_configuration.use_paged_context_fmha and not paged:
        if lookahead is not None:
            raise ConfigError(
                f"trt_llm.build.speculator needs paged context attention, which TensorRT-LLM does not have with an "
                f"{quantization.kv_cache_quant_algo} KV cache ({quantization.quantization_type})",
                "trt_llm.build.speculator",
            )
        notes.append(
            f"no chunked context and no reuse of cached blocks: TensorRT-LLM has no paged context attention with "
            f"{quantization.quant_algo or '16-bit'} weights and an {quantization.kv_cache_quant_algo} KV cache"
        )
    chunked = config.enable_chunked_context and paged
    max_num_tokens = _max_num_tokens(config, lookahead, max_seq_len, notes)
    if not chunked and max_num_tokens < max_seq_len:
        notes.append(
            f"without chunked context a prompt has at most max_num_tokens ({max_num_tokens}) tokens, "
            f"though max_seq_len is {max_seq_len}"
        )
    reuse = bool(patches.kv_cache.get("enable_block_reuse", True))
    return Features(
        max_seq_len=max_seq_len,
        max_batch_size=config.max_batch_size,
        max_num_tokens=max_num_tokens,
        use_paged_context_fmha=paged,
        use_fp8_context_fmha=paged
        and quantization.quant_algo in ("FP8", "NVFP4")
        and quantization.kv_cache_quant_algo == "FP8",
        enable_chunked_context=chunked,
        enable_block_reuse=reuse and paged,
        lookahead=lookahead,
        notes=tuple(notes),
    )


def _may_be_paged(quantization: QuantizationPlan) -> bool:
    """Paged context attention reads no INT8 cache, and an FP8 one only in FP8: with FP8 or NVFP4 weights."""
    match quantization.kv_cache_quant_algo:
        case None:
            return True
        case "FP8":
            return quantization.quant_algo in ("FP8", "NVFP4")
    return False


def _max_num_tokens(config: Config, lookahead: LookaheadConfig | None, max_seq_len: int, notes: list[str]) -> int:
    """The config's, as the library's builder corrects it: no more than a full batch of full-length sequences, no less
    than a full batch with its drafts."""
    most = config.max_batch_size * max_seq_len
    least = config.max_batch_size * (lookahead.draft_tokens + 1) if lookahead else 0
    tokens = max(min(config.max_num_tokens, most), least)
    if tokens != config.max_num_tokens:
        bound = f"at least {least}" if tokens == least else f"at most {most}"
        notes.append(
            f"max_num_tokens is {tokens}, not {config.max_num_tokens}: a step of {config.max_batch_size} sequences "
            f"takes {bound}"
        )
    return tokens


def _lookahead(
    config: Config, quantization: QuantizationPlan, patches: Patches, gpu: Gpu | None, notes: list[str]
) -> LookaheadConfig | None:
    """The window mode of the library. Dynamic n-grams, `enable_b10_lookahead`, are not in its public release."""
    speculator = config.speculator
    sizes = speculator.lookahead if speculator is not None else patches.lookahead
    if sizes is None:
        return None
    w, n, g = sizes.window_size, sizes.ngram_size, sizes.verification_set_size
    if speculator is not None and speculator.enable_b10_lookahead:
        notes.append("enable_b10_lookahead: dynamic n-grams are not in the public TensorRT-LLM 1.2.1: the sizes hold")
    if n <= 1 or w < 1 or g < 0:
        notes.append(f"no lookahead: TensorRT-LLM drafts nothing with sizes ({w}, {n}, {g}), which make no n-grams")
        return None
    if gpu is not None and not gpu.has_lookahead:
        raise ConfigError(
            f"trt_llm.build.speculator: lookahead needs compute capability 8.0; {gpu.name} has {gpu.capability}",
            "trt_llm.build.speculator",
        )
    if quantization.quant_algo not in (None, "FP8"):
        notes.append(f"lookahead is documented for 16-bit and FP8 weights, not for {quantization.quant_algo}")
    if speculator is not None and (speculator.num_draft_tokens or 0) > sizes.draft_tokens:
        notes.append(
            f"num_draft_tokens {speculator.num_draft_tokens} is more than ({w}, {n}, {g}) needs: the engine is built "
            f"with {sizes.draft_tokens}, since build and executor have to agree"
        )
    notes.append(
        "with lookahead TensorRT-LLM decodes greedily: requests with a temperature, penalties, bad_words or logprobs "
        "are refused, those with a guide or min_tokens run without it"
    )
    return sizes
