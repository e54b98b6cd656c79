"""Times as the database has them, and as messages do: those always have a zone."""

from __future__ import annotations

from datetime import datetime

from django.conf import settings
from django.utils import timezone


def as_stored(moment: datetime) -> datetime:
    """Return a time as the database takes it, without a zone where none is used."""
    if settings.USE_TZ or timezone.is_naive(moment):
        return moment
    return timezone.make_naive(moment)


def as_sent(moment: datetime) -> datetime:
    """Return a time that the database gave, with its zone."""
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment
