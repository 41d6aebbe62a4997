"""Arrays as torch's tensors on the host. torch is passed in: nothing is imported here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BFLOAT16 = np.dtype("V2")  # numpy has none: as the library writes it


def host_tensor(torch: Any, array: NDArray[Any]) -> Any:
    """A tensor on the host with an array's values, which it shares."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
