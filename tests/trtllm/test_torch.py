"""What asks torch itself, on the device that BRITON_TORCH_DEVICE names, "cpu" unless set.

Like tests/trtllm/test_mask_device.py it is run by `make test-torch` and `make test-cuda`, and needs nothing but torch,
numpy and pytest.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from briton.trtllm.host_tensor import BFLOAT16, host_tensor
from briton.trtllm.machine import this_machine

DEVICE = os.environ.get("BRITON_TORCH_DEVICE", "cpu")
torch: Any = pytest.importorskip("torch", reason="torch is not installed: what it answers is not tested")


def test_tensors_share_an_arrays_values() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = host_tensor(torch, array)
    array[1, 2] = 7
    assert tensor.to(DEVICE).tolist() == [[0, 1, 2], [3, 4, 7]]


def test_bits_of_bfloat16_are_its_values() -> None:
    values = np.array([0.0, 1.0, -2.5, 3.140625, np.inf, 1e-40], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    tensor = host_tensor(torch, bits.view(BFLOAT16)).to(DEVICE)
    assert tensor.dtype == torch.bfloat16
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(tensor.cpu().float().numpy(), widened)


@pytest.mark.skipif(DEVICE == "cpu", reason="for a GPU: make test-cuda")
def test_the_drivers_gpus_are_torchs() -> None:
    """`this_machine` asks NVIDIA's management library; what it says decides what is built and where."""
    here = this_machine()
    assert here.driver_error is None
    told = dict(zip(here.gpus, here.gpu_architectures, strict=True))
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        assert told[torch.cuda.get_device_name(index)] == f"sm_{major}{minor}"
