"""What is sent: as a dataclass where the queue takes one, else the same as JSON."""

from __future__ import annotations

import dataclasses
from typing import Final

ORDERS: Final = 1_000


@dataclasses.dataclass(frozen=True, slots=True)
class CountOrder:
    """For the handler that does nothing."""

    number: int
    total: int = 1250
    currency: str = "EUR"


@dataclasses.dataclass(frozen=True, slots=True)
class CountLine:
    """For the handler that does nothing, and keeps the lines of an order in turn."""

    number: int
    total: int = 1250
    currency: str = "EUR"

    @property
    def order(self) -> int:
        """Which of the thousand orders it is of."""
        return self.number % ORDERS


@dataclasses.dataclass(frozen=True, slots=True)
class RecordLine(CountLine):
    """Likewise, for the handler that inserts one row."""


@dataclasses.dataclass(frozen=True, slots=True)
class RecordOrder:
    """For the handler that inserts one row."""

    number: int
    total: int = 1250
    currency: str = "EUR"
