"""The outbox in Django's admin: messages, dead letters, journal, results, timelines."""

from __future__ import annotations

from django_cqrs.outbox.admin.dead_letters import DeadLetterAdmin
from django_cqrs.outbox.admin.journal_entries import JournalEntryAdmin
from django_cqrs.outbox.admin.outbox_messages import OutboxMessageAdmin
from django_cqrs.outbox.admin.task_results import StoredTaskResultAdmin
from django_cqrs.outbox.admin.timeline_pages import TimelineMixin
from django_cqrs.outbox.admin.workers import WorkerRecordAdmin

__all__ = [
    "DeadLetterAdmin",
    "JournalEntryAdmin",
    "OutboxMessageAdmin",
    "StoredTaskResultAdmin",
    "TimelineMixin",
    "WorkerRecordAdmin",
]
