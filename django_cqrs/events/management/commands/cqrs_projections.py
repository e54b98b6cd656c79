"""``manage.py cqrs_projections``: look after projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections
from tabulate import tabulate

from django_cqrs.events.management.output import (
    add_format,
    blocker_text,
    write_json,
)
from django_cqrs.events.models import ProjectionFailure
from django_cqrs.events.operations import Projections
from django_cqrs.events.status import ProjectionStatus, store_status
from django_cqrs.exceptions import CQRSError
from django_cqrs.tenant_options import add_tenant_option, chosen_rows

_ONE_OR_ALL: Final = {
    "init": "Set a projection up; one that starts by hand begins.",
    "run": "Handle all events up to the settled position, in this process.",
    "pause": "Finish the batch in hand, and begin no other.",
    "resume": "Go on after a pause, or after a rebuild whose process has died.",
    "backfill": "Give an inline projection the events that it has missed.",
    "rebuild": "Make the rows anew, in one transaction.",
    "reset": "Empty views, states and positions; the next run handles all events.",
    "delete": "Remove the rows of the views, states and positions.",
}


class Command(BaseCommand):
    """List, run, pause and rebuild projections, and handle what has failed."""

    help = (
        "Lists projections with their lag and their failures, runs, pauses and "
        "rebuilds them, retries and skips events that have failed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the subcommands."""
        actions = parser.add_subparsers(dest="action", required=True)
        listing = actions.add_parser("list", help="List all projections.")
        listing.add_argument(
            "--check",
            action="store_true",
            help="Exit with 1 if one has failed, or is further behind than --max-lag.",
        )
        listing.add_argument(
            "--max-lag",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="The lag that --check accepts (default: %(default)s).",
        )
        showing = actions.add_parser("show", help="Show one projection.")
        failing = actions.add_parser("failures", help="List what has failed.")
        for each in (listing, showing, failing):
            add_format(each)
        found: dict[str, CommandParser] = {"show": showing, "failures": failing}
        for name, said in _ONE_OR_ALL.items():
            found[name] = actions.add_parser(name, help=said)
            found[name].add_argument(
                "--all", action="store_true", help="All projections that it applies to."
            )
        found["backfill"].add_argument(
            "--batch",
            type=int,
            default=100,
            help="The number of streams in one transaction (default: %(default)s).",
        )
        found["rebuild"].add_argument(
            "--partition",
            action="append",
            metavar="NAME",
            help=(
                "Make the rows of this stream, or key, alone; several are made each in "
                "a transaction of its own."
            ),
        )
        for name, said in (
            ("retry", "Handle again what has failed."),
            ("skip", "Give up what has failed, and go on."),
        ):
            found[name] = actions.add_parser(name, help=said)
        found["reshard"] = actions.add_parser(
            "reshard", help="Cut a projection into another number of shards."
        )
        found["wait"] = actions.add_parser(
            "wait", help="Wait until a projection has come to a position."
        )
        for name, each in found.items():
            each.add_argument(
                "name",
                metavar="PROJECTION",
                nargs="?" if name in _ONE_OR_ALL else None,
            )
        for name in ("retry", "skip"):
            found[name].add_argument(
                "keys",
                metavar="FAILURE",
                nargs="*",
                type=int,
                help="The keys of failures (default: all, or the event in hand).",
            )
        found["reshard"].add_argument("count", metavar="N", type=int)
        found["wait"].add_argument(
            "--position",
            type=int,
            help="The position (default: that of the last event).",
        )
        found["wait"].add_argument(
            "--timeout",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="The longest time to wait (default: %(default)s).",
        )
        for each in (listing, *found.values()):
            group = each.add_mutually_exclusive_group()
            group.add_argument(
                "--database",
                choices=tuple(connections),
                help="The database with the events (default: the router's).",
            )
            add_tenant_option(group, "Only this tenant, in the database of the tenant.")

    def handle(
        self, *, action: str, database: str | None, tenant: str | None, **options: Any
    ) -> None:
        """Do what the subcommand says."""
        with chosen_rows(database or DEFAULT_DB_ALIAS, tenant) as chosen:
            chosen.refuse_one_tenant(f"cqrs_projections {action} cannot run")
            own = Projections(database if tenant is None else chosen.using)
            try:
                if action in _ONE_OR_ALL:
                    self._each(own, action, options)
                else:
                    getattr(self, f"_{action}")(own, options)
            except CQRSError as error:
                raise CommandError(str(error)) from error

    # Looking --------------------------------------------------------------------------

    def _list(self, own: Projections, options: dict[str, Any]) -> None:
        found = own.statuses()
        store = store_status(own.using)
        if options["format"] == "json":
            write_json(
                self.stdout,
                {
                    "head": store.head,
                    "settled": store.settled,
                    "held_back_by": [
                        dataclasses.asdict(each) for each in store.blockers
                    ],
                    "projections": [_as_json(each) for each in found],
                },
            )
        else:
            self._table(found)
            self.stdout.write(f"Settled position {store.settled} of {store.head}.")
            for each in store.blockers:
                self.stdout.write(blocker_text(each))
        if options["check"]:
            self._check(found, options["max_lag"])

    def _table(self, found: list[ProjectionStatus]) -> None:
        rows = [
            (
                each.name,
                each.status,
                each.channel or ("inline" if each.is_inline else "on demand"),
                "" if each.position is None else each.position,
                each.lag,
                f"{each.lag_seconds:.0f} s",
                each.failures,
                each.error,
            )
            for each in found
        ]
        headers = (
            *("projection", "status", "channel", "position", "lag", "for"),
            *("failures", "error"),
        )
        self.stdout.write(tabulate(rows, headers=headers, disable_numparse=True))

    def _check(self, found: list[ProjectionStatus], most: float) -> None:
        late = [
            each.name
            for each in found
            if each.error or each.failures or each.lag_seconds > most
        ]
        if late:
            msg = f"Late or failed: {', '.join(late)}."
            raise CommandError(msg)

    def _show(self, own: Projections, options: dict[str, Any]) -> None:
        found = own.status(options["name"])
        if options["format"] == "json":
            write_json(self.stdout, _as_json(found))
            return
        for name, value in dataclasses.asdict(found).items():
            if name not in ("shards", "name") and value not in (None, "", {}):
                self.stdout.write(f"{name.replace('_', ' ')}: {value}")
        rows = [
            (each.number, each.position, each.handled, each.owner, each.error)
            for each in found.shards
        ]
        headers = ("shard", "position", "handled", "owner", "error")
        self.stdout.write(tabulate(rows, headers=headers, disable_numparse=True))

    def _failures(self, own: Projections, options: dict[str, Any]) -> None:
        found = own.failures(options["name"])
        if options["format"] == "json":
            write_json(self.stdout, {"failures": [_failure(each) for each in found]})
            return
        rows = [tuple(_failure(each).values()) for each in found]
        headers = ("key", "position", "event", "reason", "exception", "error")
        self.stdout.write(tabulate(rows, headers=headers, disable_numparse=True))

    # Acting ---------------------------------------------------------------------------

    def _each(self, own: Projections, action: str, options: dict[str, Any]) -> None:
        """Do something to one projection, or to all that it applies to."""
        name = options["name"]
        if (name is None) is not options["all"]:
            msg = "Give the name of a projection, or --all."
            raise CommandError(msg)
        if name is None and options.get("partition"):
            msg = "--partition is for one projection: give its name."
            raise CommandError(msg)
        names = own.names() if name is None else [name]
        if name is None and action in ("run", "backfill"):
            is_inline = action == "backfill"
            names = [
                each
                for each in names
                if own.handlers(each).options.is_inline is is_inline
            ]
        for each in names:
            self.stdout.write(f"{each}: {self._act(own, action, each, options)}")

    def _act(
        self, own: Projections, action: str, name: str, options: dict[str, Any]
    ) -> str:
        if action == "backfill":
            return f"{own.backfill(name, batch=options['batch'])} events."
        if action == "rebuild" and options["partition"]:
            parts = options["partition"]
            return f"{sum(own.rebuild(name, partition=each) for each in parts)} events."
        act: Callable[[str], int | None] = getattr(own, action)
        answer = act(name)
        if action in ("run", "rebuild"):
            return f"{answer} events."
        if answer is None or answer:
            return _DONE[action]
        return _NOTHING[action]

    def _retry(self, own: Projections, options: dict[str, Any]) -> None:
        count = own.retry(options["name"], *options["keys"])
        self.stdout.write(f"{options['name']}: {count} retried.")

    def _skip(self, own: Projections, options: dict[str, Any]) -> None:
        count = own.skip(options["name"], *options["keys"])
        self.stdout.write(f"{options['name']}: {count} given up.")

    def _reshard(self, own: Projections, options: dict[str, Any]) -> None:
        own.reshard(options["name"], options["count"])
        self.stdout.write(f"{options['name']}: {options['count']} shards.")

    def _wait(self, own: Projections, options: dict[str, Any]) -> None:
        position = options["position"]
        if position is None:
            position = store_status(own.using).head
        own.wait_for(options["name"], timeout=options["timeout"], position=position)
        self.stdout.write(f"{options['name']}: at position {position} or behind it.")


_DONE: Final = {
    "init": "set up.",
    "pause": "paused.",
    "resume": "resumed.",
    "reset": "empty.",
    "delete": "deleted.",
}
_NOTHING: Final = {
    "init": "is set up already.",
    "pause": "is not running.",
    "resume": "is not paused.",
}


def _as_json(status: ProjectionStatus) -> dict[str, Any]:
    return {**dataclasses.asdict(status), "error": status.error}


def _failure(failure: ProjectionFailure) -> dict[str, Any]:
    return {
        "key": failure.pk,
        "position": failure.position,
        "event": failure.name,
        "reason": failure.reason,
        "exception": failure.exception,
        "error": failure.error,
    }
