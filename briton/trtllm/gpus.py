"""The GPUs that `resources.accelerator` may name.

Memory is what the driver reports, which is less than the name says; bandwidth is the data sheet's, of the form that
cloud providers rent (SXM where there is one). H100_40GB is a 3g.40gb slice of an H100: half of its memory and of its
bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from briton.config.enums import Accelerator

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]
    bandwidth: float  # bytes a second, to its own memory

    @property
    def capability(self) -> str:
        """As NVIDIA writes it: "9.0"."""
        return "{}.{}".format(*self.compute_capability)

    @property
    def has_fp8(self) -> bool:
        """8-bit floating point matrix products: Ada, Hopper, Blackwell."""
        return self.compute_capability >= (8, 9)

    @property
    def has_fp4(self) -> bool:
        """4-bit floating point matrix products: Blackwell."""
        return self.compute_capability >= (10, 0)

    @property
    def has_integer_kernels(self) -> bool:
        """Whether TensorRT-LLM quantizes to integers: its builder refuses INT8, INT4, SmoothQuant on SM 100 to 119."""
        return not (10, 0) <= self.compute_capability < (12, 0)

    @property
    def has_lookahead(self) -> bool:
        """Lookahead decoding needs Ampere or newer."""
        return self.compute_capability >= (8, 0)


def _gpu(name: Accelerator, mebibytes: int, capability: tuple[int, int], gigabytes_a_second: int) -> tuple[str, Gpu]:
    return name.value, Gpu(name.value, mebibytes * _MIB, capability, gigabytes_a_second * 1e9)


GPUS: dict[str, Gpu] = dict(
    (
        _gpu(Accelerator.T4, 15_360, (7, 5), 320),
        _gpu(Accelerator.L4, 23_034, (8, 9), 300),
        _gpu(Accelerator.A10G, 23_028, (8, 6), 600),
        _gpu(Accelerator.V100, 16_384, (7, 0), 900),
        _gpu(Accelerator.A100, 81_920, (8, 0), 2039),
        _gpu(Accelerator.A100_40GB, 40_960, (8, 0), 1555),
        _gpu(Accelerator.H100, 81_559, (9, 0), 3350),
        _gpu(Accelerator.H100_40GB, 40_448, (9, 0), 1675),
        _gpu(Accelerator.H200, 143_771, (9, 0), 4800),
        _gpu(Accelerator.L40S, 46_068, (8, 9), 864),
        _gpu(Accelerator.RTX_PRO_6000, 97_887, (12, 0), 1597),
        _gpu(Accelerator.B200, 183_359, (10, 0), 8000),
        _gpu(Accelerator.B300, 275_040, (10, 3), 8000),
        _gpu(Accelerator.GB300, 284_208, (10, 3), 8000),
    )
)
