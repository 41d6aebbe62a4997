"""The stand-in as the `Library` that our executor is given."""

from __future__ import annotations

from typing import Any

import numpy as np

from briton.trtllm.library import Library
from briton.trtllm.machine import LIBRARY_VERSION
from tests.trtllm.numpy_mask_device import NumpyMaskDevice
from tests.trtllm.stand_in.api import TABLE, Module, generated
from tests.trtllm.stand_in.executor import Faults, StandInExecutor, World

GPU = "sm_90"


def stand_in_module(rank: int = 0, world: World | None = None, faults: Faults | None = None) -> Any:
    """The module as one rank sees it."""
    names = generated()
    _add_has_error(names)
    methods = {name: getattr(StandInExecutor, name) for name in TABLE["methods"]["Executor"]}
    private = {name: value for name, value in vars(StandInExecutor).items() if name.startswith("_")}
    state = {"api": Module(names), "world": world or World(), "rank": rank, "faults": faults or Faults()}
    names["Executor"] = type("Executor", (), {**private, **methods, **state})
    return Module(names)


def stand_in_library(
    rank: int = 0,
    world: World | None = None,
    faults: Faults | None = None,
    version: str = LIBRARY_VERSION,
    gpu_architecture: str = GPU,
) -> Library:
    """A machine with the library, one GPU for each rank, and numpy for torch."""
    world = world or World()
    return Library(
        trtllm=stand_in_module(rank, world, faults),
        version=version,
        rank=rank,
        world_size=world.size,
        gpu_architecture=gpu_architecture,
        tensor=lambda array: array,
        array=lambda tensor: np.asarray(tensor, np.float32),
        mask_device=NumpyMaskDevice,
    )


def _add_has_error(names: dict[str, Any]) -> None:
    """`has_error()`, and a `result` that raises where there is an error."""
    response, fields = names["Response"], names["Response"]._names

    def has_error(self: Any) -> bool:
        return bool(self.error_msg)

    def get(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name == "result" and object.__getattribute__(self, "error_msg"):
            raise RuntimeError("[TensorRT-LLM][ERROR] Cannot get result if hasError() is true")
        return value

    response.has_error = has_error
    response.__getattribute__ = get
    assert "result" in fields
