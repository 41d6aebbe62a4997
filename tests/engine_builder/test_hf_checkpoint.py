"""Hugging Face directories become engines: every weight in its place, every kind of damage named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import tokenizers

from briton.config.environment import Environment
from briton.errors import BritonError, BuildError, ConfigError, Unsupported
from briton.model.engine_dir import EngineManifest, load_manifest, rank_file
from briton.text.tokenizer import Tokenizer
from briton_engine_builder import build_engine
from briton_engine_builder.hf_checkpoint import HFCheckpoint
from tests.conftest import TinyLlama
from tests.engine_builder.engines import Arrays, config_for, dequantized, open_engine
from tests.engine_builder.expected import fused
from tests.tiny_llama import save_safetensors, tiny_config, tiny_weights, to_bf16


def build(
    checkpoint: Path, folder: Path, quantization: str = "no_quant", **options: Any
) -> tuple[EngineManifest, Arrays]:
    """The manifest and the arrays of the engine."""
    config = config_for(checkpoint, folder, quantization, **options)
    directory = build_engine(config, Environment(cache_dir=folder / "cache"), progress=False)
    return load_manifest(directory), open_engine(directory)


@pytest.mark.parametrize("tied", [False, True])
def test_float32_is_the_checkpoint_fused(tiny_llama: TinyLlama, tmp_path: Path, tied: bool) -> None:
    checkpoint = tiny_llama(tmp_path, dtype="f32", tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    manifest, arrays = build(checkpoint, tmp_path, precision="f32")
    weights = tiny_weights(tiny_config(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True))
    wanted = fused(weights, range(2))
    for name, matrix in wanted.items():
        assert np.array_equal(arrays[name], matrix), name
    for i in range(2):
        prefix = f"model.layers.{i}."
        assert np.array_equal(arrays[f"layers.{i}.input_norm"], weights[f"{prefix}input_layernorm.weight"])
        assert np.array_equal(
            arrays[f"layers.{i}.post_attention_norm"], weights[f"{prefix}post_attention_layernorm.weight"]
        )
        qkv = np.concatenate([weights[f"{prefix}self_attn.{name}_proj.bias"] for name in "qkv"])
        assert np.array_equal(arrays[f"layers.{i}.qkv.bias"], qkv)
        gate_up = np.concatenate([weights[f"{prefix}mlp.{name}_proj.bias"] for name in ("gate", "up")])
        assert np.array_equal(arrays[f"layers.{i}.gate_up.bias"], gate_up)
    assert np.array_equal(arrays["norm"], weights["model.norm.weight"])
    assert ("lm_head" in arrays) is not tied
    assert manifest.model.tie_word_embeddings is tied
    assert (manifest.weights_dtype, manifest.kv_cache_dtype) == ("f32", "f32")


def test_bf16_checkpoints_are_stored_bit_for_bit(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    manifest, arrays = build(tiny_llama(tmp_path), tmp_path)
    assert manifest.weights_dtype == "bf16"
    for name, matrix in fused(tiny_weights(tiny_config()), range(2)).items():
        assert np.array_equal(arrays[name], to_bf16(matrix)), name


@pytest.mark.parametrize(
    ("quantization", "stored", "attention", "mlp", "kv_cache"),
    [
        ("weights_int8", "int8", np.int8, np.int8, "bf16"),
        ("weights_int4", "int4", np.uint8, np.uint8, "bf16"),
        ("fp4_mlp_only", "int4/int8", np.int8, np.uint8, "bf16"),
        ("fp8_kv", "int8", np.int8, np.int8, "u8"),
    ],
)
def test_quantized(
    tiny_llama: TinyLlama, tmp_path: Path, quantization: str, stored: str, attention: type, mlp: type, kv_cache: str
) -> None:
    manifest, arrays = build(tiny_llama(tmp_path), tmp_path, quantization)
    assert (manifest.weights_dtype, manifest.kv_cache_dtype) == (stored, kv_cache)
    assert manifest.quantization_type == quantization
    assert {arrays[n].dtype for n in ("layers.0.qkv", "layers.1.o", "embed_tokens", "lm_head")} == {np.dtype(attention)}
    assert {arrays[name].dtype for name in ("layers.0.gate_up", "layers.1.down")} == {np.dtype(mlp)}
    for name, matrix in fused(tiny_weights(tiny_config()), range(2)).items():
        steps = 254 if arrays[name].dtype == np.int8 else 15
        error = np.abs(dequantized(arrays, name) - matrix).max() / (2 * np.abs(matrix).max())
        assert error < 1.1 / steps, name


def test_the_directory_holds_what_an_executor_needs(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    config = config_for(checkpoint, tmp_path)
    directory = build_engine(config, Environment(cache_dir=tmp_path / "cache"), progress=False)
    manifest = load_manifest(directory)
    assert set(manifest.files) == {rank_file(0), "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert manifest.tokenizer_hash == Tokenizer.load(directory).hash
    assert manifest.stop_token_ids == (0, 2)
    assert manifest.source["source"] == "LOCAL"
    with safetensors.safe_open(directory / rank_file(0), "numpy") as file:  # the format's own reader takes it
        assert len(file.keys()) == 2 + 1 + 2 * 6


ADDED = {"content": "<|im_end|>", "lstrip": False, "special": True, "__type": "AddedToken"}


@pytest.mark.parametrize(
    ("config", "generation", "eos", "stops"),
    [
        (0, None, "<|im_end|>", (0, 2)),
        (0, None, ADDED, (0, 2)),
        (None, None, "<|im_end|>", (2,)),
        (0, [0], "<|im_end|>", (0, 2)),
        ([0, 1], 1, "<|im_end|>", (0, 1, 2)),
        (2, None, None, (2,)),
        (2, None, "no token's name", (2,)),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_tokenizers_end_token_ends_a_generation(
    tiny_llama: TinyLlama, tmp_path: Path, config: Any, generation: Any, eos: Any, stops: tuple[int, ...], file: str
) -> None:
    """Regression: a chat model whose config.json names the end of a text alone went on after its turn."""
    checkpoint = tiny_llama(tmp_path, eos_token_id=config)
    (checkpoint / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    (checkpoint / file).write_text(json.dumps({} if eos is None else {"eos_token": eos}), encoding="utf-8")
    (checkpoint / "generation_config.json").write_text(
        json.dumps({} if generation is None else {"eos_token_id": generation}), encoding="utf-8"
    )
    assert HFCheckpoint(checkpoint).stop_token_ids == stops


def test_an_end_token_outside_the_models_vocabulary_is_none(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|beyond|>"])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer_config.json").write_text('{"eos_token": "<|beyond|>"}', encoding="utf-8")
    config = tiny_config(vocab_size=tokenizer.token_to_id("<|beyond|>"))
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert HFCheckpoint(checkpoint).stop_token_ids == (0, 2)


def test_shards_are_one_checkpoint(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path, dtype="f32")
    (checkpoint / "model.safetensors").unlink()
    weights = tiny_weights(tiny_config())
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in shards.items():
        save_safetensors({name: weights[name] for name in inside}, checkpoint / file)
    index = {"weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    _, arrays = build(checkpoint, tmp_path, precision="f32")
    for name, matrix in fused(weights, range(2)).items():
        assert np.array_equal(arrays[name], matrix), name
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BuildError, match=r"model-00002-of-00002\.safetensors is missing"):
        build(checkpoint, tmp_path, precision="f32")


def sharded(checkpoint: Path, shards: dict[str, dict[str, np.ndarray[Any, Any]]], names: dict[str, str]) -> None:
    """Put the weights into these shards, with an index of `names`."""
    (checkpoint / "model.safetensors").unlink()
    for shard, weights in shards.items():
        save_safetensors(weights, checkpoint / shard)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")


@pytest.mark.parametrize("right", [0, 1])
def test_the_index_says_which_of_two_shards_counts(tiny_llama: TinyLlama, tmp_path: Path, right: int) -> None:
    """Regression: a tensor in two shards was taken from the last one, whatever the index says."""
    weights, norm = tiny_weights(tiny_config()), "model.norm.weight"
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    stale = {norm: np.full_like(weights[norm], 7)}
    contents = [weights, stale] if right == 0 else [stale, weights]
    checkpoint = tiny_llama(tmp_path, dtype="f32")
    sharded(checkpoint, dict(zip(shards, contents, strict=True)), {**dict.fromkeys(weights, shards[right])})
    _, arrays = build(checkpoint, tmp_path, precision="f32")
    assert np.array_equal(arrays["norm"], weights[norm])


def test_an_index_that_contradicts_its_shards(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    weights, norm = tiny_weights(tiny_config()), "model.norm.weight"
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    others = {name: weights[name] for name in weights if name != norm}
    checkpoint = tiny_llama(tmp_path, dtype="f32")
    names = dict.fromkeys(others, first)
    sharded(checkpoint, {first: others, second: {norm: weights[norm]}}, {**names, norm: first, "none": second})
    with pytest.raises(BuildError, match=f"names {first} for {norm}, which is in {second}"):
        build(checkpoint, tmp_path)
    save_safetensors(weights, checkpoint / first)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**names, "none": second}}))
    with pytest.raises(BuildError, match=f"{norm} is in {first} and {second}, and .*index.json in neither"):
        build(checkpoint, tmp_path)


@pytest.mark.parametrize("scaling", [{"rope_type": "linear", "factor": 4.0}, {"type": "yarn", "factor": 4.0}])
def test_two_ropes_that_differ(tiny_llama: TinyLlama, tmp_path: Path, scaling: dict[str, Any]) -> None:
    """Regression: rope_scaling was dropped without a word. Transformers 5 would take it, others the parameters."""
    parameters = {"rope_type": "default", "rope_theta": 5e5}
    with pytest.raises(BuildError, match=r"config\.json: rope_scaling and rope_parameters say different things"):
        build(tiny_llama(tmp_path, rope_parameters=parameters, rope_scaling=scaling), tmp_path)


@pytest.mark.parametrize(
    ("given", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 1e4, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4, None),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 7e4},
            },
            7e4,
            {"rope_type": "linear", "factor": 2.0},
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            1e4,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_rope(
    tiny_llama: TinyLlama, tmp_path: Path, given: dict[str, Any], theta: float, scaling: dict[str, Any] | None
) -> None:
    manifest, _ = build(tiny_llama(tmp_path, **given), tmp_path)
    model = manifest.local_model
    assert (model.rope_theta, model.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, Unsupported, "Qwen3ForCausalLM is not supported.*LlamaForCausalLM"),
        ({"architectures": None}, Unsupported, r"architecture \(none\) is not supported"),
        ({"hidden_act": "gelu"}, Unsupported, "hidden_act gelu"),
        ({"quantization_config": {"quant_method": "gptq"}}, Unsupported, "quantization_config gptq"),
        ({"partial_rotary_factor": 0.5}, Unsupported, "partial_rotary_factor 0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, Unsupported, "rope scaling yarn.*llama3 and linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, BuildError, "llama3 lacks.*low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, BuildError, "0 is not a positive number"),
        ({"num_key_value_heads": 3}, BuildError, "4 attention heads cannot share 3 key and value heads"),
        ({"hidden_size": "128"}, BuildError, "hidden_size must be a positive integer, not '128'"),
        ({"max_position_embeddings": None}, BuildError, "max_position_embeddings is missing"),
        ({"num_hidden_layers": 3}, BuildError, r"tensor model\.layers\.2\.self_attn\.q_proj\.weight is missing"),
        ({"intermediate_size": 200}, BuildError, r"gate_proj\.weight has shape \[192, 128\].*asks for \[200, 128\]"),
        ({"head_dim": 33}, BuildError, "a head size of 33 is odd"),
        ({"eos_token_id": "two"}, BuildError, "eos_token_id 'two' is not a token id"),
        ({"eos_token_id": 512}, BuildError, "end-of-sequence token 512 is outside the vocabulary of 512"),
    ],
)
def test_configs_that_cannot_be_built(
    tiny_llama: TinyLlama, tmp_path: Path, changes: dict[str, Any], error: type[BritonError], message: str
) -> None:
    checkpoint = tiny_llama(tmp_path)
    config = {key: value for key, value in {**tiny_config(), **changes}.items() if value is not None}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(error, match=message):
        build(checkpoint, tmp_path)
    assert not [path for path in (tmp_path / "cache" / "engines").iterdir() if not path.name.endswith(".lock")]


def test_int4_needs_whole_groups(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path, intermediate_size=200)
    with pytest.raises(BuildError, match=r"down_proj\.weight has 200 columns; int4 needs a multiple of 32"):
        build(checkpoint, tmp_path, "weights_int4")


def test_mistral_is_right_up_to_its_window(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path, architectures=["MistralForCausalLM"], sliding_window=256)
    manifest, _ = build(checkpoint, tmp_path)
    assert manifest.model.max_position_embeddings == 256
    with pytest.raises(ConfigError, match=r"max_seq_len is 257; .* sliding_window\) is 256") as caught:
        build(checkpoint, tmp_path, max_seq_len=257)
    assert caught.value.field == "max_seq_len"
    build(checkpoint, tmp_path, max_seq_len=256)


def _truncate(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _empty(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"")


def _header_is_not_json(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:20] = b"x" * 12
    file.write_bytes(content)


def _header_beyond_the_file(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes((10**9).to_bytes(8, "little") + file.read_bytes()[8:])


def _nan(checkpoint: Path) -> None:
    weights = tiny_weights(tiny_config())
    weights["model.layers.1.mlp.up_proj.weight"][5, 5] = np.nan
    save_safetensors(weights, checkpoint / "model.safetensors")


def _offsets_that_lie(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape": [512, 128]', b'"shape": [512, 127]'))


def _no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def _two_files_and_no_index(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "a.safetensors")
    (checkpoint / "b.safetensors").write_bytes((checkpoint / "a.safetensors").read_bytes())


def _index_of_nonsense(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors.index.json").write_text("[]", encoding="utf-8")


def _no_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()


def _config_is_not_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _truncate,
            r"model\.safetensors is truncated: tensor model\.layers\.1\..* ends at byte \d+, the file at byte \d+",
        ),
        (_empty, r"model\.safetensors is truncated: it has 0 bytes"),
        (_header_is_not_json, r"model\.safetensors is damaged: its safetensors header is not JSON"),
        (_header_beyond_the_file, r"its header would have 1000000000 bytes"),
        (_nan, r"model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight has values that are not finite"),
        (_offsets_that_lie, r"tensor model\.embed_tokens\.weight has 131072 bytes; BF16 \[512, 127\] needs 130048"),
        (_no_weights, r"tiny-llama has no \.safetensors file"),
        (_two_files_and_no_index, r"2 \.safetensors files and no model\.safetensors\.index\.json"),
        (_index_of_nonsense, r"model\.safetensors\.index\.json is not a safetensors index"),
        (_no_tokenizer, r"tiny-llama has no tokenizer\.json"),
        (_config_is_not_json, r"config\.json cannot be read"),
    ],
)
@pytest.mark.parametrize("quantization", ["no_quant", "weights_int8"])
def test_damage_is_named_and_leaves_nothing(
    tiny_llama: TinyLlama, tmp_path: Path, quantization: str, damage: Callable[[Path], None], message: str
) -> None:
    checkpoint = tiny_llama(tmp_path)
    damage(checkpoint)
    with pytest.raises(BuildError, match=message) as caught:
        build(checkpoint, tmp_path, quantization)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache" / "engines").iterdir() if not path.name.endswith(".lock")]
