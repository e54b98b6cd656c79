"""Schedules: commands that are sent at the times of a timetable."""

from __future__ import annotations

from django_cqrs.schedules.declarations import scheduled
from django_cqrs.schedules.timetables import cron, every

__all__ = ["cron", "every", "scheduled"]
