"""The rows of projections: set up once, with a shard for each of their parts."""

from __future__ import annotations

import logging
from typing import Any, Final

from django.db import IntegrityError, connections, transaction
from django.db.models import Max

from django_cqrs import clock
from django_cqrs.events import settling
from django_cqrs.events.handling import Handlers
from django_cqrs.events.models import Generation, Shard, Status
from django_cqrs.events.projecting import Start
from django_cqrs.messages import NOBODY, Message, current

logger: Final = logging.getLogger("django_cqrs.projections")

RUNNING: Final = "running:"
"""The beginning of a wanted action that a worker is carrying out."""


def live_generation(name: str, using: str) -> Generation | None:
    """Return the live generation of a projection, None before it is set up."""
    found = Generation.objects.using(using).filter(projection=name, is_live=True)
    return found.first()


def set_up(handlers: Handlers, using: str, *, start: Start | None = None) -> bool:
    """
    Create the rows of a projection and call its ``on_init``, in one transaction.

    Of several that do so at the same time, one does it, and the others wait for it.

    Args:
        handlers: of the projection.
        using: the alias of the database with the events.
        start: the first event, by default as declared; "manual" is the beginning.

    Returns:
        Whether it was not set up yet.

    """
    options = handlers.options
    if live_generation(options.name, using) is not None:  # the usual case
        return False
    is_now = (options.start if start is None else start) == "now"
    connection = connections[using]
    position = settling.settled(connection) if is_now else 0
    moment = clock.now()
    with transaction.atomic(using=using):
        try:
            with transaction.atomic(using=using):
                made = Generation.objects.using(using).create(
                    projection=options.name,
                    status=Status.LIVE,
                    is_live=True,
                    names=dict.fromkeys(handlers.handled_names, position),
                    created_at=moment,
                    switched_at=moment,
                )
        except IntegrityError:
            return False
        add_shards(made.pk, options.shards, position, using)
        message = Message()
        token = current.set(NOBODY)
        try:
            handlers.run_hooks("on_init", message)
        finally:
            current.reset(token)
    logger.info(
        "Projection %s was set up at position %d",
        options.name,
        position,
        extra={"cqrs_projection": options.name},
    )
    return True


def add_shards(
    generation: int, count: int, position: int, using: str, state: Any = None
) -> None:
    """Insert the shards of a generation, all at one position."""
    moment = clock.now()
    Shard.objects.using(using).bulk_create(
        Shard(
            generation_id=generation,
            number=number,
            position=position,
            state=state if number == 0 else None,
            updated_at=moment,
        )
        for number in range(count)
    )


def note_names(handlers: Handlers, generation: Generation, using: str) -> None:
    """
    Note since which position the names that have been added are handled.

    An event of such a name at a lower position was passed by, unless the projection is
    rebuilt. Names that are no longer handled are removed.
    """
    names = handlers.handled_names
    if set(generation.names) == set(names):
        return
    with transaction.atomic(using=using):
        rows = Generation.objects.using(using).select_for_update()
        row = rows.filter(pk=generation.pk).first()
        if row is None or set(row.names) == set(names):
            return
        shards = Shard.objects.using(using).filter(generation_id=row.pk)
        since = shards.aggregate(Max("position"))["position__max"] or 0
        row.names = {name: row.names.get(name, since) for name in names}
        row.save(update_fields=["names"])
