"""The `briton:` section: what the public schema has no words for. Strict, and unknown keys are errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from briton.config.section import refuse

_Port = Annotated[int, Field(ge=0, le=65_535)]  # 0: any free port
_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LocalSection(_Strict):
    """The local executor."""

    threads: _Count | None = None  # None: all cores
    precision: Literal["auto", "bf16", "f32"] = "auto"  # auto: bf16 where the CPU has it; f32: float32 everything
    kv_cache_dtype: Literal["bf16", "u8", "f32"] | None = None  # None: as quantization_type and precision say
    kv_cache_tokens: _Count | None = None  # None: sized from memory
    kv_cache_memory_bytes: _Count | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.kv_cache_tokens is not None and self.kv_cache_memory_bytes is not None:
            raise refuse("give kv_cache_tokens or kv_cache_memory_bytes, not both", "kv_cache_memory_bytes")
        return self


class GuidedDecodingSection(_Strict):
    """Limits on the schemas, patterns and choices that requests bring."""

    max_schema_bytes: _Count = 262_144
    max_depth: _Count = 32
    compile_timeout_s: _Seconds = 5.0
    compile_memory_bytes: _Count = 2 * 1024**3
    whitespace_pattern: str = r"[\x20\x0A]{1,4}"  # between the tokens of JSON

    @field_validator("whitespace_pattern")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise refuse(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern


class MpiSection(_Strict):
    """How the ranks of a tensor-parallel engine are started."""

    mpiexec: Annotated[str, Field(min_length=1)] | None = None  # None: beside this Python, else of the PATH
    hostfile: Annotated[Path, Field(strict=False)] | None = None  # relative to the config; None: all ranks here
    arguments: tuple[str, ...] = Field(default=(), strict=False)  # further ones of mpiexec


class LoggingSection(_Strict):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class BritonSection(_Strict):
    """How this machine serves the model."""

    executor: Literal["auto", "trtllm", "local"] = "auto"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    http_port: _Port = 8000
    grpc_port: _Port = 50051
    max_queue_size: _Count = 256  # requests
    request_timeout_s: _Seconds | None = 600.0
    stall_timeout_s: _Seconds = 2.0  # a step of 20 times its expected seconds is a stall, and none shorter than this
    give_up_timeout_s: _Seconds = 5.0  # an engine that stalls for so long ends, and is started again
    drain_timeout_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    cache_dir: Annotated[Path, Field(strict=False)] | None = None  # None: the environment's
    local: LocalSection = Field(default_factory=LocalSection)
    guided_decoding: GuidedDecodingSection = Field(default_factory=GuidedDecodingSection)
    mpi: MpiSection = Field(default_factory=MpiSection)
    logging: LoggingSection = Field(default_factory=LoggingSection)

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.http_port == self.grpc_port != 0:
            raise refuse(f"grpc_port is {self.grpc_port}, which is http_port too", "grpc_port")
        return self
