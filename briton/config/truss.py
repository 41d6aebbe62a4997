"""A whole Truss config: the sections that bear on `trt_llm`, and the rules that span them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from briton.config.briton_section import BritonSection
from briton.config.enums import Accelerator, TrussTRTLLMModel
from briton.config.section import Section, refuse
from briton.config.trt_llm import TRTLLMConfiguration, TRTLLMConfigurationV1

OPENAI_TAG = "openai-compatible"
LEGACY_TAG = "force-legacy-api-non-openai-compatible"

# Compute capability below 8.9 has no fp8, below 10.0 no fp4.
_WITHOUT_FP8 = {Accelerator.A10G, Accelerator.A100, Accelerator.A100_40GB, Accelerator.T4, Accelerator.V100}
_WITHOUT_FP4 = _WITHOUT_FP8 | {
    Accelerator.H100,
    Accelerator.H100_40GB,
    Accelerator.H200,
    Accelerator.L4,
    Accelerator.L40S,
}
_TOO_OLD = {Accelerator.T4, Accelerator.V100}

# Top-level keys of a Truss config that say nothing about `trt_llm`: known, kept, without effect.
OTHER_TRUSS_KEYS = frozenset(
    {
        "apply_library_patches",
        "base_image",
        "bis_llm",
        "build",
        "build_commands",
        "bundled_packages_dir",
        "cache_internal",
        "data_dir",
        "description",
        "docker_server",
        "environment_variables",
        "examples_filename",
        "external_data",
        "external_package_dirs",
        "hf_cache",
        "input_type",
        "live_reload",
        "model_cache",
        "model_class_filename",
        "model_class_name",
        "model_framework",
        "model_module_dir",
        "model_type",
        "python_version",
        "requirements",
        "requirements_file",
        "runtime",
        "secrets",
        "spec_version",
        "system_packages",
        "training_checkpoints",
        "use_local_src",
        "weights",
    }
)


class Resources(Section):
    """`resources`: what the model asks of a machine. Only the accelerator has a meaning here."""

    accelerator: str | None = None
    """`NAME` or `NAME:count`. A name that TensorRT-LLM has no build for, or that cannot do `quantization_type`, is
    refused."""
    cpu: Any = None
    """Without effect here."""
    memory: Any = None
    """Without effect here."""
    use_gpu: Any = None
    """Without effect here."""
    node_count: Any = None
    """Without effect here."""
    fabric: Any = None
    """Without effect here."""
    instance_type: Any = None
    """Without effect here."""

    @field_validator("accelerator", mode="before")
    @classmethod
    def _from_mapping(cls, value: Any) -> Any:
        match value:
            case {"accelerator": str(name), "count": int(count), **rest} if not rest:
                return f"{name}:{count}"
        return value

    @field_validator("accelerator")
    @classmethod
    def _is_accelerator(cls, value: str | None) -> str | None:
        value = (value or "").strip()
        if not value:
            return None
        name, _, count = value.partition(":")
        if name not in {accelerator.value for accelerator in Accelerator}:
            names = ", ".join(accelerator.value for accelerator in Accelerator)
            raise refuse(f"unknown accelerator {name!r}: it must be one of {names}")
        if ":" in value and not (count.isascii() and count.isdigit() and int(count) >= 1):
            raise refuse(f"{value!r} must be NAME or NAME:count with a count of at least 1")
        return value

    @property
    def accelerator_name(self) -> Accelerator | None:
        """Which accelerator; None when the config names none."""
        return Accelerator(self.accelerator.partition(":")[0]) if self.accelerator else None

    @property
    def accelerator_count(self) -> int:
        """How many; 0 when the config names none."""
        return int(self.accelerator.partition(":")[2] or 1) if self.accelerator else 0


class TrussConfig(Section):
    """A config.yaml."""

    model_name: str | None = None
    """The deployment's name, and the model's in the API where `served_model_name` is unset."""
    model_metadata: dict[str, Any] = Field(default_factory=dict)
    """`tags` is looked at; the rest is kept."""
    resources: Resources = Field(default_factory=Resources)
    """What the model asks of a machine."""
    trt_llm: TRTLLMConfiguration
    """What is built and how it is served: v1 or v2, by `inference_stack`."""
    briton: BritonSection = Field(default_factory=BritonSection)
    """What the public schema has no words for."""

    @field_validator("model_metadata", "resources", "briton", mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return {} if value is None else value  # `briton:` with nothing below it

    @property
    def tags(self) -> list[str]:
        """`model_metadata.tags`, which may also be a single word."""
        tags = self.model_metadata.get("tags") or []
        return [tag for tag in (tags if isinstance(tags, list) else [tags]) if isinstance(tag, str)]

    @property
    def is_v1_decoder(self) -> bool:
        """Of the Briton family: the one that the tags are meant for."""
        return isinstance(self.trt_llm, TRTLLMConfigurationV1) and not self.trt_llm.build.is_encoder

    @model_validator(mode="after")
    def _check_tags(self) -> Self:
        if self.is_v1_decoder and OPENAI_TAG in self.tags and LEGACY_TAG in self.tags:
            raise refuse(f"tags hold both `{OPENAI_TAG}` and `{LEGACY_TAG}`: keep one", "model_metadata.tags")
        return self

    @model_validator(mode="after")
    def _check_accelerator(self) -> Self:
        accelerator, build = self.resources.accelerator_name, self.trt_llm.build
        if accelerator is None:
            return self
        if accelerator in _TOO_OLD and build.base_model is not TrussTRTLLMModel.ENCODER_BERT:
            raise refuse(f"TensorRT-LLM is not supported on {accelerator}", "resources.accelerator")
        quantization = build.quantization_type
        if quantization.is_fp8 and accelerator in _WITHOUT_FP8:
            raise refuse(
                f"{quantization} is not supported on {accelerator}: it needs L4, H100 or newer",
                "trt_llm.build.quantization_type",
            )
        if quantization.is_fp4 and accelerator in _WITHOUT_FP4:
            raise refuse(
                f"{quantization} is not supported on {accelerator}: it needs B200 or newer (compute capability 10.0)",
                "trt_llm.build.quantization_type",
            )
        return self

    @model_validator(mode="after")
    def _check_world_size(self) -> Self:
        count, build = self.resources.accelerator_count, self.trt_llm.build
        if isinstance(self.trt_llm, TRTLLMConfigurationV1) and count and build.world_size != count:
            raise refuse(
                "Tensor parallelism and GPU count must be the same for TRT-LLM: "
                f"the build has {build.world_size} ranks, resources.accelerator asks for {count}",
                "trt_llm.build.tensor_parallel_count",
            )
        return self
