"""What is sent: as a dataclass where the queue takes one, else the same as JSON."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class CountOrder:
    """For the handler that does nothing."""

    number: int
    total: int = 1250
    currency: str = "EUR"


@dataclasses.dataclass(frozen=True, slots=True)
class RecordOrder:
    """For the handler that inserts one row."""

    number: int
    total: int = 1250
    currency: str = "EUR"
