"""``manage.py cqrs_events snapshots``: take snapshots ahead of traffic."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.core.management.base import CommandParser, OutputWrapper
from django.db.models import Count, Max
from tabulate import tabulate

from django_cqrs.buses.registries import registry
from django_cqrs.events.models import Snapshot, Stream
from django_cqrs.events.snapshot_rebuilding import rebuild_snapshots, storages_of

HELP = (
    "Lists the classes with snapshots. With --rebuild, takes the snapshots of a "
    "category that are missing, or that other code has taken."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "--rebuild",
        metavar="CATEGORY",
        help="The category whose missing snapshots are taken.",
    )


def handle(stdout: OutputWrapper, *, using: str, rebuild: str | None) -> None:
    """
    List the snapshots by category, or take those of one category.

    Raises:
        InvalidOption: no class with snapshots has the category.

    """
    if rebuild is None:
        _list(stdout, using)
        return
    taken = Counter(rebuild_snapshots(rebuild, registry, using))
    stdout.write(f"Took {taken[True]} snapshots; {taken[False]} were up to date.")


def _list(stdout: OutputWrapper, using: str) -> None:
    rows: list[tuple[Any, ...]] = []
    for storage in storages_of(registry):
        snapshots = storage.snapshots
        if snapshots is None:
            continue
        category = storage.streams.category
        streams = Stream.objects.using(using).filter(category=category)
        kept = Snapshot.objects.using(using).filter(stream_id__in=streams.values("pk"))
        found = kept.aggregate(count=Count("pk"), version=Max("version"))
        usable = kept.filter(fingerprint=snapshots.fingerprint).count()
        rows.append(
            (category, snapshots.every, found["count"], usable, found["version"] or "")
        )
    if not rows:
        stdout.write("No class has snapshots.")
        return
    headers = ["Category", "Every", "Snapshots", "Up to date", "Highest version"]
    stdout.write(tabulate(rows, headers=headers))
