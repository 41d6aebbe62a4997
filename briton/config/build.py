"""`trt_llm.build`: what is built from a checkpoint, with the refusals of the public schema."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from briton.config.checkpoint import CheckpointRepository
from briton.config.enums import TrussSpecDecMode, TrussTRTLLMModel, TrussTRTLLMQuantizationType
from briton.config.lookahead import LookaheadConfig
from briton.config.runtime import Count, MaxBatchSize, MaxSeqLen, TrussTRTLLMRuntimeConfiguration
from briton.config.section import Section, refuse

MAX_DRAFT_TOKENS = 2048

_AdapterName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_\-\.:]+$")]
_CalibrationLength = Annotated[int, Field(ge=64, le=16_384, multiple_of=64)]
_RENAMED = {
    TrussTRTLLMModel.PALMYRA,
    TrussTRTLLMModel.QWEN,
    TrussTRTLLMModel.LLAMA,
    TrussTRTLLMModel.MISTRAL,
    TrussTRTLLMModel.DEEPSEEK,
}


class TrussTRTLLMPluginConfiguration(Section):
    """TensorRT-LLM's attention plugins."""

    paged_kv_cache: bool = True
    """The KV cache is made of blocks."""
    use_paged_context_fmha: bool = True
    """Prompts are computed over the paged cache: needed for chunks, and for reuse of cached blocks."""
    use_fp8_context_fmha: bool = False
    """Enabled by the builder where it helps: read, without effect."""


class TrussTRTQuantizationConfiguration(Section):
    """Calibration data, for the quantization types that need it."""

    calib_size: _CalibrationLength = 1024
    """Samples of calibration data."""
    calib_dataset: str = "abisee/cnn_dailymail"
    """Calibration data on the Hugging Face Hub."""
    calib_max_seq_length: _CalibrationLength = 1536
    """Tokens of a sample."""


class TrussTRTLLMLoraConfiguration(Section):
    """Limits of LoRA adapters."""

    max_lora_rank: int = 64
    """Adapters of a higher rank are refused."""
    lora_target_modules: list[str] = Field(default_factory=list)
    """Modules that adapters may change. Empty: those of the adapters themselves."""


class TrussSpeculatorConfiguration(Section):
    """Speculative decoding. Lookahead (Fu et al. 2024) is what is left of it: external drafts are discontinued.

    `enable_b10_lookahead: false` is window mode: a window of W columns guesses n-grams of N tokens, and up to G of
    those are verified in a step. `true` is dynamic n-gram mode: drafts are what followed the longest earlier occurrence
    of the text's end, up to num_draft_tokens a sequence and no more than pays, beside the window where the sizes make
    one (W > 1 and N > 1). So (8, 1, 1) with num_draft_tokens 8, and (1, 32, 1), are for dynamic mode: by themselves
    they draft nothing.
    """

    speculative_decoding_mode: TrussSpecDecMode = TrussSpecDecMode.DRAFT_EXTERNAL
    """Must be `LOOKAHEAD_DECODING`: the default of the public schema is discontinued, and refused."""
    num_draft_tokens: Count | None = None
    """Draft tokens of one sequence in one step. Unset: what the three sizes need. At most 2048."""
    checkpoint_repository: CheckpointRepository | None = None
    """Of the discontinued draft models: read, without effect."""
    runtime: TrussTRTLLMRuntimeConfiguration = Field(default_factory=TrussTRTLLMRuntimeConfiguration)
    """Of the discontinued draft models: read, without effect."""
    build: TrussTRTLLMBuildConfiguration | None = None
    """Of the discontinued draft models: read, without effect."""
    lookahead_windows_size: Count | None = None
    """W, columns of the lookahead window. Required."""
    lookahead_ngram_size: Count | None = None
    """N, tokens of an n-gram. Required."""
    lookahead_verification_set_size: Count | None = None
    """G, n-grams that are verified in one step. Required."""
    enable_b10_lookahead: bool | None = False
    """Dynamic n-grams: drafts are what followed the longest earlier occurrence of the text's end."""

    @property
    def lookahead(self) -> LookaheadConfig:
        """W, N and G."""
        return LookaheadConfig(
            self.lookahead_windows_size or 0, self.lookahead_ngram_size or 0, self.lookahead_verification_set_size or 0
        )

    @property
    def drafts(self) -> bool:
        """Whether anything is drafted at all."""
        return bool(self.enable_b10_lookahead) or self.lookahead.has_window

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        if self.speculative_decoding_mode is TrussSpecDecMode.DRAFT_EXTERNAL:
            raise refuse(
                "DRAFT_TOKENS_EXTERNAL is discontinued: use LOOKAHEAD_DECODING, or leave the speculator out",
                "speculative_decoding_mode",
            )
        for name in ("lookahead_windows_size", "lookahead_ngram_size", "lookahead_verification_set_size"):
            if getattr(self, name) is None:
                raise refuse(f"LOOKAHEAD_DECODING requires {name}", name)
        required = self.lookahead.draft_tokens
        given = self.num_draft_tokens
        if given is None and required < 1:
            raise refuse("lookahead of n-gram size 1 drafts no tokens: give num_draft_tokens", "num_draft_tokens")
        tokens = required if given is None else given
        if tokens < required:
            raise refuse(f"num_draft_tokens is {tokens}; the lookahead sizes need {required}", "num_draft_tokens")
        if tokens > MAX_DRAFT_TOKENS:
            raise refuse(f"{tokens} draft tokens are more than the limit of {MAX_DRAFT_TOKENS}", "num_draft_tokens")
        object.__setattr__(self, "num_draft_tokens", tokens)  # still being made, so not yet frozen
        return self


class TrussTRTLLMBuildConfiguration(Section):
    """An engine's model, limits, quantization and parallelism."""

    base_model: TrussTRTLLMModel = TrussTRTLLMModel.DECODER
    """`decoder` generates text. Encoders are not served; the other names were renamed or withdrawn, and are refused."""
    max_seq_len: MaxSeqLen | None = None
    """Tokens of prompt and answer together. Unset: the checkpoint's own."""
    max_batch_size: MaxBatchSize = 256
    """Sequences in one step."""
    max_num_tokens: Annotated[int, Field(strict=True, gt=64, le=1_048_576)] = 8192
    """Tokens in one step: longer prompts are computed in chunks. The local executor takes at most 512 a step."""
    max_beam_width: Annotated[int, Field(strict=True, ge=1, le=1)] = 1
    """Beam search is not part of the schema."""
    max_prompt_embedding_table_size: int = 0
    """TensorRT-LLM: size of a prompt embedding table."""
    checkpoint_repository: CheckpointRepository | None = None
    """Which weights, from where. Required."""
    gather_all_token_logits: bool = False
    """TensorRT-LLM: needed for log probabilities."""
    strongly_typed: bool = False
    """TensorRT-LLM's networks are always strongly typed: read, without effect."""
    quantization_type: TrussTRTLLMQuantizationType = TrussTRTLLMQuantizationType.NO_QUANT
    """How weights and KV cache are quantized. The local executor has substitutes for what a CPU lacks."""
    quantization_config: TrussTRTQuantizationConfiguration = Field(default_factory=TrussTRTQuantizationConfiguration)
    """Calibration data, for the quantization types that need it."""
    tensor_parallel_count: Count = 1
    """Ranks that compute each layer together."""
    # The public schema leaves these two open; a product of ranks below one can run nowhere.
    pipeline_parallel_count: Annotated[int, Field(ge=1)] = 1
    """Groups of layers, each on ranks of its own. TensorRT-LLM only."""
    moe_expert_parallel_option: int = -1
    """Ranks that experts are divided among; -1 is the library's choice."""
    sequence_parallel_count: Annotated[int, Field(ge=1)] = 1
    """Ranks that divide a sequence: more than one is refused, since neither executor has them."""
    plugin_configuration: TrussTRTLLMPluginConfiguration = Field(default_factory=TrussTRTLLMPluginConfiguration)
    """TensorRT-LLM's attention plugins."""
    num_builder_gpus: Count | None = None
    """TensorRT-LLM: GPUs that build. Unset: one for each rank."""
    speculator: TrussSpeculatorConfiguration | None = None
    """Speculative decoding. Unset: none."""
    lora_adapters: dict[_AdapterName, CheckpointRepository] | None = None
    """LoRA adapters by name: TensorRT-LLM only."""
    lora_configuration: TrussTRTLLMLoraConfiguration | None = None
    """Limits of LoRA adapters."""
    skip_build_result: bool = False
    """Of the hosted product: a v2 config may then have no checkpoint, and cannot be served here."""

    @property
    def is_encoder(self) -> bool:
        """An embedding, reranking or classification model."""
        return self.base_model in (TrussTRTLLMModel.ENCODER, TrussTRTLLMModel.ENCODER_BERT)

    @property
    def world_size(self) -> int:
        """Ranks: tensor x pipeline x sequence parallelism."""
        return self.tensor_parallel_count * self.pipeline_parallel_count * self.sequence_parallel_count

    @property
    def is_paged(self) -> bool:
        """KV blocks can be reused, and a context computed in chunks."""
        plugins = self.plugin_configuration
        return plugins.paged_kv_cache and plugins.use_paged_context_fmha

    @model_validator(mode="after")
    def _check_base_model(self) -> Self:
        if self.base_model in _RENAMED:
            raise refuse(f"base_model `{self.base_model}` was renamed to `decoder`", "base_model")
        if self.base_model is TrussTRTLLMModel.WHISPER:
            raise refuse("base_model `whisper` is not supported by trt_llm any more", "base_model")
        if self.base_model is TrussTRTLLMModel.ENCODER:  # no KV cache at all
            plugins = self.plugin_configuration.model_copy(
                update={"paged_kv_cache": False, "use_paged_context_fmha": False}
            )
            object.__setattr__(self, "plugin_configuration", plugins)  # still being made, so not yet frozen
        return self

    @model_validator(mode="after")
    def _check_plugins(self) -> Self:
        plugins = self.plugin_configuration
        if plugins.use_paged_context_fmha and not plugins.paged_kv_cache:
            raise refuse(
                "use_paged_context_fmha requires paged_kv_cache", "plugin_configuration.use_paged_context_fmha"
            )
        if self.speculator is not None and not self.is_paged:
            raise refuse(
                "speculative decoding requires KV cache block reuse: paged_kv_cache and use_paged_context_fmha",
                "speculator",
            )
        return self

    @model_validator(mode="after")
    def _check_expert_parallelism(self) -> Self:
        experts = self.moe_expert_parallel_option
        if (
            self.base_model is TrussTRTLLMModel.DECODER
            and experts != -1
            and not 1 <= experts <= self.tensor_parallel_count
        ):
            raise refuse(
                f"moe_expert_parallel_option must be -1 or between 1 and tensor_parallel_count "
                f"({self.tensor_parallel_count}), not {experts}",
                "moe_expert_parallel_option",
            )
        return self


TrussSpeculatorConfiguration.model_rebuild()
