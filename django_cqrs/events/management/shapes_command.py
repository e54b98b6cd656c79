"""``manage.py cqrs_events shapes``: count events by name and version of their shape."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Final

from django.core.management.base import CommandError, CommandParser, OutputWrapper
from django.db.models import Count
from tabulate import tabulate

from django_cqrs.annotations import path_of
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.management.output import add_format, write_json
from django_cqrs.events.models import ArchivedEvent, StoredEvent
from django_cqrs.events.store import EventStore
from django_cqrs.exceptions import UnknownMessage

HELP: Final = (
    "Counts events by name and version, and shows the class that reads them. Exits "
    "with 1 if no class reads some of them."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRow:
    """The events of one stored name and one version."""

    name: str
    shape: int
    count: int
    read_as: str | None
    """The dotted path of the class that reads them; None if there is none."""
    present: int | None
    """The version of that class."""
    by_upcasters: bool
    """Whether upcasters convert them."""
    is_accepted: bool
    """Whether nothing needs to read them, as the caller says."""

    @property
    def way(self) -> str:
        """The way to the present, in words."""
        if self.read_as is None:
            return "accepted" if self.is_accepted else "no class reads it"
        if self.shape == self.present:
            return self.read_as
        steps = "by upcasters" if self.by_upcasters else "as it is"
        return f"{self.read_as}, version {self.present}, {steps}"


def add_arguments(parser: CommandParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="NAME",
        help="A name whose class was removed on purpose.",
    )
    add_format(parser)


def handle(
    stdout: OutputWrapper, *, using: str, accept: list[str], format: str
) -> None:
    """
    Count the events.

    Raises:
        CommandError: some of them have no way to the present.

    """
    types = EventStore(using).registry.routes.types
    found = [
        _row(types, name, shape, count, accept)
        for (name, shape), count in sorted(_counts(using).items())
    ]
    if format == "json":
        write_json(stdout, {"shapes": [dataclasses.asdict(each) for each in found]})
    elif found:
        rows = [(each.name, each.shape, each.count, each.way) for each in found]
        headers = ("event", "version", "count", "read as")
        stdout.write(tabulate(rows, headers=headers, disable_numparse=True))
    else:
        stdout.write("No events.")
    lost = [each for each in found if each.read_as is None and not each.is_accepted]
    if lost:
        names = ", ".join(f"{each.name} {each.shape}" for each in lost)
        msg = f"No class reads {sum(each.count for each in lost)} events: {names}."
        raise CommandError(msg, returncode=1)


def _counts(using: str) -> Counter[tuple[str, int]]:
    """Return the number of events by name and version, without links."""
    found: Counter[tuple[str, int]] = Counter()
    for model in (StoredEvent, ArchivedEvent):
        rows: Any = model._default_manager.using(using).filter(link_to=None)
        grouped = rows.order_by().values_list("name", "shape").annotate(Count("pk"))
        for name, shape, count in grouped:
            found[name, shape] += count
    return found


def _row(
    types: MessageTypes, name: str, shape: int, count: int, accepted: list[str]
) -> ShapeRow:
    try:
        reading = decoder_of(types).reading(name, shape)
    except UnknownMessage:
        reading = None
    return ShapeRow(
        name=name,
        shape=shape,
        count=count,
        read_as=None if reading is None else path_of(reading.cls),
        present=None if reading is None else reading.wanted,
        by_upcasters=reading is not None and reading.is_older,
        is_accepted=name in accepted,
    )
