"""The tables of events: streams, what happened in them, and who follows them."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.translation import gettext_lazy as _

from django_cqrs.models import NameField, PartialIndex
from django_cqrs.times import MomentField


class ExactField(NameField):
    """Text that differs from any other text, also from one with a space at its end."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        """Compare without padding on MySQL and MariaDB, as other databases do."""
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql":
            is_mariadb = getattr(connection, "mysql_is_mariadb", False)
            name = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
            parameters["collation"] = name
        return parameters


class Stream(models.Model):
    """The events of one thing: ``shop.basket-7f3`` is a category and a key."""

    category = NameField(_("category"), max_length=100)
    # Empty for a stream without a category, whose name has no hyphen.
    key = NameField(_("key"), max_length=255, blank=True)
    created_at = MomentField(_("created at"))
    archived_at = MomentField(_("archived at"), null=True)
    deleted_at = MomentField(_("deleted at"), null=True)
    # The first version that is still in the table of events.
    first_version = models.PositiveIntegerField(_("first version"), default=1)

    objects: ClassVar[models.Manager[Stream]] = models.Manager()

    class Meta:
        """A row that is locked while an aggregate of it acts."""

        verbose_name = _("stream")
        verbose_name_plural = _("streams")
        default_permissions = ("view",)
        permissions = (("archive_stream", _("Can archive streams")),)
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["category", "key"], name="cqrs_stream_once"
            ),
        ]

    def __str__(self) -> str:
        """Return its name."""
        return f"{self.category}-{self.key}" if self.key else self.category


class EventRow(models.Model):
    """An event as a row: its name, its JSON, and its origin."""

    # No constraints of foreign keys: rows are inserted by the thousand, never joined.
    stream_id = models.BigIntegerField(_("stream"), null=True)
    version = models.PositiveIntegerField(_("version"), null=True)
    name = NameField(_("event"), max_length=255)
    shape = models.SmallIntegerField(_("version of the shape"), default=1)
    payload = models.JSONField(_("payload"))
    headers = models.JSONField(_("headers"))
    event_id = models.UUIDField(_("event id"), unique=True)
    correlation_id = models.UUIDField(_("correlation id"), db_index=True)
    causation_id = models.UUIDField(_("causation id"), null=True)
    recorded_at = MomentField(_("recorded at"))
    # The position of the event that a link stands for.
    link_to = models.BigIntegerField(_("link to"), null=True)

    class Meta:
        """No table of its own."""

        abstract = True

    def __str__(self) -> str:
        """Return its name and its position."""
        return f"{self.name} at {self.pk}"


class StoredEvent(EventRow):
    """An event in its stream, and at its position in the whole store."""

    position = models.BigAutoField(_("position"), primary_key=True)

    objects: ClassVar[models.Manager[StoredEvent]] = models.Manager()

    class Meta(EventRow.Meta):
        """Rows are only added."""

        verbose_name = _("event")
        verbose_name_plural = _("events")
        default_permissions = ("view",)
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["stream_id", "version"], name="cqrs_event_version_once"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            PartialIndex(
                fields=["link_to", "stream_id"],
                where=models.Q(link_to__isnull=False),
                name="cqrs_event_link",
            ),
        ]


class ArchivedEvent(EventRow):
    """An event of an archived stream, at the position that it always had."""

    position = models.BigIntegerField(_("position"), primary_key=True)

    objects: ClassVar[models.Manager[ArchivedEvent]] = models.Manager()

    class Meta(EventRow.Meta):
        """A table of its own, so that followers and appends do not meet them."""

        verbose_name = _("archived event")
        verbose_name_plural = _("archived events")
        default_permissions = ("view",)
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["stream_id", "version"], name="cqrs_archived_version_once"
            ),
        ]


class EventTag(models.Model):
    """A subject of an event, beside its stream: ``course:42``."""

    pk = models.CompositePrimaryKey("tag", "position")
    tag = ExactField(_("tag"), max_length=255)
    position = models.BigIntegerField(_("position"))
    name = NameField(_("event"), max_length=255)

    objects: ClassVar[models.Manager[EventTag]] = models.Manager()

    class Meta:
        """Found by tag, in order of position."""

        verbose_name = _("tag")
        verbose_name_plural = _("tags")
        default_permissions = ("view",)

    def __str__(self) -> str:
        """Return the tag and its position."""
        return f"{self.tag} at {self.position}"


class NaturalKey(models.Model):
    """A value that one stream of a category has, and no other."""

    category = NameField(_("category"), max_length=100)
    value = ExactField(_("value"), max_length=255)
    stream_id = models.BigIntegerField(_("stream"), db_index=True)

    objects: ClassVar[models.Manager[NaturalKey]] = models.Manager()

    class Meta:
        """Unique by a plain constraint, which every database enforces."""

        verbose_name = _("natural key")
        verbose_name_plural = _("natural keys")
        default_permissions = ("view",)
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["category", "value"], name="cqrs_natural_key_once"
            ),
        ]

    def __str__(self) -> str:
        """Return the category and the value."""
        return f"{self.category} {self.value}"


class Snapshot(models.Model):
    """The state of an aggregate at a version of its stream."""

    stream_id = models.BigIntegerField(_("stream"), primary_key=True)
    version = models.PositiveIntegerField(_("version"))
    fingerprint = models.CharField(_("fingerprint"), max_length=64)
    state = models.JSONField(_("state"))
    taken_at = MomentField(_("taken at"))

    objects: ClassVar[models.Manager[Snapshot]] = models.Manager()

    class Meta:
        """One for each stream, which the next one overwrites."""

        verbose_name = _("snapshot")
        verbose_name_plural = _("snapshots")
        default_permissions = ("view",)

    def __str__(self) -> str:
        """Return its stream and version."""
        return f"stream {self.stream_id} at version {self.version}"


class Status(models.TextChoices):
    """The status of a generation."""

    NEW = "new", _("new")
    BUILDING = "building", _("building")
    READY = "ready", _("ready")
    LIVE = "live", _("live")
    PAUSED = "paused", _("paused")
    FAILED = "failed", _("failed")
    RETIRED = "retired", _("retired")


class Generation(models.Model):
    """One filling of a projection's views: live, being built, or retired."""

    projection = NameField(_("projection"), max_length=200)
    version = models.PositiveIntegerField(_("version"), default=1)
    build = models.PositiveIntegerField(_("build"), default=1)
    status = models.CharField(
        _("status"), max_length=10, choices=Status.choices, default=Status.NEW
    )
    # True or nothing, so that a plain constraint keeps one of each projection.
    is_live = models.BooleanField(_("live"), null=True)
    # What the worker is to do with it next.
    wanted = models.CharField(_("wanted"), max_length=20, blank=True, default="")
    # The position at which that is done.
    target = models.BigIntegerField(_("target"), null=True)
    # The schema of its views on PostgreSQL; empty for the tables of the models.
    views = models.CharField(_("views"), max_length=63, blank=True, default="")
    # Each name that it handles, with the position since which it has been handled.
    names = models.JSONField(_("names"), default=dict)
    error = models.TextField(_("error"), blank=True, default="")
    created_at = MomentField(_("created at"))
    switched_at = MomentField(_("switched at"), null=True)

    objects: ClassVar[models.Manager[Generation]] = models.Manager()

    class Meta:
        """A few rows for each projection."""

        verbose_name = _("projection")
        verbose_name_plural = _("projections")
        default_permissions = ("view",)
        permissions = (
            ("operate_generation", _("Can pause, resume and run projections")),
            ("rebuild_generation", _("Can rebuild, reset and delete projections")),
        )
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["projection", "version", "build"], name="cqrs_generation_once"
            ),
            models.UniqueConstraint(
                fields=["projection", "is_live"], name="cqrs_generation_live_once"
            ),
        ]

    def __str__(self) -> str:
        """Return its projection and version."""
        return f"{self.projection} {self.version}"


class Shard(models.Model):
    """One of the parts of a generation that are followed side by side."""

    generation_id = models.BigIntegerField(_("generation"))
    number = models.PositiveIntegerField(_("number"))
    position = models.BigIntegerField(_("position"), default=0)
    state = models.JSONField(_("state"), null=True)
    owner = models.CharField(_("owner"), max_length=100, blank=True, default="")
    lease_expires_at = MomentField(_("lease expires at"), null=True)
    token = models.BigIntegerField(_("token"), default=0)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    error = models.TextField(_("error"), blank=True, default="")
    failed_position = models.BigIntegerField(_("failed position"), null=True)
    retry_at = MomentField(_("retry at"), null=True)
    handled = models.BigIntegerField(_("handled"), default=0)
    updated_at = MomentField(_("updated at"))

    objects: ClassVar[models.Manager[Shard]] = models.Manager()

    class Meta:
        """Its row is locked by the transaction of a batch."""

        verbose_name = _("shard")
        verbose_name_plural = _("shards")
        default_permissions = ("view",)
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["generation_id", "number"], name="cqrs_shard_once"
            ),
        ]

    def __str__(self) -> str:
        """Return its number and its generation."""
        return f"{self.number} of {self.generation_id}"


class Partition(models.Model):
    """How far a generation has come in one stream, or by another key."""

    generation_id = models.BigIntegerField(_("generation"))
    stream_id = models.BigIntegerField(_("stream"), default=0)
    key = ExactField(_("key"), max_length=255, blank=True, default="")
    version = models.PositiveIntegerField(_("version"), default=0)
    position = models.BigIntegerField(_("position"), default=0)
    state = models.JSONField(_("state"), null=True)
    parked_at = MomentField(_("parked at"), null=True)

    objects: ClassVar[models.Manager[Partition]] = models.Manager()

    class Meta:
        """A row for each stream of an inline projection, and for each state."""

        verbose_name = _("partition")
        verbose_name_plural = _("partitions")
        default_permissions = ("view",)
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["generation_id", "stream_id", "key"], name="cqrs_partition_once"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            PartialIndex(
                fields=["generation_id", "parked_at"],
                where=models.Q(parked_at__isnull=False),
                name="cqrs_partition_parked",
            ),
        ]

    def __str__(self) -> str:
        """Return its stream or key, and its generation."""
        return f"{self.key or self.stream_id} of {self.generation_id}"


class ProjectionFailure(models.Model):
    """An event that a projection has skipped, or left for later."""

    generation_id = models.BigIntegerField(_("generation"))
    shard = models.PositiveIntegerField(_("shard"), default=0)
    partition = models.CharField(_("partition"), max_length=255, blank=True)
    position = models.BigIntegerField(_("position"))
    event_id = models.UUIDField(_("event id"))
    name = NameField(_("event"), max_length=255)
    reason = models.CharField(_("reason"), max_length=20)
    exception = models.CharField(_("exception"), max_length=255, blank=True)
    error = models.TextField(_("error"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    failed_at = MomentField(_("failed at"))

    objects: ClassVar[models.Manager[ProjectionFailure]] = models.Manager()

    class Meta:
        """Read in order of time."""

        verbose_name = _("failure")
        verbose_name_plural = _("failures")
        default_permissions = ("view",)
        permissions = (("skip_failure", _("Can retry and skip failures")),)
        indexes: ClassVar[list[models.Index]] = [
            models.Index(
                fields=["generation_id", "failed_at"], name="cqrs_failure_generation"
            ),
        ]

    def __str__(self) -> str:
        """Return the event and its position."""
        return f"{self.name} at {self.position}"


class AppendFloor(models.Model):
    """The lowest position that an open transaction may append at; used by MariaDB."""

    floor = models.BigIntegerField(_("floor"))
    # The server's number of the connection, and the time of the append: pages that
    # say who holds back the followers show them.
    thread = models.BigIntegerField(_("thread"))
    taken_at = MomentField(_("taken at"))

    objects: ClassVar[models.Manager[AppendFloor]] = models.Manager()

    class Meta:
        """Rows are deleted once they are below those of all open transactions."""

        verbose_name = _("floor of a transaction")
        verbose_name_plural = _("floors of transactions")
        default_permissions = ()

    def __str__(self) -> str:
        """Return the floor."""
        return str(self.floor)


class Bucket(models.Model):
    """A row that a decision locks for its tags; used by MariaDB."""

    id = models.PositiveSmallIntegerField(primary_key=True)

    objects: ClassVar[models.Manager[Bucket]] = models.Manager()

    class Meta:
        """Rows 0 to 255, for all tags."""

        verbose_name = _("bucket of tags")
        verbose_name_plural = _("buckets of tags")
        default_permissions = ()

    def __str__(self) -> str:
        """Return its number."""
        return str(self.id)


class SubjectKey(models.Model):
    """The key that one person's data is encrypted with."""

    subject = ExactField(_("subject"), max_length=255, primary_key=True)
    key = models.BinaryField(_("wrapped key"), null=True)
    created_at = MomentField(_("created at"))
    forgotten_at = MomentField(_("forgotten at"), null=True)

    objects: ClassVar[models.Manager[SubjectKey]] = models.Manager()

    class Meta:
        """A forgotten subject keeps a row without a key."""

        verbose_name = _("key of a subject")
        verbose_name_plural = _("keys of subjects")
        default_permissions = ("view",)
        permissions = (("forget_subjectkey", _("Can forget subjects")),)

    def __str__(self) -> str:
        """Return when it was made; a subject's name may say who it is."""
        return f"key of {self.created_at:%Y-%m-%d}"
