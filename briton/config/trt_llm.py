"""The `trt_llm` section: v1 and v2, told apart by `inference_stack` (absent: v1)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from typing_extensions import Self

from briton.config.build import TrussTRTLLMBuildConfiguration
from briton.config.enums import InferenceStack, TrussTRTLLMModel
from briton.config.runtime import TRTLLMRuntimeConfigurationV2, TrussTRTLLMRuntimeConfiguration
from briton.config.section import Section, refuse

V2_BUILD_FIELDS = frozenset(
    {"checkpoint_repository", "quantization_type", "quantization_config", "skip_build_result", "num_builder_gpus"}
)


class VersionsOverrides(Section):
    """Pinned versions of the hosted builders and servers: read, without effect here."""

    engine_builder_version: str | None = None
    """Read, without effect here."""
    briton_version: str | None = None
    """Read, without effect here."""
    bei_version: str | None = None
    """Read, without effect here."""
    bei_bert_version: str | None = None
    """Read, without effect here."""
    v2_llm_version: str | None = None
    """Read, without effect here."""

    @field_validator("engine_builder_version", "briton_version", "bei_version", "bei_bert_version")
    @classmethod
    def _starts_with_digit(cls, version: str | None) -> str | None:
        if version is not None and not version[:1].isdigit():
            raise refuse(f"a version must start with a digit, not {version!r}")
        return version


class TRTLLMConfigurationV1(Section):
    """Engine builds: limits are fixed in `build`."""

    inference_stack: Literal[InferenceStack.v1] = InferenceStack.v1
    """Absent: v1."""
    build: TrussTRTLLMBuildConfiguration
    """What is built."""
    runtime: TrussTRTLLMRuntimeConfiguration = Field(default_factory=TrussTRTLLMRuntimeConfiguration)
    """How it is served."""
    version_overrides: VersionsOverrides = Field(default_factory=VersionsOverrides)
    """Pinned versions of the hosted builders and servers."""

    @model_validator(mode="after")
    def _check_build(self) -> Self:
        if self.build.checkpoint_repository is None:
            raise refuse("a checkpoint_repository is required", "build.checkpoint_repository")
        is_decoder = self.build.base_model is TrussTRTLLMModel.DECODER
        if is_decoder and self.runtime.enable_chunked_context and not self.build.is_paged:
            raise refuse(
                "enable_chunked_context requires paged_kv_cache and use_paged_context_fmha",
                "runtime.enable_chunked_context",
            )
        return self


class TRTLLMConfigurationV2(Section):
    """The v2 stack: limits are set in `runtime`, and `build` holds no more than the checkpoint and its quantization."""

    inference_stack: Literal[InferenceStack.v2] = InferenceStack.v2
    """`v2`."""
    build: TrussTRTLLMBuildConfiguration
    """The checkpoint and its quantization; no other field of `build` may be set in v2."""
    runtime: TRTLLMRuntimeConfigurationV2
    """Limits, parallelism, and how it is served."""
    version_overrides: VersionsOverrides = Field(default_factory=VersionsOverrides)
    """Pinned versions of the hosted builders and servers."""

    @model_validator(mode="after")
    def _check_build(self) -> Self:
        default = TrussTRTLLMBuildConfiguration()
        for name in TrussTRTLLMBuildConfiguration.model_fields:
            if name not in V2_BUILD_FIELDS and getattr(self.build, name) != getattr(default, name):
                raise refuse(
                    f"Field trt_llm.build.{name} is not allowed to be set when using v2 inference stack",
                    f"build.{name}",
                )
        if self.build.checkpoint_repository is None and not self.build.skip_build_result:
            raise refuse("a checkpoint_repository is required", "build.checkpoint_repository")
        return self


def _stack(section: Any) -> str | None:
    if isinstance(section, dict):
        stack = section.get("inference_stack", "v1")
        return stack if isinstance(stack, str) else None
    return getattr(section, "inference_stack", "v1")


TRTLLMConfiguration = Annotated[
    Annotated[TRTLLMConfigurationV1, Tag("v1")] | Annotated[TRTLLMConfigurationV2, Tag("v2")],
    Discriminator(
        _stack,
        custom_error_type="refused",
        custom_error_message="inference_stack must be `v1` or `v2`",
        custom_error_context={"field": "inference_stack"},
    ),
]
