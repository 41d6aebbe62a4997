"""How long TorchMaskDevice takes on one device, for a step of so many rows, as one line of JSON.

    python tests/torch_device/mask_timing.py --device cuda|cpu

`device_us`: from the first operation on the stream to the last, by CUDA's events (on a CPU, by the clock). `host_us`:
how long the executor's thread is kept. Medians. `new`: all masks of the step are new and copied to the device;
`known`: all are there. A step of a large model takes some 10,000 us.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from briton.trtllm.mask_device import MaskSizes, TorchMaskDevice

VOCABULARY = 128_256  # Llama 3's
ROWS = (1, 8, 64, 256)
REPEATS, WARM_UP = 30, 5


def main() -> None:
    """Measure every size, and print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    rows = ROWS if device == "cuda" else ROWS[:2]
    told = {
        "benchmark": "mask_device",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "vocabulary": VOCABULARY,
        "dtype": "float32",
        "rows": {str(number): measure(torch, device, number) for number in rows},
    }
    print(json.dumps(told), flush=True)


def measure(torch: Any, device: str, num_rows: int) -> dict[str, dict[str, float]]:
    """Of a step of so many rows: {new or known: {host_us, device_us}}."""
    sizes = MaskSizes(VOCABULARY // 32, num_slots=2 * num_rows, max_rows=num_rows)
    masks = TorchMaskDevice(torch, sizes, device)
    logits = [torch.zeros((1, 1, VOCABULARY), dtype=torch.float32, device=device) for _ in range(num_rows)]
    stream = torch.cuda.Stream() if device == "cuda" else None
    measured = {}
    for name, num_new in (("new", num_rows), ("known", 0)):
        times = [step(torch, masks, sizes, logits, num_new, stream) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
        host, on_device = (round(statistics.median(each), 1) for each in zip(*times, strict=True))
        measured[name] = {"host_us": host, "device_us": on_device}
    return measured


def step(
    torch: Any, masks: TorchMaskDevice, sizes: MaskSizes, logits: list[Any], num_new: int, stream: Any
) -> tuple[float, float]:
    """One step: (microseconds of the host, microseconds of the device)."""
    buffer = masks.host_buffer()
    buffer[: len(logits)] = np.arange(len(logits))
    buffer[sizes.max_rows : sizes.max_rows + num_new] = np.arange(num_new)
    buffer[sizes.num_header_words : sizes.num_header_words + num_new * sizes.num_words] = -1
    if stream is None:
        started = time.perf_counter()
        masks.apply(logits, num_new, 0)
        took = (time.perf_counter() - started) * 1e6
        return took, took
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    started = time.perf_counter()
    begin.record(stream)
    masks.apply(logits, num_new, stream.cuda_stream)
    end.record(stream)
    host = (time.perf_counter() - started) * 1e6
    stream.synchronize()
    return host, begin.elapsed_time(end) * 1e3


if __name__ == "__main__":
    main()
