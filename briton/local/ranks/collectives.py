"""What a rank's model asks of the other ranks while it is made, and the answers where there are none."""

from __future__ import annotations

from typing import Protocol

from briton.local.models.all_reduce import SumOverRanks


class Collectives(Protocol):
    """The ranks of one model, seen from one of them. All ranks make the same calls (`communicator.Communicator`)."""

    @property
    def rank(self) -> int:
        """This rank's number."""
        ...

    @property
    def ranks_on_host(self) -> int:
        """How many share this machine's cores and memory."""
        ...

    @property
    def sum_over_ranks(self) -> SumOverRanks | None:
        """Adds up what ranks computed; None: one has all."""
        ...

    def smallest(self, value: int) -> int:
        """The smallest of all ranks' values."""
        ...

    def sum_on_host(self, value: int) -> int:
        """The sum over the ranks of this machine."""
        ...


class SingleRank:
    """One rank, which agrees with itself."""

    rank = 0
    ranks_on_host = 1
    sum_over_ranks: SumOverRanks | None = None

    def smallest(self, value: int) -> int:
        """See Collectives."""
        return value

    def sum_on_host(self, value: int) -> int:
        """See Collectives."""
        return value
