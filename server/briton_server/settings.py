"""What the gateway is told once, at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from briton.config.config import Config


@dataclass(frozen=True, slots=True)
class Settings:
    """Frozen; made from a config by `from_config`, or by hand in tests."""

    model_name: str
    tokenizer_dir: Path
    engine_address: str  # HOST:PORT of the engine's gRPC service
    default_max_tokens: int | None = None  # where a request names none; None: chat up to the context, completions 16
    request_timeout_s: float | None = 600.0  # the server's own deadline for a request
    drain_timeout_s: float = 30.0  # how long open requests may run on after SIGTERM
    max_connections: int = 4096  # beyond them 503, but for /live and /ready
    max_body_bytes: int = 4 * 1024 * 1024
    max_schema_bytes: int = 256 * 1024
    keepalive_s: float = 15.0  # a silent stream gets an SSE comment this often

    @classmethod
    def from_config(cls, config: Config, *, tokenizer_dir: Path, engine_address: str) -> Settings:
        """The part of a config that concerns the gateway."""
        briton = config.briton
        return cls(
            model_name=config.served_model_name,
            tokenizer_dir=tokenizer_dir,
            engine_address=engine_address,
            default_max_tokens=config.default_max_tokens,
            request_timeout_s=briton.request_timeout_s,
            drain_timeout_s=briton.drain_timeout_s,
            max_connections=briton.max_connections,
            max_body_bytes=briton.max_body_bytes,
            keepalive_s=briton.keepalive_s,
            max_schema_bytes=briton.guided_decoding.max_schema_bytes,
        )
