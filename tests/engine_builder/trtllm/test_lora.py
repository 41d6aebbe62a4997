"""LoRA adapters: from peft's files to the executor's, through builds and into answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from briton.config import Config, Environment
from briton.engine_dir import load_manifest
from briton.errors import BuildError, Unsupported
from briton.model_shapes import read_shapes
from briton.trtllm.engine_check import check_engine, open_engine
from briton.trtllm.lora import BFLOAT16, LORA_MODULES, read_adapter
from briton_engine_builder import build_engine, find_cached_engine
from briton_engine_builder.sources.model_files import needed_files
from briton_engine_builder.trtllm.lora import convert_adapter
from tests.engine_builder.trtllm.conftest import MakeConfig
from tests.engine_builder.trtllm.stand_in import StandIn
from tests.trtllm.stand_in.library import stand_in_library

MODULES = tuple(LORA_MODULES.values())
LORA = "trt_llm.build.lora_adapters"


def write_peft(
    directory: Path, model: Path, *, rank: int = 2, modules: tuple[str, ...] = ("q_proj",), **config: Any
) -> Path:
    """An adapter of `model` as peft saves it: layer 1 has all the modules, layer 0 the first."""
    shapes = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, mlp = shapes["hidden_size"], shapes["intermediate_size"]
    head = hidden // shapes["num_attention_heads"]
    outputs = {"q_proj": hidden, "o_proj": hidden, "down_proj": hidden, "gate_proj": mlp, "up_proj": mlp}
    outputs |= dict.fromkeys(("k_proj", "v_proj"), head * shapes["num_key_value_heads"])
    random, tensors = np.random.default_rng(1), dict[str, Any]()
    for layer, names in ((1, modules), (0, modules[:1])):
        for name in names:
            block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{block}.{name}"
            inputs = mlp if name == "down_proj" else hidden
            tensors[f"{prefix}.lora_A.weight"] = random.standard_normal((rank, inputs), np.float32)
            tensors[f"{prefix}.lora_B.weight"] = random.standard_normal((outputs[name], rank), np.float32)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


@pytest.fixture
def model(make_config: MakeConfig) -> Path:
    """The tiny Llama that the configs build from."""
    return Path(make_config().checkpoint.repo)


def local(adapter: Path) -> dict[str, str]:
    return {"source": "LOCAL", "repo": str(adapter)}


def as_float(weights: Any) -> Any:
    assert weights.dtype == BFLOAT16
    return (weights.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 2), (True, 8 / 2**0.5)])
def test_the_layout(model: Path, tmp_path: Path, use_rslora: bool, scale: float) -> None:
    adapter = write_peft(tmp_path / "a", model, modules=("q_proj", "down_proj", "k_proj"), use_rslora=use_rslora)
    shapes = read_shapes(model / "config.json")
    weights, description = convert_adapter(adapter, shapes, MODULES, 4)
    # [module, layer, rank], by layer
    assert description.tolist() == [[[1, 0, 2], [6, 1, 2], [2, 1, 2], [1, 1, 2]]]
    assert description.dtype == np.int32
    hidden, mlp = shapes.hidden_size, shapes.intermediate_size
    assert weights.shape == (1, 4, 2 * (mlp + hidden))
    tensors = load_file(adapter / "adapter_model.safetensors")
    down = "base_model.model.model.layers.1.mlp.down_proj"
    a, b = (tensors[f"{down}.lora_{factor}.weight"] for factor in "AB")
    expected = np.concatenate([a.ravel(), b.ravel() * scale])  # [rank, in], then [out, rank]
    np.testing.assert_allclose(as_float(weights)[0, 1], expected, rtol=2**-8)
    assert not as_float(weights)[0, 0, 2 * 2 * hidden :].any()  # padding


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"rank": 8}, "has rank 8; trt_llm.build.lora_configuration.max_lora_rank is 4"),
        ({"modules": ("gate_proj",)}, "changes gate_proj; .*lora_target_modules allows q_proj, o_proj"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"alpha_pattern": {"q_proj": 1}}, "alpha_pattern is"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
    ],
)
def test_adapters_that_the_engine_cannot_have(model: Path, tmp_path: Path, made: dict[str, Any], message: str) -> None:
    adapter = write_peft(tmp_path / "a", model, **made)
    with pytest.raises(BuildError, match=message):
        convert_adapter(adapter, read_shapes(model / "config.json"), ("attn_q", "attn_dense"), 4)


def test_damaged_adapters(model: Path, tmp_path: Path) -> None:
    shapes = read_shapes(model / "config.json")
    adapter = write_peft(tmp_path / "a", model)
    a = np.zeros((2, shapes.hidden_size), np.float32)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    for tensors, message in (
        ({f"{layer}.lora_A.weight": a}, "q_proj of layer 0 has no lora_B"),
        ({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": a}, "has shape .*; the config asks for"),
        ({"base_model.model.lm_head.lora_A.weight": a}, "lm_head.lora_A.weight is not of an attention's"),
        ({layer.replace(".0.", ".9.") + f".lora_{f}.weight": a for f in "AB"}, "changes layer 9; the model has 2"),
        ({}, "holds no adapter"),
    ):
        save_file(tensors, adapter / "adapter_model.safetensors")
        with pytest.raises(BuildError, match=message):
            convert_adapter(adapter, shapes, MODULES, 4)
    with pytest.raises(BuildError, match="is no LoRA adapter"):
        convert_adapter(model, shapes, MODULES, 4)


def adapted(make_config: MakeConfig, model: Path, tmp_path: Path) -> Config:
    """A config with two adapters."""
    for name in ("legal", "poems"):
        if not (tmp_path / name).exists():
            write_peft(tmp_path / name, model)
    return make_config({LORA: {name: local(tmp_path / name) for name in ("legal", "poems")}})


def test_adapters_are_built_and_found_again(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, model: Path, tmp_path: Path
) -> None:
    config = adapted(make_config, model, tmp_path)
    directory = build_engine(config, environment, progress=False)
    manifest = load_manifest(directory)
    assert manifest.trtllm is not None
    assert manifest.trtllm.lora_adapters == ("legal", "poems")
    assert {f"lora/{n}/model.lora_{k}.npy" for n in ("legal", "poems") for k in ("weights", "config")} <= set(
        manifest.files
    )
    weights, description = read_adapter(directory, "poems")
    assert (len(weights), description.tolist()) == (2, [[1, 0, 2], [1, 1, 2]])
    (call,) = stand_in.calls
    assert call["enable_lora"] is True
    assert call["build_config"]["lora_config"]["max_lora_rank"] == 64
    assert call["peft_cache_config"]["max_adapter_size"] == 64
    check_engine(open_engine(config, directory, 0), stand_in_library())
    assert find_cached_engine(config, environment) == directory
    # an adapter that changes is another engine, and so is one less
    shutil.rmtree(tmp_path / "poems")
    write_peft(tmp_path / "poems", model, rank=4)
    assert find_cached_engine(config, environment) is None
    assert build_engine(config, environment, progress=False) != directory
    assert find_cached_engine(make_config({LORA: {"legal": local(tmp_path / "legal")}}), environment) is None


def test_nothing_is_left_of_a_build_with_a_wrong_adapter(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, model: Path, tmp_path: Path
) -> None:
    adapter = write_peft(tmp_path / "a", model, rank=128)
    with pytest.raises(BuildError, match="has rank 128"):
        build_engine(make_config({LORA: {"a": local(adapter)}}), environment, progress=False)
    assert stand_in.calls == []
    assert not [path for path in (environment.cache_dir / "engines").iterdir() if path.suffix != ".lock"]


def test_sources_of_adapters(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, tmp_path: Path
) -> None:
    files = ["README.md", "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"]
    assert needed_files("acme/a", files) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(Unsupported, match="adapter a: TensorRT-LLM does not build from PyPI"):
        build_engine(make_config({LORA: {"a": {"source": "PYPI", "repo": "acme"}}}), environment)
    with pytest.raises(Unsupported, match=r"lora_adapters.a.revision is 'v1'"):
        build_engine(make_config({LORA: {"a": {"source": "LOCAL", "repo": "a", "revision": "v1"}}}), environment)
    with pytest.raises(BuildError, match=r"has neither config.json nor a .gguf file"):
        build_engine(make_config({LORA: {"a": local(tmp_path)}}), environment)
