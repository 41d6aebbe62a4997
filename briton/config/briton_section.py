"""The `briton:` section: what the public schema has no words for. Strict, and unknown keys are errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from briton.config.enums import ExecutorName
from briton.config.section import refuse

_Port = Annotated[int, Field(ge=0, le=65_535)]  # 0: any free port
_Count = Annotated[int, Field(ge=1)]
_Host = Annotated[str, Field(min_length=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class LocalSection(_Strict):
    """The local executor."""

    threads: _Count | None = None
    """Threads of the model. Unset: all cores that affinity and CPU quota leave. Ranks of one host divide them."""
    precision: Literal["auto", "bf16", "f32"] = "auto"
    """`auto` is `bf16` where the CPU has it, else `f32`; `f32` asks for float32 everything."""
    kv_cache_dtype: Literal["bf16", "u8", "f32"] | None = None
    """Type of the KV cache. Unset: as `quantization_type` and `precision` say."""
    kv_cache_tokens: _Count | None = None
    """Size of the KV cache in tokens. Unset: from the memory that is free. One of the two sizes can be given."""
    kv_cache_memory_bytes: _Count | None = None
    """Size of the KV cache in bytes, instead of `kv_cache_tokens`."""
    target_inter_token_s: _Seconds | None = 0.08
    """Seconds between tokens that running streams are to keep while prompts are computed beside them: a step takes as
    many tokens of prompts as fit. `null`: steps are as large as pays."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.kv_cache_tokens is not None and self.kv_cache_memory_bytes is not None:
            raise refuse("give kv_cache_tokens or kv_cache_memory_bytes, not both", "kv_cache_memory_bytes")
        return self


class GuidedDecodingSection(_Strict):
    """Limits on the schemas, patterns and choices that requests bring."""

    max_schema_bytes: _Count = 262_144
    """Larger schemas are refused, in bytes of JSON."""
    max_depth: _Count = 32
    """Deeper schemas are refused."""
    compile_timeout_s: _Seconds = 5.0
    """A schema or pattern that takes longer to compile is refused."""
    compile_memory_bytes: _Count = 2 * 1024**3
    """A schema or pattern that takes more memory to compile is refused."""
    whitespace_pattern: str = r"[\x20\x0A]{1,4}"
    """Whitespace that is allowed between the tokens of JSON."""

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

    mpiexec: Annotated[str, Field(min_length=1)] | None = None
    """The mpiexec that starts ranks. Unset: the one beside this Python, else the one in the PATH."""
    hostfile: Annotated[Path, Field(strict=False)] | None = None
    """Hosts of the ranks, as mpiexec reads them; relative to the config. Unset: all ranks run here."""
    arguments: tuple[str, ...] = Field(default=(), strict=False)
    """Further arguments of mpiexec."""


class LoggingSection(_Strict):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Less than this is not logged."""
    format: Literal["text", "json"] = "text"
    """`json` is one object a line."""


class BritonSection(_Strict):
    """How this machine serves the model."""

    executor: Literal["auto", ExecutorName] = "auto"
    """`auto` is `trtllm` where the library and a GPU are, else `local`; the log and `briton config check` say which,
    and why."""
    host: _Host = "127.0.0.1"
    """Address that HTTP listens on. `--host` wins."""
    grpc_host: _Host = "127.0.0.1"
    """Address that gRPC listens on: whoever reaches it may use the engine, which knows no keys. `--grpc-host` wins."""
    http_port: _Port = 8000
    """The gateway's port; 0 takes a free one. `--port` wins."""
    grpc_port: _Port = 50051
    """The engine's port; 0 takes a free one. `--grpc-port` wins."""
    max_queue_size: _Count = 256
    """Requests that may wait; the next one gets 429."""
    max_priority: Annotated[int, Field(ge=0, le=2**31 - 1)] = 20
    """No request counts as more important than this, whatever it asks for."""
    priority_aging_s: _Seconds = 10.0
    """A request that waits so long counts as one step of priority more, up to the highest that anybody has."""
    max_connections: _Count = 4096
    """HTTP connections that may be open; what comes on others gets 503, but for `/live` and `/ready`."""
    max_body_bytes: _Count = 4 * 1024**2
    """Of a request over HTTP; a longer one gets 413."""
    keepalive_s: _Seconds = 15.0
    """A stream that has been silent for so long gets a comment, which clients ignore and proxies count as life."""
    request_timeout_s: _Seconds | None = 600.0
    """The server's own deadline of a request. `null`: none."""
    stall_timeout_s: _Seconds = 2.0
    """A step that takes 20 times what it should, and at least so long, makes the engine unhealthy; so does a cancel
    that is not confirmed in that time."""
    give_up_timeout_s: _Seconds = 5.0
    """An engine that has been unhealthy for so long ends its requests with an error, and is started again."""
    start_timeout_s: _Seconds | None = None
    """From the start of an engine until it serves. Unset: 600 for the local executor, 1800 for TensorRT-LLM."""
    drain_timeout_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """What running requests get after SIGTERM."""
    cache_dir: Annotated[Path, Field(strict=False)] | None = None
    """Where checkpoints and engines are kept, relative to the config. Unset: `BRITON_CACHE_DIR`, else
    `~/.cache/briton`."""
    local: LocalSection = Field(default_factory=LocalSection)
    """The local executor."""
    guided_decoding: GuidedDecodingSection = Field(default_factory=GuidedDecodingSection)
    """Limits of constrained decoding."""
    mpi: MpiSection = Field(default_factory=MpiSection)
    """How the ranks of a tensor-parallel engine are started."""
    logging: LoggingSection = Field(default_factory=LoggingSection)
    """What is logged, and how it looks."""

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.http_port == self.grpc_port != 0:
            raise refuse(f"grpc_port is {self.grpc_port}, which is http_port too", "grpc_port")
        return self
