"""What this machine has of what TensorRT-LLM needs: the library, found without importing it, and NVIDIA's driver, asked
through its own management library. Takes milliseconds, and loads neither torch nor CUDA."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

LIBRARY = "tensorrt_llm"
LIBRARY_VERSION = "1.2.1"  # the last release with TensorRT engines, and the one that everything here is written for

_NVML = "libnvidia-ml.so.1"  # part of the driver; https://docs.nvidia.com/deploy/nvml-api
_NVML_SUCCESS = 0
_NAME_BYTES = 96


@dataclass(frozen=True, slots=True)
class Machine:
    """The library's version and the GPUs' names, as far as they are there."""

    library_version: str | None  # of tensorrt_llm; None: not installed
    gpus: tuple[str, ...] = ()
    driver_error: str | None = None  # why there are no GPUs, in a few words
    gpu_architectures: tuple[str, ...] = ()  # of each GPU, by compute capability: "sm_90"; "" where it is not told

    @property
    def missing(self) -> tuple[str, ...]:
        """What keeps TensorRT-LLM from running here, in a few words each; empty when nothing does."""
        missing = []
        if self.library_version is None:
            missing.append(f"the {LIBRARY} library is not installed")
        elif self.library_version.partition("+")[0] != LIBRARY_VERSION:
            missing.append(f"{LIBRARY} is {self.library_version}, and {LIBRARY_VERSION} is needed")
        if not self.gpus:
            missing.append(self.driver_error or "there is no NVIDIA GPU")
        return tuple(missing)


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Look once; the answer does not change while a process runs."""
    try:
        library = version(LIBRARY)
    except PackageNotFoundError:
        library = None
    try:
        gpus = _gpus()
        return Machine(library, tuple(name for name, _ in gpus), None, tuple(architecture for _, architecture in gpus))
    except OSError as error:
        return Machine(library, driver_error=str(error))


def _gpus() -> tuple[tuple[str, str], ...]:
    """(name, architecture) of the GPUs. OSError, with what is wrong as its text, without a driver that answers."""
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        raise OSError("there is no NVIDIA driver") from None
    if (code := nvml.nvmlInit_v2()) != _NVML_SUCCESS:
        raise OSError(f"NVIDIA's driver does not answer (nvmlInit: {code})")
    try:
        count = ctypes.c_uint()
        if (code := nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))) != _NVML_SUCCESS:
            raise OSError(f"NVIDIA's driver does not count its GPUs (nvmlDeviceGetCount: {code})")
        return tuple(_describe(nvml, index) for index in range(count.value))
    finally:
        nvml.nvmlShutdown()


def _describe(nvml: ctypes.CDLL, index: int) -> tuple[str, str]:
    device, name = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES)
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != _NVML_SUCCESS:
        return f"GPU {index}", ""
    named = nvml.nvmlDeviceGetName(device, name, _NAME_BYTES) == _NVML_SUCCESS
    major, minor = ctypes.c_int(), ctypes.c_int()
    code = nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
    architecture = f"sm_{major.value}{minor.value}" if code == _NVML_SUCCESS else ""
    return name.value.decode(errors="replace") if named else f"GPU {index}", architecture
