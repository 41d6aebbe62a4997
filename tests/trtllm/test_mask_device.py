"""TorchMaskDevice does what the numpy one does, on the torch device that BRITON_TORCH_DEVICE names, "cpu" unless set.

torch is not in the project's own environment: `make test-torch` has it on a CPU, `make test-cuda` on a GPU.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from briton.trtllm.mask_device import ROWS_AT_ONCE, MaskDevice, MaskSizes, TorchMaskDevice
from tests.trtllm.numpy_mask_device import NumpyMaskDevice

NUM_SLOTS, MAX_ROWS = 400, 2 * ROWS_AT_ONCE + 2
DEVICE = os.environ.get("BRITON_TORCH_DEVICE", "cpu")


def test_the_buffers_layout() -> None:
    sizes = MaskSizes(num_words=3, num_slots=20, max_rows=4)
    assert (sizes.num_header_words, sizes.num_buffer_words) == (8, 20)
    device = NumpyMaskDevice(sizes)
    first = device.host_buffer()
    assert device.host_buffer() is not first  # the first may still be on its way
    assert device.host_buffer() is first


@pytest.mark.parametrize(("vocab", "padded"), [(90, 92), (96, 96), (96, 200), (64, 64), (1000, 1024)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_does_what_numpy_does(vocab: int, padded: int, dtype: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed: TorchMaskDevice is not tested")
    sizes = MaskSizes(-(-vocab // 32), NUM_SLOTS, MAX_ROWS)
    devices: tuple[MaskDevice, MaskDevice] = TorchMaskDevice(torch, sizes, DEVICE), NumpyMaskDevice(sizes)
    stream = torch.cuda.Stream() if DEVICE != "cpu" else None
    random = np.random.default_rng(vocab)
    written: set[int] = set()
    for num_rows, num_new in ((MAX_ROWS, MAX_ROWS), (3, 0), (ROWS_AT_ONCE, 5), (1, 1)):
        new_slots = random.choice(NUM_SLOTS, num_new, replace=False)
        written |= {int(slot) for slot in new_slots}
        slots = random.choice(sorted(written), num_rows)
        masks = random.integers(-(2**31), 2**31, (num_new, sizes.num_words)).astype(np.int32)
        values = random.standard_normal((num_rows, 1, 1, padded)).astype(np.float32)
        tensors = [torch.from_numpy(row.copy()).to(DEVICE, getattr(torch, dtype)) for row in values]
        arrays = [tensor.float().cpu().numpy().copy() for tensor in tensors]
        for device, logits in zip(devices, (tensors, arrays), strict=True):
            buffer = device.host_buffer()
            buffer[:num_rows] = slots
            buffer[MAX_ROWS : MAX_ROWS + num_new] = new_slots
            buffer[sizes.num_header_words :][: masks.size] = masks.ravel()
            device.apply(logits, num_new, stream.cuda_stream if stream else 0)
        if stream:
            stream.synchronize()
        for tensor, array in zip(tensors, arrays, strict=True):
            assert np.array_equal(tensor.float().cpu().numpy(), array)
