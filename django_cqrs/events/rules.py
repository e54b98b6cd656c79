"""The possible mistakes in declarations of streams and projections."""

from __future__ import annotations

from django_cqrs.problems import CheckRule


class ProjectionRule(CheckRule):
    """Each kind of mistake: the id of its check and its subject."""

    DUPLICATE_PROJECTION = "E006", "One name for two projections"
    SHARED_VIEW = "E007", "A view that something else needs as well"
    BAD_ROW = "E008", "A Row that is not found by a unique key"
    UNSERVED_CHANNEL = "E009", "A projection on a channel without a worker"
    BAD_INLINE = "E010", "An inline projection with an option of followers"
    BAD_PARKING = "E011", "A projection that cannot replay a partition"
    BAD_SOURCE = "E012", "A source that is not event-sourced"
    BAD_STATE = "E015", "A State that cannot be kept"
    BAD_FEED = "E019", "A feed that cannot send its events in order"
    DISTANT_VIEW = "W001", "A view in another database than the events"

    @staticmethod
    def label() -> str:
        """Return the part of the ids before the dot."""
        return "django_cqrs_events"


class StreamRule(CheckRule):
    """Each kind of mistake of aggregates with streams: its id and its subject."""

    BAD_STREAM = "E002", "A stream whose declaration cannot be used"
    UNAPPLIED_EVENT = "E003", "A returned event that no applier takes"
    BROKEN_APPLIER = "E004", "An applier that cannot be called"
    STREAM_WITHOUT_USE = "E005", "Appliers or a stream that nothing uses"
    UNATOMIC_STREAM = "E014", "An event-sourced aggregate without a transaction"
    BAD_STORE = "E018", "A store whose functions or sequence are not as they should be"

    @staticmethod
    def label() -> str:
        """Return the part of the ids before the dot."""
        return "django_cqrs_events"
