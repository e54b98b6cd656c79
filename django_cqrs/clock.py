"""The time by which delays, leases and windows are counted."""

from __future__ import annotations

from datetime import UTC, datetime

from django.conf import settings
from django.utils import timezone


def now() -> datetime:
    """
    Return the time with its zone, also where the project uses none.

    By the clock on the wall an hour comes twice in a year, and another does not come.
    """
    return timezone.now() if settings.USE_TZ else datetime.now(UTC)
