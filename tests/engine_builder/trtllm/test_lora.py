"""LoRA adapters: from peft's files to the executor's, through builds and into answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from briton.config.config import Config
from briton.config.environment import Environment
from briton.errors import BuildError, Unsupported
from briton.model.engine_dir import load_manifest
from briton.model.shapes import ModelShapes, read_shapes
from briton.trtllm.engine_check import check_engine, open_engine
from briton.trtllm.host_tensor import BFLOAT16
from briton.trtllm.lora import LORA_MODULES, read_adapter
from briton_engine_builder import build_engine, find_cached_engine
from briton_engine_builder.sources.model_files import needed_files
from briton_engine_builder.trtllm.lora import convert_adapter
from tests.engine_builder.trtllm.conftest import MakeConfig
from tests.engine_builder.trtllm.stand_in import StandIn
from tests.peft_adapter import write_peft
from tests.trtllm.stand_in.library import stand_in_library

MODULES = tuple(LORA_MODULES.values())
LORA = "trt_llm.build.lora_adapters"


@pytest.fixture
def model(make_config: MakeConfig) -> ModelShapes:
    """The tiny Llama that the configs build from."""
    return read_shapes(Path(make_config().checkpoint.repo) / "config.json")


def local(adapter: Path) -> dict[str, str]:
    return {"source": "LOCAL", "repo": str(adapter)}


def as_float(weights: Any) -> Any:
    assert weights.dtype == BFLOAT16
    return (weights.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 2), (True, 8 / 2**0.5)])
def test_the_layout(model: ModelShapes, tmp_path: Path, use_rslora: bool, scale: float) -> None:
    adapter = write_peft(
        tmp_path / "a",
        model,
        modules=("q_proj", "down_proj", "k_proj"),
        use_rslora=use_rslora,
    )
    weights, description = convert_adapter(adapter, model, MODULES, 4)
    # [module, layer, rank], by layer
    assert description.tolist() == [[[1, 0, 2], [6, 1, 2], [2, 1, 2], [1, 1, 2]]]
    assert description.dtype == np.int32
    hidden, mlp = model.hidden_size, model.intermediate_size
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
def test_adapters_that_the_engine_cannot_have(
    model: ModelShapes, tmp_path: Path, made: dict[str, Any], message: str
) -> None:
    adapter = write_peft(tmp_path / "a", model, **made)
    with pytest.raises(BuildError, match=message):
        convert_adapter(adapter, model, ("attn_q", "attn_dense"), 4)


def test_damaged_adapters(model: ModelShapes, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", model)
    a = np.zeros((2, model.hidden_size), np.float32)
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
            convert_adapter(adapter, model, MODULES, 4)
    with pytest.raises(BuildError, match="is no LoRA adapter"):
        convert_adapter(tmp_path, model, MODULES, 4)


def adapted(make_config: MakeConfig, model: ModelShapes, tmp_path: Path) -> Config:
    """A config with two adapters."""
    for name in ("legal", "poems"):
        if not (tmp_path / name).exists():
            write_peft(tmp_path / name, model)
    return make_config({LORA: {name: local(tmp_path / name) for name in ("legal", "poems")}})


def test_adapters_are_built_and_found_again(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, model: ModelShapes, tmp_path: Path
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
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, model: ModelShapes, tmp_path: Path
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


def test_a_lora_configuration_without_adapters_changes_nothing(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment
) -> None:
    directory = build_engine(make_config(), environment, progress=False)
    configuration = {"trt_llm.build.lora_configuration": {"lora_target_modules": ["lm_head"]}}
    assert build_engine(make_config(configuration), environment, progress=False) == directory
    (call,) = stand_in.calls
    assert "enable_lora" not in call
