"""How a model is divided over ranks: tensor, pipeline and expert parallelism, and what each rank then holds."""

from __future__ import annotations

from dataclasses import dataclass

from briton.config.config import Config
from briton.errors import ConfigError
from briton.model.shapes import ModelShapes


@dataclass(frozen=True, slots=True)
class Parallelism:
    """Ranks: tensor x pipeline; of the tensor ranks, experts are divided over `expert`."""

    tensor: int = 1
    pipeline: int = 1
    expert: int | None = None  # None: experts are divided as every other matrix is

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.tensor * self.pipeline

    def kv_heads(self, shapes: ModelShapes) -> int:
        """Key-value heads of one rank; with fewer heads than ranks, some hold the same one."""
        return -(-shapes.num_key_value_heads // self.tensor)

    def layers(self, shapes: ModelShapes) -> int:
        """Layers of the rank that has most."""
        return -(-shapes.num_hidden_layers // self.pipeline)


def parallelism_of(config: Config, shapes: ModelShapes) -> Parallelism:
    """The config's. Raises ConfigError, with the numbers, for one that does not divide the model or has other GPUs."""
    build, tensor = config.trt_llm.build, config.tensor_parallel_size
    v2 = config.family == "BISV2"
    field = "trt_llm.runtime.tensor_parallel_size" if v2 else "trt_llm.build.tensor_parallel_count"
    if build.sequence_parallel_count > 1:
        raise ConfigError(
            f"trt_llm.build.sequence_parallel_count is {build.sequence_parallel_count}: TensorRT-LLM 1.2.1 has no "
            "sequence parallelism for decoders",
            "trt_llm.build.sequence_parallel_count",
        )
    for what, count in (("attention heads", shapes.num_attention_heads), ("MLP columns", shapes.intermediate_size)):
        if count % tensor:
            raise ConfigError(
                f"{field} is {tensor}, which does not divide the model's {count} {what}: "
                f"use one of {', '.join(map(str, _divisors(shapes)))}",
                field,
            )
    if shapes.num_key_value_heads % tensor and tensor % shapes.num_key_value_heads:
        raise ConfigError(
            f"{field} is {tensor}, which neither divides the model's {shapes.num_key_value_heads} key-value heads nor "
            "is a multiple of them",
            field,
        )
    if build.pipeline_parallel_count > shapes.num_hidden_layers:
        raise ConfigError(
            f"trt_llm.build.pipeline_parallel_count is {build.pipeline_parallel_count}; the model has "
            f"{shapes.num_hidden_layers} layers",
            "trt_llm.build.pipeline_parallel_count",
        )
    parallelism = Parallelism(tensor, build.pipeline_parallel_count, _expert_ranks(config, shapes))
    count = config.accelerator_count
    if count and count != parallelism.world_size:
        raise ConfigError(
            f"resources.accelerator asks for {count} GPUs ({config.accelerator}), and the config has "
            f"{parallelism.world_size} ranks: TensorRT-LLM runs one rank on each GPU",
            "resources.accelerator",
        )
    return parallelism


def _expert_ranks(config: Config, shapes: ModelShapes) -> int | None:
    option = config.trt_llm.build.moe_expert_parallel_option
    if option == -1 or not shapes.num_experts:
        return None
    if config.tensor_parallel_size % option or shapes.num_experts % option:
        raise ConfigError(
            f"trt_llm.build.moe_expert_parallel_option is {option}, which does not divide "
            f"{config.tensor_parallel_size} ranks and {shapes.num_experts} experts",
            "trt_llm.build.moe_expert_parallel_option",
        )
    return option


def _divisors(shapes: ModelShapes) -> list[int]:
    return [n for n in range(1, 17) if shapes.num_attention_heads % n == 0 and shapes.intermediate_size % n == 0]
