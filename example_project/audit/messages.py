"""The answers of the audit app's query."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class TrailRow:
    """One thing that happened to an order."""

    event: str
    details: dict[str, Any]
    executor: str
    happened_at: datetime
    correlation_id: UUID
