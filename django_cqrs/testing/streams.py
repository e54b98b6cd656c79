"""Streams and projections in a test: given events, and views that replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import models, transaction

from django_cqrs.buses.registries import Registry
from django_cqrs.exceptions import InvalidOption

if TYPE_CHECKING:
    from django_cqrs.events.operations import Projections
    from django_cqrs.events.store import EventStore

LONGEST_REPORT = 20
"""The number of different rows that a failure shows."""


def store_of(registry: Registry, using: str) -> EventStore:
    """
    Return the event store of a flow.

    Raises:
        InvalidOption: the app with the tables is not installed.

    """
    _ensure_installed()
    from django_cqrs.events.store import EventStore

    return EventStore(using, registry=registry)


def projections_of(registry: Registry, using: str) -> Projections:
    """
    Return the projections of a flow.

    Raises:
        InvalidOption: the app with the tables is not installed.

    """
    _ensure_installed()
    from django_cqrs.events.operations import Projections

    return Projections(using, registry=registry)


def _ensure_installed() -> None:
    if not apps.is_installed("django_cqrs.events"):
        msg = (
            "Events are kept by an app of its own: add 'django_cqrs.events' to "
            "INSTALLED_APPS."
        )
        raise InvalidOption(msg)


def stream_of(cls: type, identifier: Any) -> str:
    """
    Return the name of the stream of an aggregate or a saga.

    Args:
        cls: its class.
        identifier: its identifier; of several parts a tuple.

    Raises:
        InvalidOption: the class has no streams.
        InvalidIdentifier: it is none.

    """
    _ensure_installed()
    from django_cqrs.events.streams import stream_named

    values = identifier if isinstance(identifier, tuple) else (identifier,)
    return str(stream_named(cls, values))


def name_of(projection: Any) -> str:
    """Return the name of a projection, which may be given as its class or function."""
    if isinstance(projection, str):
        return projection
    from django_cqrs.declaration.declarations import STAND_IN
    from django_cqrs.events.projecting import options_of

    options = options_of(getattr(projection, STAND_IN, projection))
    if options is None:
        msg = f"{projection!r} is not a projection."
        raise InvalidOption(msg)
    return options.name


def ensure_replays(projection: Any, registry: Registry, using: str) -> None:
    """
    Fail unless a projection makes the same rows from its events again.

    Serial numbers and times of the last change are not compared.

    Args:
        projection: its class, its function or its name.
        registry: the registry that it belongs to.
        using: the alias of the database.

    Raises:
        AssertionError: rows differ; the text shows them.

    """
    own, name = projections_of(registry, using), name_of(projection)
    views = [each for each in own.handlers(name).options.views if _is_model(each)]
    with transaction.atomic(using=using):
        before = {view: _rows(view, using) for view in views}
        own.rebuild(name)
        after = {view: _rows(view, using) for view in views}
        transaction.set_rollback(True, using=using)
    different = [
        line for view in views for line in _differences(view, before[view], after[view])
    ]
    if different:
        shown = "\n".join(different[:LONGEST_REPORT])
        rest = len(different) - LONGEST_REPORT
        more = f"\n  and {rest} more" if rest > 0 else ""
        msg = (
            f"The projection {name!r} does not make the same rows again:\n{shown}{more}"
        )
        raise AssertionError(msg)


def _is_model(view: Any) -> bool:
    return isinstance(view, type) and issubclass(view, models.Model)


def _rows(view: type[models.Model], using: str) -> list[tuple[Any, ...]]:
    names = _compared(view)
    rows = view._base_manager.using(using).values_list(*names)
    return sorted(rows, key=repr)


def _compared(view: type[models.Model]) -> list[str]:
    return [
        field.attname
        for field in view._meta.concrete_fields
        if not isinstance(field, models.AutoField)
        and not getattr(field, "auto_now", False)
        and not getattr(field, "auto_now_add", False)
    ]


def _differences(
    view: type[models.Model],
    before: list[tuple[Any, ...]],
    after: list[tuple[Any, ...]],
) -> Iterator[str]:
    names = _compared(view)
    for row in _without(before, after):
        yield f"  - {_said(view, names, row)}"
    for row in _without(after, before):
        yield f"  + {_said(view, names, row)}"


def _without(
    rows: list[tuple[Any, ...]], others: list[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    left = list(others)
    found = []
    for row in rows:
        if row in left:
            left.remove(row)
        else:
            found.append(row)
    return found


def _said(view: type[models.Model], names: list[str], row: tuple[Any, ...]) -> str:
    values = ", ".join(
        f"{name}={value!r}" for name, value in zip(names, row, strict=True)
    )
    return f"{view.__name__}({values})"
