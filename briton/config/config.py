"""A loaded config: the parsed sections, and what follows from them, the same for v1 and v2."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from briton.config.briton_section import BritonSection
from briton.config.build import TrussSpeculatorConfiguration, TrussTRTLLMBuildConfiguration
from briton.config.checkpoint import CheckpointRepository
from briton.config.enums import (
    CheckpointSource,
    ExecutorName,
    TrussTRTLLMBatchSchedulerPolicy,
    TrussTRTLLMModel,
    TrussTRTLLMQuantizationType,
)
from briton.config.environment import Environment
from briton.config.runtime import TRTLLMRuntimeConfigurationV2, TrussTRTLLMRuntimeConfiguration
from briton.config.trt_llm import TRTLLMConfigurationV1, TRTLLMConfigurationV2
from briton.config.truss import Resources
from briton.errors import ConfigError

Family = Literal["Briton", "BISV2", "BEI", "BEI-Bert"]
_V2_KV_CACHE_FRACTION = 0.9
# TensorRT-LLM loads hundreds of GB, also from network storage.
START_TIMEOUT_S: Mapping[ExecutorName, float] = {"local": 600.0, "trtllm": 1800.0}


@dataclass(frozen=True)
class Config:
    """A config.yaml, read and checked. Nobody but this class asks whether it is v1 or v2."""

    trt_llm: TRTLLMConfigurationV1 | TRTLLMConfigurationV2
    briton: BritonSection
    path: Path
    model_name: str | None = None  # Truss's name of the deployment
    resources: Resources = field(default_factory=Resources)
    warnings: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """Which of the hosted servers the config is written for."""
        if isinstance(self.trt_llm, TRTLLMConfigurationV2):
            return "BISV2"
        match self.trt_llm.build.base_model:
            case TrussTRTLLMModel.ENCODER:
                return "BEI"
            case TrussTRTLLMModel.ENCODER_BERT:
                return "BEI-Bert"
            case _:
                return "Briton"

    @property
    def served_model_name(self) -> str:
        """What clients call the model: runtime.served_model_name, else model_name, else the repository's last part."""
        last_part = self.checkpoint.name if self.has_checkpoint else ""
        return self.trt_llm.runtime.served_model_name or self.model_name or last_part or self.path.stem

    @property
    def has_checkpoint(self) -> bool:
        """False only for a v2 config with skip_build_result."""
        return self.trt_llm.build.checkpoint_repository is not None

    @property
    def checkpoint(self) -> CheckpointRepository:
        """What to build from; the `repo` of a LOCAL one is an absolute path. Raises ConfigError where there is none."""
        repository = self.trt_llm.build.checkpoint_repository
        if repository is None:
            raise ConfigError(
                f"{self.path}: trt_llm.build.checkpoint_repository is missing: there is nothing to build from",
                "trt_llm.build.checkpoint_repository",
            )
        return self._located(repository)

    @property
    def lora_adapters(self) -> dict[str, CheckpointRepository]:
        """LoRA adapters by the name that requests know them by; located as `checkpoint` is."""
        adapters = self.trt_llm.build.lora_adapters or {}
        return {name: self._located(repository) for name, repository in adapters.items()}

    def cache_dir(self, environment: Environment) -> Path:
        """Where checkpoints and engines are kept."""
        return self.briton.cache_dir or environment.cache_dir

    @property
    def max_seq_len(self) -> int | None:
        """Prompt and output of one sequence, in tokens; None: what the checkpoint allows."""
        return self._limits.max_seq_len

    @property
    def max_batch_size(self) -> int:
        """Sequences in one step."""
        return self._limits.max_batch_size

    @property
    def max_num_tokens(self) -> int:
        """Tokens in one step."""
        return self._limits.max_num_tokens

    @property
    def tensor_parallel_size(self) -> int:
        """Ranks that share each layer."""
        if isinstance(self.trt_llm, TRTLLMConfigurationV2):
            return self.trt_llm.runtime.tensor_parallel_size
        return self.trt_llm.build.tensor_parallel_count

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.tensor_parallel_size if self.family == "BISV2" else self.trt_llm.build.world_size

    @property
    def mpi_hostfile(self) -> Path | None:
        """`briton.mpi.hostfile`, beside this file unless its path is absolute."""
        hostfile = self.briton.mpi.hostfile
        return None if hostfile is None else self.path.parent / hostfile

    @property
    def accelerator(self) -> str | None:
        """What `resources.accelerator` says, "H100:2"; None where it names no GPU."""
        return self.resources.accelerator

    @property
    def accelerator_name(self) -> str | None:
        """Which GPU `resources.accelerator` names; None when it names none."""
        name = self.resources.accelerator_name
        return None if name is None else name.value

    @property
    def accelerator_count(self) -> int:
        """How many of them; 0 when the config names none."""
        return self.resources.accelerator_count

    @property
    def quantization_type(self) -> TrussTRTLLMQuantizationType:
        """As the config says; `local_target` says what becomes of it."""
        return self.trt_llm.build.quantization_type

    @property
    def scheduler_policy(self) -> TrussTRTLLMBatchSchedulerPolicy:
        """Which requests are admitted when the KV cache is short: "guaranteed_no_evict" or "max_utilization"."""
        if isinstance(self.trt_llm, TRTLLMConfigurationV1):
            return self.trt_llm.runtime.batch_scheduler_policy
        return TrussTRTLLMBatchSchedulerPolicy.GUARANTEED_NO_EVICT

    @property
    def enable_chunked_context(self) -> bool:
        """Whether a prompt may be computed over several steps (v2 calls it chunked prefill)."""
        if isinstance(self.trt_llm, TRTLLMConfigurationV2):
            return self.trt_llm.runtime.enable_chunked_prefill
        return self.trt_llm.runtime.enable_chunked_context

    @property
    def default_max_tokens(self) -> int | None:
        """The output limit, in tokens, of a request that names none; None: up to max_seq_len."""
        return (
            self.trt_llm.runtime.request_default_max_tokens if isinstance(self.trt_llm, TRTLLMConfigurationV1) else None
        )

    @property
    def kv_cache_memory_fraction(self) -> float:
        """The share of free memory that the KV cache may take, in (0, 1]."""
        if isinstance(self.trt_llm, TRTLLMConfigurationV1):
            return self.trt_llm.runtime.kv_cache_free_gpu_mem_fraction
        return _V2_KV_CACHE_FRACTION

    @property
    def kv_cache_host_memory_bytes(self) -> int | None:
        """Host memory of each rank for KV blocks that have left the GPU; None: none."""
        runtime = self.trt_llm.runtime
        return runtime.kv_cache_host_memory_bytes if isinstance(runtime, TrussTRTLLMRuntimeConfiguration) else None

    @property
    def total_token_limit(self) -> int | None:
        """Prompt tokens in flight, for the discontinued external drafts; v2 has no such limit."""
        runtime = self.trt_llm.runtime
        return runtime.total_token_limit if isinstance(runtime, TrussTRTLLMRuntimeConfiguration) else None

    @property
    def speculator(self) -> TrussSpeculatorConfiguration | None:
        """Lookahead decoding, where the config asks for it; it may be so small that it drafts nothing."""
        return self.trt_llm.build.speculator

    @property
    def is_encoder(self) -> bool:
        """An embedding, reranking or classification model: it generates no text."""
        return self.trt_llm.build.is_encoder

    def start_timeout_s(self, executor: ExecutorName) -> float:
        """From the start of an engine, or of one of its ranks, until it serves, in seconds: the one limit of all who
        wait for it."""
        return self.briton.start_timeout_s or START_TIMEOUT_S[executor]

    def _located(self, repository: CheckpointRepository) -> CheckpointRepository:
        if repository.source is not CheckpointSource.LOCAL:
            return repository
        file = self.path.parent / os.path.expanduser(repository.repo)
        return repository.model_copy(update={"repo": os.path.abspath(file)})

    @property
    def _limits(self) -> TrussTRTLLMBuildConfiguration | TRTLLMRuntimeConfigurationV2:
        return self.trt_llm.build if isinstance(self.trt_llm, TRTLLMConfigurationV1) else self.trt_llm.runtime
