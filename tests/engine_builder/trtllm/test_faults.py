"""Builds that fail: one line that says why, and nothing left of them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from briton.config.environment import Environment
from briton.errors import BritonError, BuildError, ConfigError
from briton_engine_builder import build_engine, find_cached_engine
from tests.engine_builder.trtllm.conftest import MakeConfig
from tests.engine_builder.trtllm.stand_in import StandIn
from tests.engine_builder.trtllm.test_build import CALIBRATED_ON, QUANTIZATION, engines


def refusal(make_config: MakeConfig, environment: Environment, changes: dict[str, Any] | None = None) -> BritonError:
    """The error of a build, on one line."""
    with pytest.raises(BritonError) as caught:
        build_engine(make_config(changes), environment)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"fault": "build"}, "ended with exit code 1: RuntimeError: CUDA out of memory in build. Tried to allocate"),
        ({"fault": "save"}, "ended with exit code 1: RuntimeError: CUDA out of memory in save."),
        ({"fault": "killed"}, "was killed by SIGKILL: "),
        ({"installed": "1.2.0"}, "tensorrt_llm 1.2.0 is installed; the engine is to be built by 1.2.1"),
        ({"seen": (8, 9)}, "this GPU is sm_89; the engine is to be built for sm_90"),
        ({"devices": 0}, "torch sees no GPU"),
        ({"built": {"max_batch_size": 1}}, "built an engine with max_batch_size 1; the plan has 256"),
        ({"built": {"plugin_config": {"use_paged_context_fmha": False}}}, "use_paged_context_fmha False; the plan"),
        ({"built": {"max_draft_len": "x"}}, "max_draft_len x; the plan has 0"),
        ({"built": {"max_seq_len": None}}, "saved a config.json that has other keys than expected"),
    ],
)
def test_nothing_is_left_of_a_failed_build(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, machine: dict[str, Any], message: str
) -> None:
    stand_in.set(**machine)
    error = refusal(make_config, environment)
    assert isinstance(error, BuildError)
    assert message in error.message
    assert engines(environment) == []
    assert find_cached_engine(make_config(), environment) is None


def test_a_failed_build_is_begun_again(stand_in: StandIn, make_config: MakeConfig, environment: Environment) -> None:
    stand_in.set(fault="save")
    refusal(make_config, environment)
    stand_in.set()
    assert build_engine(make_config(), environment, progress=False).is_dir()


def test_an_engine_that_is_saved_is_not_lost_to_a_crash_after_it(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.set(fault="teardown")
    assert build_engine(make_config(), environment).is_dir()
    assert "the engine is saved, but TensorRT-LLM's builder was killed by SIGSEGV" in caplog.text


def test_calibration_fails(stand_in: StandIn, make_config: MakeConfig, environment: Environment) -> None:
    stand_in.set(fault="calibration")
    error = refusal(make_config, environment, {QUANTIZATION: "fp8"})
    assert "CUDA out of memory in calibration" in error.message
    assert engines(environment) == []


def test_a_dataset_that_cannot_be_fetched(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    changes = {QUANTIZATION: "fp8", "trt_llm.build.quantization_config": CALIBRATED_ON}
    error = refusal(make_config, environment, changes)
    assert "cannot fetch acme/notes" in error.message
    assert stand_in.calls == []
    assert engines(environment) == []


def test_an_interrupt_ends_the_child(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.set(fault="hang")
    hanging = stand_in.directory / "hanging"

    def interrupt() -> None:
        while not hanging.exists() or not hanging.read_text():
            time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        build_engine(make_config(), environment)
    _wait_until_gone(int(hanging.read_text()))
    assert engines(environment) == []


def test_the_child_ends_with_a_builder_that_is_killed(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment
) -> None:
    """And what it leaves is swept by the next build."""
    stand_in.set(fault="hang")
    config = make_config()
    program = f"""
import pathlib
from briton.config.environment import Environment
from briton.config.loader import load_config
from briton.trtllm.machine import Machine
from briton_engine_builder.trtllm import build_trtllm_engine
build_trtllm_engine(
    load_config(pathlib.Path({str(config.path)!r})),
    Environment(cache_dir=pathlib.Path({str(environment.cache_dir)!r})),
    machine=Machine("1.2.1", ("NVIDIA GPU",), None, ("sm_90",)),
)
"""
    builder = subprocess.Popen([sys.executable, "-c", program])
    hanging = stand_in.directory / "hanging"
    while not hanging.exists() or not hanging.read_text():
        assert builder.poll() is None
        time.sleep(0.02)
    builder.kill()
    builder.wait()
    _wait_until_gone(int(hanging.read_text()))
    assert len(engines(environment)) == 1
    stand_in.set()
    directory = build_engine(config, environment, progress=False)
    assert engines(environment) == [directory.name]


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.02)
    raise AssertionError(f"{pid} is still there")


@pytest.mark.parametrize(
    ("machine", "changes", "kind", "message"),
    [
        ({"capability": (8, 0)}, {QUANTIZATION: "fp8"}, ConfigError, "compute capability 8.0, and FP8 needs"),
        (
            {},
            {"trt_llm.build.tensor_parallel_count": 2},
            ConfigError,
            r"built on 2 GPUs \(2 ranks\); this machine has 1",
        ),
        (
            {},
            {"trt_llm.build.num_builder_gpus": 4},
            ConfigError,
            r"on 4 GPUs \(1 ranks, num_builder_gpus 4\); this machine has 1",
        ),
    ],
)
def test_what_is_refused_before_anything_is_fetched(
    stand_in: StandIn,
    make_config: MakeConfig,
    environment: Environment,
    machine: dict[str, Any],
    changes: dict[str, Any],
    kind: type[BritonError],
    message: str,
) -> None:
    stand_in.set(**machine)
    with pytest.raises(kind, match=message):
        build_engine(make_config(changes), environment)
    assert stand_in.calls == []
    assert not (environment.cache_dir / "engines").exists()


def test_gpus_of_two_kinds(stand_in: StandIn, make_config: MakeConfig, environment: Environment) -> None:
    from briton.trtllm.machine import Machine
    from briton_engine_builder.trtllm import build_trtllm_engine

    mixed = Machine("1.2.1", ("H100", "L4"), None, ("sm_90", "sm_89"))
    with pytest.raises(ConfigError, match=r"of one architecture; this machine has H100 \(sm_90\), L4 \(sm_89\)"):
        build_trtllm_engine(make_config(), environment, machine=mixed)


def test_a_config_for_another_gpu_is_said(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    stand_in.set(capability=(8, 9))
    build_engine(make_config({"resources.accelerator": "H100"}), environment, progress=False)
    assert (
        "resources.accelerator is H100, of compute capability 9.0; the engine is built for this machine's"
        in caplog.text
    )


def test_a_machine_without_mpirun(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.set(gpus=2)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    error = refusal(make_config, environment, {"trt_llm.build.tensor_parallel_count": 2})
    assert "mpirun" in error.message
    assert engines(environment) == []
