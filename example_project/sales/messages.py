"""The answer of the query "sales.by_day"."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from common.money import Money


@dataclass(frozen=True, slots=True)
class SalesRow:
    """What was ordered on one day, and not cancelled."""

    day: date
    orders: int
    revenue: Money
