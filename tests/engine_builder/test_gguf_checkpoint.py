""".gguf files become engines: rows in the right order, blocks kept or requantized as the config asks, damage named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from briton.config.environment import Environment
from briton.errors import BritonError, BuildError, Unsupported
from briton.model.engine_dir import EngineManifest, load_manifest
from briton.text.tokenizer import Tokenizer
from briton_engine_builder import build_engine
from tests.engine_builder.engines import Arrays, config_for, dequantized, open_engine
from tests.engine_builder.expected import fused, gguf_weights
from tests.engine_builder.tiny_gguf import write_tiny_gguf
from tests.tiny_llama import tiny_tokenizer

Q4_0, Q4_1, Q8_0, Q6_K, BF16, F16 = Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.Q6_K, Type.BF16, Type.F16


def build(path: Path, quantization: str = "no_quant", **options: Any) -> tuple[EngineManifest, Arrays]:
    """The manifest and the arrays of the engine built from a file."""
    config = config_for(path, path.parent, quantization, **options)
    directory = build_engine(config, Environment(cache_dir=path.parent / "cache"), progress=False)
    return load_manifest(directory), open_engine(directory)


@pytest.mark.parametrize("tied", [False, True])
def test_float32_gives_back_the_hugging_face_weights(tmp_path: Path, tied: bool) -> None:
    """Through llama.cpp's permutation and back: so the engine of a GGUF is that of the checkpoint it came from."""
    path = tmp_path / "model.gguf"
    weights = write_tiny_gguf(path, tie_word_embeddings=tied, attention_bias=True)
    manifest, arrays = build(path, precision="f32")
    for name, matrix in fused(weights, range(2)).items():
        assert np.array_equal(arrays[name], matrix), name
    for i in range(2):
        bias = np.concatenate([weights[f"model.layers.{i}.self_attn.{name}_proj.bias"] for name in "qkv"])
        assert np.array_equal(arrays[f"layers.{i}.qkv.bias"], bias)
    model = manifest.local_model
    assert model.tie_word_embeddings is tied
    assert (model.num_attention_heads, model.num_key_value_heads, model.head_dim) == (4, 2, 32)
    assert (model.rms_norm_eps, model.rope_theta, model.max_position_embeddings) == (1e-5, 1e4, 1024)
    assert manifest.stop_token_ids == (0, 2)  # the file's eos, and <|im_end|>
    assert manifest.tokenizer_hash
    assert arrays["embed_tokens"].shape == (512, 128)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_half_precision(tmp_path: Path, dtype: Type) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, {"": dtype})
    manifest, arrays = build(path)
    assert manifest.weights_dtype == "bf16"
    for name, matrix in gguf_weights(path, range(2)).items():
        np.testing.assert_allclose(dequantized(arrays, name), matrix, rtol=2**-8)


@pytest.mark.parametrize(
    ("types", "quantization", "stored", "qkv"),
    [
        ({"": Q4_0}, "no_quant", "int4", np.uint8),
        ({"": Q4_0}, "weights_int4", "int4", np.uint8),
        ({"": Q4_1, "token_embd": Q8_0}, "no_quant", "int4", np.uint8),
        ({"": Q8_0}, "no_quant", "int8", np.int8),
        ({"": Q8_0}, "fp8", "int8", np.int8),
        ({"": Q4_0, "attn_k": Q4_1}, "no_quant", "int4", np.uint8),
        ({"": Q4_0, "attn_v": Q8_0}, "no_quant", "int4/int8", np.int8),
        ({"ffn": Q4_0, "attn": Q8_0, "token": Q8_0, "output.": Q8_0}, "fp4_mlp_only", "int4/int8", np.int8),
    ],
)
def test_blocks_are_carried_over(
    tmp_path: Path, types: dict[str, Type], quantization: str, stored: str, qkv: type
) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, types)
    manifest, arrays = build(path, quantization)
    assert manifest.weights_dtype == stored
    assert arrays["layers.0.qkv"].dtype == qkv
    for name, matrix in gguf_weights(path, range(2)).items():
        assert arrays[f"{name}.scale"].shape[1] == matrix.shape[1] // 32
        np.testing.assert_allclose(dequantized(arrays, name), matrix, atol=np.abs(matrix).max() * 2**-10)


@pytest.mark.parametrize(
    ("types", "quantization", "stored", "tolerance"),
    [
        ({"": Q4_1}, "weights_int8", "int8", 1 / 254),
        ({"": Q8_0}, "weights_int4", "int4", 1 / 14),
        ({"": Q6_K}, "no_quant", "bf16", 2**-8),
        ({"": Q4_1, "attn_v": Q8_0}, "no_quant", "int4/bf16", 2**-8),  # the MLP can be carried, and o
        ({"": Q4_0}, "no_quant exact", "f32", 0),
    ],
)
def test_other_widths_are_requantized(
    tmp_path: Path, types: dict[str, Type], quantization: str, stored: str, tolerance: float
) -> None:
    path = tmp_path / "model.gguf"
    shape: dict[str, Any] = (
        {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256} if Q6_K in types.values() else {}
    )
    write_tiny_gguf(path, types, **shape)
    quantization, _, exact = quantization.partition(" ")
    manifest, arrays = build(path, quantization, precision="f32" if exact else "auto")
    assert manifest.weights_dtype == stored
    for name, matrix in gguf_weights(path, range(2)).items():
        assert np.abs(dequantized(arrays, name) - matrix).max() <= np.abs(matrix).max() * tolerance, name


@pytest.mark.parametrize(
    ("metadata", "extra", "scaling"),
    [
        ({}, {}, None),
        ({"llama.rope.scaling.type": "none"}, {}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {},
            {"rope_freqs.weight": np.linspace(1, 16, 16, dtype=np.float32)},
            {"rope_type": "factors", "factors": [float(i) for i in range(1, 17)]},
        ),
    ],
)
def test_rope(tmp_path: Path, metadata: dict[str, Any], extra: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, metadata=metadata, extra=extra)
    manifest, _ = build(path)
    assert manifest.local_model.rope_scaling == scaling


def test_sampling_defaults_come_from_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, metadata={"general.sampling.temp": 0.6, "general.sampling.top_k": 20})
    config = config_for(path, tmp_path)
    directory = build_engine(config, Environment(cache_dir=tmp_path / "cache"), progress=False)
    assert (directory / "generation_config.json").read_text() == '{\n  "temperature": 0.6,\n  "top_k": 20\n}\n'


def test_the_tokenizer_is_the_files_own(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path)
    directory = build_engine(config_for(path, tmp_path), Environment(cache_dir=tmp_path / "cache"), progress=False)
    text = 'Paris, {"name": 12} über 世界 🎉'
    assert Tokenizer.load(directory).encode(text) == tiny_tokenizer(512).encode(text).ids


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"leave_out": ("blk.1.ffn_up.weight",)}, BuildError, r"model\.gguf: tensor blk\.1\.ffn_up\.weight is missing"),
        ({"leave_out": ("token_embd.weight",)}, BuildError, r"tensor token_embd\.weight is missing"),
        ({"metadata": {"llama.expert_count": 8}}, Unsupported, "mixture of experts"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, Unsupported, "rope scaling yarn"),
        ({"metadata": {"split.count": 3}}, BuildError, "one of 3 parts of a split model"),
        ({"metadata": {"llama.attention.key_length": 48}}, Unsupported, "rope.dimension_count is 32"),
        ({"extra": {"rope_freqs.weight": np.ones(5, np.float32)}}, BuildError, "has 5 values; heads of 32 need 16"),
    ],
)
def test_files_that_cannot_be_built(
    tmp_path: Path, options: dict[str, Any], error: type[BritonError], message: str
) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, **options)
    with pytest.raises(error, match=message):
        build(path)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path)
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma", 1))
    with pytest.raises(Unsupported, match="architecture gemma is not supported by the local executor"):
        build(path)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "model.gguf is damaged, truncated or not a GGUF file"),
        (3, "model.gguf is damaged, truncated or not a GGUF file"),
        (2000, r"model.gguf is damaged, truncated or not a GGUF file: it ends within its metadata \(2000 bytes\)"),
        (-5000, r"model\.gguf .* tensor blk\.1\..* ends at byte \d+, beyond the end of the file"),
    ],
)
def test_truncated_files(tmp_path: Path, keep: int, message: str) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BuildError, match=message) as caught:
        build(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"<html>" * 1000)
    with pytest.raises(BuildError, match="GGUF magic invalid"):
        build(path)


def test_nan_in_a_block_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    extra = {"output.bias": np.full(512, np.nan, np.float32)}
    write_tiny_gguf(path, extra=extra)
    with pytest.raises(BuildError, match=r"tensor output\.bias has values that are not finite"):
        build(path)
