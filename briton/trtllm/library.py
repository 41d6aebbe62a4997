"""The one place where tensorrt_llm and torch are imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briton.errors import ConfigError
from briton.trtllm.host_tensor import host_tensor
from briton.trtllm.library_objects import EXECUTOR
from briton.trtllm.machine import LIBRARY, LIBRARY_VERSION, this_machine
from briton.trtllm.mask_device import MaskDevice, MaskSizes, TorchMaskDevice

_FIELD = "briton.executor"


@dataclass(frozen=True)
class Library:
    """What the executor takes from outside. Tests pass a stand-in."""

    trtllm: Any  # the module tensorrt_llm.bindings.executor
    version: str
    rank: int
    world_size: int
    gpu_architecture: str  # "sm_90"
    tensor: Callable[[NDArray[Any]], Any]  # a host tensor of the library's, from an array; of BFLOAT16, too
    array: Callable[[Any], NDArray[np.float32]]  # the other way round, from any element type
    mask_device: Callable[[MaskSizes], MaskDevice]


def load_library() -> Library:
    """Import TensorRT-LLM. Raises ConfigError where it, a GPU or its driver is missing, or another release is there."""
    machine = this_machine()
    if machine.missing:
        raise ConfigError(f"the TensorRT-LLM executor cannot run here: {', and '.join(machine.missing)}", _FIELD)
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise ConfigError("the TensorRT-LLM executor found no GPU: torch sees none, or no NVIDIA driver", _FIELD)
        trtllm = importlib.import_module(EXECUTOR)
        world = importlib.import_module("mpi4py.MPI").COMM_WORLD
    except (ImportError, OSError, RuntimeError) as error:  # libcuda.so.1 or libmpi.so that is not there, too
        raise ConfigError(f"{LIBRARY} {machine.library_version} cannot be loaded: {error}", _FIELD) from error
    major, minor = torch.cuda.get_device_capability()
    return Library(
        trtllm=trtllm,
        version=machine.library_version or LIBRARY_VERSION,
        rank=world.Get_rank(),
        world_size=world.Get_size(),
        gpu_architecture=f"sm_{major}{minor}",
        tensor=lambda array: host_tensor(torch, array),
        array=lambda tensor: tensor.float().cpu().numpy(),
        mask_device=lambda sizes: TorchMaskDevice(torch, sizes),
    )


def first_line(error: BaseException) -> str:
    """What the library says, without the stack trace that it adds."""
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__
