"""A Hugging Face config.json as a ModelConfig, or the one line that says why it cannot be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from briton.errors import BuildError, Unsupported
from briton.model.engine_dir import ModelConfig

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")  # SmolLM and Falcon3 call themselves Llama
_ROPE_KEYS = {  # rope_type -> what the executor needs of it
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "linear": ("factor",),
}


def model_config(path: Path, config: dict[str, Any]) -> ModelConfig:
    """The shapes of a config.json. Raises BuildError for what is missing or wrong, Unsupported for other models."""
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise Unsupported(
            f"{path}: architecture {architecture} is not supported by the local executor; "
            f"it runs {' and '.join(SUPPORTED_ARCHITECTURES)}"
        )
    for key, allowed in (
        ("hidden_act", ("silu", "swish")),
        ("quantization_config", (None,)),
        ("partial_rotary_factor", (None, 1, 1.0)),
    ):
        if config.get(key, allowed[0]) not in allowed:
            value = config[key].get("quant_method", config[key]) if isinstance(config[key], dict) else config[key]
            raise Unsupported(f"{path}: {key} {value} is not supported by the local executor")
    hidden, heads = _count(path, config, "hidden_size"), _count(path, config, "num_attention_heads")
    key_value_heads = _count(path, config, "num_key_value_heads", heads)
    head_dim = _count(path, config, "head_dim", hidden // heads)
    theta, scaling = _rope(path, config)
    return ModelConfig(
        architecture="llama",
        vocab_size=_count(path, config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(path, config, "intermediate_size"),
        num_hidden_layers=_count(path, config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        max_position_embeddings=_positions(path, config),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def eos_token_ids(path: Path, *configs: dict[str, Any] | None) -> tuple[int, ...]:
    """The eos_token_id of each config, one id or a list, joined. Raises BuildError for what is not an id."""
    found: list[Any] = []
    for config in configs:
        eos = (config or {}).get("eos_token_id")
        found += eos if isinstance(eos, list) else [] if eos is None else [eos]
    if wrong := [eos for eos in found if not isinstance(eos, int) or eos < 0]:
        raise BuildError(f"{path}: eos_token_id {wrong[0]!r} is not a token id")
    return tuple(sorted(set(found)))


def _rope(path: Path, config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): `rope_theta` beside `rope_scaling` until transformers 4, one `rope_parameters` since 5."""
    old, new = config.get("rope_scaling"), config.get("rope_parameters")
    if old and new and _scaling_of(old) != _scaling_of(new):  # releases of transformers differ in which one holds
        raise BuildError(f"{path}: rope_scaling and rope_parameters say different things: keep the one that is meant")
    parameters: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in _ROPE_KEYS:
        raise Unsupported(
            f"{path}: rope scaling {kind} is not supported by the local executor; {' and '.join(_ROPE_KEYS)} are"
        )
    try:
        return theta, {"rope_type": kind, **{key: _number(parameters[key]) for key in _ROPE_KEYS[kind]}}
    except (KeyError, TypeError, ValueError) as error:
        raise BuildError(f"{path}: rope scaling {kind} lacks a number: {error}") from None


def _scaling_of(parameters: dict[str, Any]) -> dict[str, Any]:
    """In one spelling, and without theta, which only one of the two has."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    return {**{key: v for key, v in parameters.items() if key not in ("type", "rope_theta")}, "rope_type": kind}


def _positions(path: Path, config: dict[str, Any]) -> int:
    """Up to a sliding window nothing slides, so that is as far as this graph is right."""
    positions = _count(path, config, "max_position_embeddings")
    window = config.get("sliding_window")
    return positions if window is None else min(positions, _count(path, config, "sliding_window"))


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{value!r} is not a positive number")
    return value


def _count(path: Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise BuildError(f"{path}: {key} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BuildError(f"{path}: {key} must be a positive integer, not {value!r}")
    return value
