"""The tables of the outbox: messages, dead letters, seen keys, journal, results."""

from __future__ import annotations

from typing import ClassVar, Final

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_cqrs.models import NameField, PartialIndex
from django_cqrs.times import MomentField


class State(models.IntegerChoices):
    """The state of a message. A handled one no longer has a row."""

    READY = 0, _("ready")
    DELAYED = 1, _("delayed")
    CLAIMED = 2, _("claimed")
    ABANDONED = 3, _("abandoned")
    PARKED = 4, _("parked")
    FORWARDED = 5, _("forwarded")


MOST_ATTEMPTS: Final = 2**31 - 1
"""The number of attempts that every database can count."""


class StoredMessage(models.Model):
    """A message in transit: names, bytes, ids and times."""

    channel = NameField(_("channel"), max_length=100)
    endpoint = NameField(_("endpoint"), max_length=255)
    name = NameField(_("message"), max_length=255, blank=True)
    version = models.PositiveSmallIntegerField(_("version"), default=1)
    payload = models.BinaryField(_("payload"))
    headers = models.BinaryField(_("headers"))
    # The log names this id; ids grow with time, so that an index grows at its end.
    message_id = models.UUIDField(_("message id"), db_index=True)
    correlation_id = models.UUIDField(_("correlation id"), db_index=True)
    causation_id = models.UUIDField(_("causation id"), null=True)
    sent_at = MomentField(_("sent at"))
    sequence = models.BigIntegerField(_("sequence"))
    priority = models.IntegerField(_("priority"), default=0)
    expires_at = MomentField(_("expires at"), null=True)
    # Most messages have none, and those are not indexed.
    ordering_key = NameField(_("ordering key"), max_length=255, null=True)
    # The aggregate or saga that it is for, if known.
    subject = NameField(_("subject"), max_length=255, blank=True, default="")
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    # The tenant whose message it is, in a project with tenants.
    tenant = NameField(_("tenant"), max_length=100, null=True)

    class Meta:
        """No table of its own."""

        abstract = True

    def __str__(self) -> str:
        """Return the message's name and its endpoint."""
        return f"{self.name or 'value'} for {self.endpoint}"


class OutboxMessage(StoredMessage):
    """A message for one endpoint that has not been handled."""

    state = models.PositiveSmallIntegerField(
        _("state"), choices=State.choices, default=State.READY
    )
    available_at = MomentField(_("available at"), null=True)
    owner = models.CharField(_("owner"), max_length=100, null=True)  # noqa: DJ001 - nobody's is not one whose name is empty
    lease_expires_at = MomentField(_("lease expires at"), null=True)
    # The number of claims; the owner names one claim, and guards against others.
    token = models.BigIntegerField(_("token"), default=0)
    # The last error of a message to be retried: one line, without sensitive data.
    last_error = models.TextField(_("last error"), null=True)  # noqa: DJ001 - most have had none

    objects: ClassVar[models.Manager[OutboxMessage]] = models.Manager()

    class Meta(StoredMessage.Meta):
        """The hot table: small, since handled messages are deleted."""

        verbose_name = _("message")
        verbose_name_plural = _("messages")
        default_permissions = ("view", "delete")
        indexes: ClassVar[list[models.Index]] = [
            # The claim walks this index, and never over delayed or claimed rows.
            models.Index(
                fields=["channel", "state", "-priority", "sequence"],
                name="cqrs_outbox_turn",
            ),
            # Due messages, and expired leases.
            PartialIndex(
                fields=["channel", "available_at"],
                where=models.Q(state=State.DELAYED),
                name="cqrs_outbox_due",
            ),
            # The messages of one key: the one that blocks it, and the rest in order.
            PartialIndex(
                fields=["ordering_key", "endpoint", "state", "sequence"],
                where=models.Q(ordering_key__isnull=False),
                name="cqrs_outbox_key",
            ),
            # The timers of a saga, which end with it, and other messages for an object.
            PartialIndex(
                fields=["subject"],
                where=~models.Q(subject=""),
                name="cqrs_outbox_subject",
            ),
        ]


class Reason(models.TextChoices):
    """The reason why a message was given up."""

    FAILED = "failed", _("the handler failed")
    POISON = "poison", _("it kills its worker")
    UNDECODABLE = "undecodable", _("its payload cannot be read")
    UNKNOWN_MESSAGE = "unknown_message", _("no class has its name")
    UNKNOWN_ENDPOINT = "unknown_endpoint", _("no handler has its endpoint's name")


class DeadLetter(StoredMessage):
    """A message that failed for good, with its original bytes."""

    reason = models.CharField(_("reason"), max_length=20, choices=Reason.choices)
    exception = models.CharField(_("exception"), max_length=255, blank=True)
    error = models.TextField(_("error"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    failed_at = MomentField(_("failed at"))

    objects: ClassVar[models.Manager[DeadLetter]] = models.Manager()

    class Meta(StoredMessage.Meta):
        """A table of its own, so that dead letters slow nothing down."""

        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")
        default_permissions = ("view", "delete")
        permissions = (
            ("replay_deadletter", _("Can replay dead letters")),
            ("edit_deadletter", _("Can edit and replay dead letters")),
        )
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["channel", "failed_at"], name="cqrs_dead_channel"),
            # The queries of the admin, newest first.
            models.Index(fields=["endpoint", "id"], name="cqrs_dead_endpoint"),
            models.Index(fields=["name", "id"], name="cqrs_dead_name"),
            models.Index(fields=["reason", "id"], name="cqrs_dead_reason"),
            PartialIndex(
                fields=["subject"],
                where=~models.Q(subject=""),
                name="cqrs_dead_subject",
            ),
            PartialIndex(
                fields=["ordering_key", "endpoint", "sequence"],
                where=models.Q(ordering_key__isnull=False),
                name="cqrs_dead_key",
            ),
            PartialIndex(
                fields=["tenant", "id"],
                where=models.Q(tenant__isnull=False),
                name="cqrs_dead_tenant",
            ),
        ]


class ReplayBatch(models.Model):
    """Dead letters that a user wants replayed, to be put back in one transaction."""

    # The batches of one request share this number.
    request = models.UUIDField(_("request"))
    total = models.PositiveIntegerField(_("dead letters of the request"))
    letters = models.JSONField(_("ids of dead letters"))
    count = models.PositiveIntegerField(_("dead letters"))
    user = models.CharField(_("id of the user"), max_length=255, blank=True)
    user_name = models.CharField(_("user"), max_length=255, blank=True)
    requested_at = MomentField(_("requested at"))
    # A batch that fails is retried until it succeeds.
    available_at = MomentField(_("available at"), db_index=True)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    error = models.TextField(_("error"), blank=True, default="")

    objects: ClassVar[models.Manager[ReplayBatch]] = models.Manager()

    class Meta:
        """A few rows, deleted when the worker has replayed them."""

        verbose_name = _("batch of dead letters to replay")
        verbose_name_plural = _("batches of dead letters to replay")
        default_permissions = ("view",)

    def __str__(self) -> str:
        """Return the number of dead letters in it."""
        return f"{self.count} of {self.total}"


class InboxEntry(models.Model):
    """A key that an endpoint or a bus has seen: the next message is a duplicate."""

    endpoint = NameField(_("endpoint"), max_length=300)
    key = NameField(_("key"), max_length=255)
    message_id = models.UUIDField(_("message id"))
    created_at = MomentField(_("created at"), db_index=True)
    result = models.BinaryField(_("result"), null=True)
    outputs = models.BinaryField(_("messages sent"), null=True)

    objects: ClassVar[models.Manager[InboxEntry]] = models.Manager()

    class Meta:
        """Unique by a plain constraint, which every database enforces."""

        verbose_name = _("inbox entry")
        verbose_name_plural = _("inbox entries")
        default_permissions = ("view", "delete")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["endpoint", "key"], name="cqrs_inbox_once"),
        ]

    def __str__(self) -> str:
        """Return the owner and the key."""
        return f"{self.key} of {self.endpoint}"


class Throughput(models.Model):
    """The messages of a channel that were tried in one minute; kept for a day."""

    minute = MomentField(_("minute"))
    channel = NameField(_("channel"), max_length=100)
    handled = models.PositiveIntegerField(_("handled"), default=0)
    failed = models.PositiveIntegerField(_("failed"), default=0)

    objects: ClassVar[models.Manager[Throughput]] = models.Manager()

    class Meta:
        """A few rows, to which all workers add at intervals."""

        verbose_name = _("minute of throughput")
        verbose_name_plural = _("minutes of throughput")
        default_permissions = ("view",)
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["minute", "channel"], name="cqrs_throughput_once"
            ),
        ]

    def __str__(self) -> str:
        """Return the counts and their minute."""
        return f"{self.handled} of {self.channel} in {self.minute:%Y-%m-%d %H:%M}"


class WorkerRecord(models.Model):
    """A worker of some channels; kept for a day after its last sign of life."""

    name = models.CharField(_("name"), max_length=100, unique=True)
    # The aliases, sorted, one a line.
    channels = models.TextField(_("channels"))
    started_at = MomentField(_("since"))
    seen_at = MomentField(_("last sign of life"), db_index=True)
    stopped_at = MomentField(_("stopped at"), null=True)

    objects: ClassVar[models.Manager[WorkerRecord]] = models.Manager()

    class Meta:
        """A few rows, in which each worker gives a sign of life now and then."""

        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        default_permissions = ("view",)

    def __str__(self) -> str:
        """Return the worker's name."""
        return f"{self.name}"


class PausedChannel(models.Model):
    """A channel whose messages are not handled until somebody resumes it."""

    channel = NameField(_("channel"), max_length=100, unique=True)
    paused_at = MomentField(_("paused at"))
    paused_by = models.CharField(_("user"), max_length=255, blank=True, default="")
    reason = models.CharField(_("reason"), max_length=255, blank=True, default="")

    objects: ClassVar[models.Manager[PausedChannel]] = models.Manager()

    class Meta:
        """A few rows, which workers read every second."""

        verbose_name = _("paused channel")
        verbose_name_plural = _("paused channels")
        default_permissions = ("view",)
        permissions = (("pause_channel", _("Can pause and resume channels")),)

    def __str__(self) -> str:
        """Return the alias of the channel."""
        return f"{self.channel}"


class Outcome(models.TextChoices):
    """The outcome of one attempt at handling a message."""

    HANDLED = "handled", _("handled")
    FAILED = "failed", _("failed")
    DROPPED = "dropped", _("failed and dropped")
    EXPIRED = "expired", _("expired")
    CANCELLED = "cancelled", _("cancelled")
    SKIPPED = "skipped", _("skipped")


class JournalEntry(models.Model):
    """The outcome of a message at one endpoint; kept as long as the settings say."""

    at = MomentField(_("at"))
    message_id = models.UUIDField(_("message id"))
    correlation_id = models.UUIDField(_("correlation id"))
    causation_id = models.UUIDField(_("causation id"), null=True)
    # Both are unknown for a waiting message whose handler no longer exists.
    kind = models.CharField(_("kind"), max_length=10, blank=True)
    name = NameField(_("message"), max_length=255, blank=True)
    endpoint = NameField(_("endpoint"), max_length=255)
    # None if the handler was called directly.
    channel = NameField(_("channel"), max_length=100, null=True)
    subject = NameField(_("subject"), max_length=255, blank=True, default="")
    outcome = models.CharField(_("outcome"), max_length=10, choices=Outcome.choices)
    attempts = models.PositiveIntegerField(_("attempts"), default=1)
    # In microseconds; None if no handler was called.
    duration = models.PositiveBigIntegerField(_("duration"), null=True)
    exception = models.CharField(_("exception"), max_length=255, blank=True)
    error = models.CharField(_("error"), max_length=255, blank=True)
    tenant = NameField(_("tenant"), max_length=100, null=True)

    objects: ClassVar[models.Manager[JournalEntry]] = models.Manager()

    class Meta:
        """Written by every command if it is on, so it has no unused index."""

        verbose_name = _("journal entry")
        verbose_name_plural = _("journal entries")
        default_permissions = ("view",)
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["correlation_id"], name="cqrs_journal_correlation"),
            models.Index(fields=["message_id"], name="cqrs_journal_message"),
            models.Index(fields=["subject", "at"], name="cqrs_journal_subject"),
            models.Index(fields=["at"], name="cqrs_journal_at"),
        ]

    def __str__(self) -> str:
        """Return the outcome, the message and its place."""
        return f"{self.name or 'value'} for {self.endpoint}: {self.outcome}"


class TaskStatus(models.TextChoices):
    """The status of a task that a worker has tried, in the words of Django's tasks."""

    READY = "READY", _("ready")
    FAILED = "FAILED", _("failed")
    SUCCESSFUL = "SUCCESSFUL", _("successful")


class StoredTaskResult(models.Model):
    """The outcome of a task of ``TASKS`` that a worker has tried at least once."""

    # The id of its message. Ids grow with time, so that the index grows at its end.
    id = models.UUIDField(_("message id"), primary_key=True)
    correlation_id = models.UUIDField(_("correlation id"))
    channel = NameField(_("channel"), max_length=100)
    # The backend's alias and the task's path.
    endpoint = NameField(_("endpoint"), max_length=255)
    priority = models.IntegerField(_("priority"), default=0)
    # The arguments and the options of the call, as they were stored in the message.
    payload = models.BinaryField(_("payload"))
    enqueued_at = MomentField(_("enqueued at"))
    status = models.CharField(_("status"), max_length=10, choices=TaskStatus.choices)
    started_at = MomentField(_("started at"), null=True)
    last_attempted_at = MomentField(_("last attempted at"))
    finished_at = MomentField(_("finished at"), null=True)
    # JSON text, since the JSON types of databases refuse some of it.
    worker_ids = models.BinaryField(_("worker ids"), default=b"[]")
    errors = models.BinaryField(_("errors"), default=b"[]")
    return_value = models.BinaryField(_("return value"), null=True)
    tenant = NameField(_("tenant"), max_length=100, null=True)

    objects: ClassVar[models.Manager[StoredTaskResult]] = models.Manager()

    class Meta:
        """One row for each task that was tried, deleted some time after its end."""

        verbose_name = _("task result")
        verbose_name_plural = _("task results")
        default_permissions = ("view",)
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["last_attempted_at"], name="cqrs_task_last"),
        ]

    def __str__(self) -> str:
        """Return the task and its status."""
        return f"{self.endpoint}: {self.status}"
