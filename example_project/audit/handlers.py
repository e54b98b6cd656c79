"""Records every event, and the user who caused it."""

from __future__ import annotations

from typing import Annotated

from django.utils.text import camel_case_to_spaces

from audit.messages import TrailRow
from audit.models import AuditEntry
from django_cqrs import Header, Message, event_handler, query_handler
from django_cqrs.conversion import to_jsonable


# High priority: the entry comes before the events that other handlers publish.
@event_handler("order.*", priority=100)
@event_handler("payment.*")
@event_handler("shipment.*")
def record(
    event: object,
    message: Message,
    executor: Annotated[str, Header("executor_id")] = "system",
) -> None:
    """Record every event with these names, including future ones."""
    details = to_jsonable(event)
    details.pop("lines", None)  # the page of the order shows them anyway
    AuditEntry.objects.create(
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        order_id=details.pop("order_id"),
        event=camel_case_to_spaces(type(event).__name__),
        details=details,
        executor=executor,
        happened_at=message.timestamp,
    )


@query_handler("audit.trail")
def trail(order_id: int) -> list[TrailRow]:
    """Return the history of an order."""
    return [
        TrailRow(
            event=entry.event,
            details=entry.details,
            executor=entry.executor,
            happened_at=entry.happened_at,
            correlation_id=entry.correlation_id,
        )
        for entry in AuditEntry.objects.filter(order_id=order_id)
    ]
