"""Which mask is in which slot of the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple


class Slot(NamedTuple):
    """Where a mask is, or goes."""

    number: int
    is_new: bool  # it has to be sent


class MaskSlots:
    """Slots by recency: a mask that has a name is sent once, and stays until others need its slot.

    The first `max_rows` slots are for masks without a name, which are good for one step.
    """

    def __init__(self, num_slots: int, max_rows: int) -> None:
        """Raises ValueError where one step could push out its own masks."""
        if num_slots < 2 * max_rows:
            raise ValueError(f"{num_slots} slots are too few for {max_rows} rows: at least {2 * max_rows} are needed")
        self._slot_of: OrderedDict[Hashable, int] = OrderedDict()  # least recently used first
        self._first_kept = max_rows
        self._num_slots = num_slots

    def named(self, name: Hashable) -> Slot:
        """The slot of a mask that always looks the same."""
        number = self._slot_of.get(name)
        if number is not None:
            self._slot_of.move_to_end(name)
            return Slot(number, is_new=False)
        number = self._first_kept + len(self._slot_of)
        if number == self._num_slots:
            number = self._slot_of.popitem(last=False)[1]
        self._slot_of[name] = number
        return Slot(number, is_new=True)

    def forget(self) -> None:
        """Nothing is known of the device any more."""
        self._slot_of.clear()
