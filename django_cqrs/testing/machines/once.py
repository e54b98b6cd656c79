"""Handle a message twice, and compare the rows of all tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections, models
from django.db.transaction import atomic, set_rollback

from django_cqrs.annotations import place_of
from django_cqrs.buses.bus import converted_payload
from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as projects
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import Message
from django_cqrs.routing.endpoint import Endpoint, JoinPoint
from django_cqrs.testing.faults import HandlerTarget

UNCOUNTED: Final = frozenset(
    {
        "django_cqrs_outbox.journalentry",
        "django_cqrs_outbox.throughput",
        "django_cqrs_outbox.workerrecord",
        "django_cqrs_outbox.inboxentry",
    }
)
"""The tables of this library about the handling itself."""

SHOWN: Final = 5
"""The number of rows that differ which are shown."""

Row = tuple[tuple[str, Any], ...]


def assert_once(
    handler: Any,
    message: Any,
    *,
    registry: Registry | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """
    Fail if a second handling of a message changes any row.

    The message is handled twice, with the same id and each time in a transaction, and
    then all of it is rolled back. The second handling may raise an exception, which
    undoes it. Effects outside the database are not seen.

    Args:
        handler: its function or method, or the name of its endpoint.
        message: the message.
        registry: the registry with the handler; by default the project's.
        using: the alias of the database whose tables are compared.

    Raises:
        AssertionError: rows differ; its text shows them.
        InvalidOption: the registry does not have the handler, or several such ones.
        Exception: the exception of the first handling, unchanged.

    """
    __tracebackhide__ = True
    handlers = registry if registry is not None else projects
    endpoint = _endpoint_of(handlers, handler)
    payload = converted_payload(endpoint, message, None)
    point = JoinPoint(
        endpoint, handlers.bus_of(endpoint.kind), type(payload), is_consumed=True
    )
    run = handlers.pipelines.consumption(point, using=using)
    first = Message(payload)
    first._message_id = uuid4()
    with atomic(using):
        run(first)
        before = dict(_tables(using))
        failed = ""
        try:
            run(first.replace())
        except Exception as error:  # noqa: BLE001 - it undoes the second handling
            failed = f" The second one failed with {error!r}."
        after = dict(_tables(using))
        set_rollback(True, using=using)
    lines = list(_differences(before, after))
    if lines:
        listed = "\n".join(lines)
        msg = (
            f"{place_of(endpoint.function)} has handled {message!r} twice, and the "
            f"second time changed these rows.{failed}\n{listed}"
        )
        raise AssertionError(msg)


def _endpoint_of(handlers: Registry, handler: Any) -> Endpoint:
    target = HandlerTarget(handlers, handler, "assert_once")
    found = [each for each in handlers.routes.endpoints if target.is_met_by(each)]
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        msg = f"assert_once(): {place_of(handler)} has several endpoints: {names}."
        raise InvalidOption(msg)
    return found[0]


def _tables(using: str) -> Iterator[tuple[str, dict[Any, Row]]]:
    """Yield the rows of each table, by their keys."""
    present = set(connections[using].introspection.table_names())
    for model in apps.get_models(include_auto_created=True):
        meta = model._meta
        is_own = meta.managed and not meta.proxy and meta.db_table in present
        if is_own and meta.label_lower not in UNCOUNTED:
            yield meta.label, dict(_rows(model, using))


def _rows(model: type[models.Model], using: str) -> Iterator[tuple[Any, Row]]:
    names = [field.attname for field in model._meta.concrete_fields]
    for values in model._base_manager.using(using).order_by().values_list("pk", *names):
        key, *rest = values
        yield key, tuple(zip(names, rest, strict=True))


def _differences(
    before: dict[str, dict[Any, Row]], after: dict[str, dict[Any, Row]]
) -> Iterator[str]:
    """Yield a line for each row that was added, changed or deleted."""
    for table, rows in after.items():
        old = before.get(table, {})
        lines = [f"  {table}: added {_said(rows[k])}" for k in rows if k not in old]
        lines += [f"  {table}: deleted {_said(old[k])}" for k in old if k not in rows]
        lines += [
            f"  {table}: changed {_changes(old[k], rows[k])}"
            for k in rows
            if k in old and old[k] != rows[k]
        ]
        yield from lines[:SHOWN]
        if len(lines) > SHOWN:
            yield f"  {table}: ... and {len(lines) - SHOWN} more rows"


def _said(row: Row) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in row)


def _changes(old: Row, new: Row) -> str:
    changed = [
        f"{name} from {before!r} to {after!r}"
        for (name, before), (_, after) in zip(old, new, strict=True)
        if before != after
    ]
    return ", ".join(changed)
