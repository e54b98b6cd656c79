"""The clock for delays, leases and windows."""

from __future__ import annotations

from datetime import UTC, datetime

from django.conf import settings
from django.utils import timezone


def now() -> datetime:
    """
    Return the time with its zone, even if the project uses none.

    On a local clock one hour a year comes twice, and another one never.
    """
    return timezone.now() if settings.USE_TZ else datetime.now(UTC)
