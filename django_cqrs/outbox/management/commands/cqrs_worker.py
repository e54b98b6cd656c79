"""``manage.py cqrs_worker``: handle, or forward, the messages that wait in channels."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, Error, connections, router
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV, run_with_reloader

from django_cqrs.attendants import Duty, duties_of
from django_cqrs.buses.registries import registry
from django_cqrs.exceptions import InvalidChannel, InvalidOption
from django_cqrs.outbox.channel import outbox_of
from django_cqrs.outbox.clock_skew import clock_skew, skew_in_words
from django_cqrs.outbox.management.refusals import clear_errors
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.outbox.statistics import outboxes
from django_cqrs.outbox.worker.bounds import (
    Bounds,
    Progress,
    StopWorker,
    megabytes_used,
)
from django_cqrs.outbox.worker.databases import DatabasesWorker
from django_cqrs.outbox.worker.outages import is_of_database
from django_cqrs.outbox.worker.supervisor import (
    REPLACE,
    STOP,
    Supervisor,
    end_with_supervisor,
    supervised_by,
)
from django_cqrs.outbox.worker.worker import Relay, Worker
from django_cqrs.pipeline.tenancy import tenancy
from django_cqrs.tenant_options import (
    add_database_options,
    chosen_rows,
    required_tenancy,
)


class _OneLine(logging.Formatter):
    """Omits tracebacks: ``cqrs_failed show`` prints that of a dead letter."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of the record."""
        return record.getMessage()


logger = logging.getLogger("django_cqrs.worker")

LEVELS = {0: logging.ERROR, 1: logging.WARNING, 2: logging.INFO, 3: logging.DEBUG}


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        msg = f"{text!r} is not a whole number of at least 1."
        raise argparse.ArgumentTypeError(msg)
    return number


def seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not number > 0:
        msg = f"{text!r} is not a number of seconds above 0."
        raise argparse.ArgumentTypeError(msg)
    return number


def relays_of(aliases: Sequence[str], using: str) -> dict[str, Relay]:
    """Return the relays of the channels that have an engine."""
    relays = {}
    for alias in aliases:
        relay = outbox_of(alias).relay(using)
        if relay is not None:
            relays[alias] = relay
    return relays


def _chosen(channels: list[str], *, is_all: bool) -> list[str]:
    """
    Return the aliases of the channels to handle.

    Raises:
        CommandError: none is given, or none exists, or both ways of giving them are
            used.

    """
    if is_all and channels:
        msg = f"Give either --all or the channels {', '.join(channels)}, not both."
        raise CommandError(msg)
    if not is_all and not channels:
        msg = "Give the aliases of the channels to handle, or --all for all of them."
        raise CommandError(msg)
    if is_all:
        channels = list(outboxes())
        if not channels:
            msg = "No channel in DJANGO_CQRS['CHANNELS'] is an outbox."
            raise CommandError(msg)
    return channels


def _bounds_of(options: Mapping[str, Any]) -> Bounds:
    """
    Return the bounds that the options set.

    Raises:
        InvalidOption: one of them is not supported on this platform.

    """
    return Bounds(
        messages=options["max_messages"],
        seconds=options["max_seconds"],
        megabytes=options["max_megabytes"],
        until_empty=options["until_empty"],
        on_failure=options["stop_on_failure"],
    )


def _worker_of(
    options: Mapping[str, Any],
    using: str,
    *,
    duties: Sequence[Duty] = (),
    progress: Progress | None = None,
) -> Worker:
    """Return the worker of one database."""
    aliases = options["channels"]
    return Worker(
        registry,
        aliases,
        using=using,
        batch=options["batch"],
        lease=timedelta(seconds=options["lease"]),
        bounds=_bounds_of(options),
        relays=relays_of(aliases, using),
        duties=duties,
        progress=progress,
    )


def _duties_of(options: Mapping[str, Any], using: str) -> Sequence[Duty]:
    if not options["schedules"]:
        return ()
    return duties_of(registry, options["channels"], using)


def _for_one(options: Mapping[str, Any]) -> Worker:
    using = options["database"]
    return _worker_of(options, using, duties=_duties_of(options, using))


def _for_tenants(options: Mapping[str, Any]) -> DatabasesWorker:
    return DatabasesWorker(
        _databases_of_tenants,
        lambda using, progress: _worker_of(options, using, progress=progress),
        bounds=_bounds_of(options),
        connections=options["connections"],
        duties_of=lambda using: _duties_of(options, using),
        on_first_turn=_mind_clock,
    )


def _mind_clock(using: str) -> None:
    """Warn if the clocks of this machine and the database differ."""
    try:
        said = skew_in_words(clock_skew(using))
    except Error as error:
        if not is_of_database(error):
            raise
        connections[using].close()
        return  # the worker waits for an unavailable database
    if said is not None:
        logger.warning("%s", said)


def _databases_of_tenants() -> Collection[str]:
    """Return the aliases of the databases with an outbox, the shared one first."""
    policy = tenancy()
    aliases = [DEFAULT_DB_ALIAS] if policy is None else policy.aliases_of_outboxes()
    return [each for each in aliases if router.allow_migrate_model(each, OutboxMessage)]


def _ensure_listed() -> None:
    """
    Refuse --tenants if nobody knows which tenants there are.

    Raises:
        CommandError: the settings do not say it.

    """
    policy = required_tenancy("--tenants")
    try:
        policy.ensure_listed()
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error


class Command(BaseCommand):
    """Handle messages until told to stop."""

    help = (
        "Handles the messages in channels of the outbox, or forwards them to the "
        "channel's engine. On SIGTERM or SIGINT it finishes the messages it has "
        "claimed; a second signal stops it immediately."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the channels, the database and the bounds."""
        parser.add_argument(
            "channels",
            nargs="*",
            metavar="CHANNEL",
            help="The aliases of the channels, in the order in which they are polled.",
        )
        parser.add_argument(
            "--all",
            action="store_true",
            help="All channels of the outbox, in the order of the settings.",
        )
        group = add_database_options(
            parser,
            help="The database whose outbox is handled (default: %(default)s).",
        )
        group.add_argument(
            "--tenants",
            action="store_true",
            help="The databases of all tenants and the shared one, each in its turn.",
        )
        parser.add_argument(
            "--connections",
            type=positive,
            default=20,
            metavar="N",
            help=(
                "With --tenants: maximum number of connections that are kept open "
                "(default: %(default)s)."
            ),
        )
        parser.add_argument(
            "--processes",
            type=positive,
            metavar="N",
            help=(
                "Start this many worker processes and replace each one that crashes; "
                "limits apply to each process."
            ),
        )
        parser.add_argument(
            "--batch",
            type=positive,
            default=100,
            help="Maximum number of messages per claim (default: %(default)s).",
        )
        parser.add_argument(
            "--lease",
            type=seconds,
            default=30.0,
            help=(
                "Seconds after which the messages of a crashed worker are taken over "
                "(default: %(default)s)."
            ),
        )
        parser.add_argument(
            "--max-messages", type=positive, help="Stop after this many messages."
        )
        parser.add_argument(
            "--max-seconds", type=seconds, help="Stop after this many seconds."
        )
        parser.add_argument(
            "--max-megabytes",
            type=positive,
            help="Stop when the process has used this many megabytes of memory.",
        )
        parser.add_argument(
            "--until-empty",
            action="store_true",
            help="Stop when no message is ready.",
        )
        parser.add_argument(
            "--stop-on-failure",
            action="store_true",
            help="Stop with exit code 1 when a handler fails.",
        )
        parser.add_argument(
            "--no-schedules",
            action="store_false",
            dest="schedules",
            help="Send no commands of schedules.",
        )
        parser.add_argument(
            "--reload",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="Restart when code changes (default: if DEBUG is on).",
        )

    def handle(self, **options: Any) -> None:
        """Check the channels, then run, under the reloader if asked to."""
        options["channels"] = _chosen(options["channels"], is_all=options["all"])
        if options["tenants"]:
            _ensure_listed()
        with chosen_rows(options["database"], options["tenant"]) as chosen:
            chosen.refuse_one_tenant("Messages cannot be handled")
        options["database"] = chosen.using
        try:
            for alias in options["channels"]:
                outbox_of(alias)
            _bounds_of(options)
        except (InvalidChannel, InvalidOption) as error:
            raise CommandError(str(error)) from error
        bounded = any(
            options[name]
            for name in ("max_messages", "max_seconds", "max_megabytes", "until_empty")
        )
        pipe = supervised_by()
        if pipe is not None:
            self._run(**options, pipe=pipe)
            return
        wants_reload = options["reload"]
        if wants_reload is None:
            wants_reload = settings.DEBUG and not bounded
        if wants_reload:
            run_with_reloader(self._run, **options)
        else:
            self._run(**options)

    def _run(self, **options: Any) -> None:
        with self._logging(options["verbosity"]):
            if options["processes"] is None or "pipe" in options:
                self._work(**options)
            else:
                self._supervise(**options)

    def _supervise(self, **options: Any) -> None:
        count = options["processes"]
        os.environ.pop(DJANGO_AUTORELOAD_ENV, None)  # we are the reloader's child
        # They are started as this process was, and recognise their role by their pipe.
        supervisor = Supervisor([sys.executable, *sys.orig_argv[1:]], count)
        if options["verbosity"] > 0:
            noun = "worker" if count == 1 else "workers"
            self.stdout.write(f"Starting {count} {noun}.")
            self.stdout.flush()
        before = self._on_signals(lambda _number: supervisor.stop())
        try:
            is_well = supervisor.run()
        finally:
            self._restore(before)
        if not is_well:
            msg = "A worker stopped after a failure, so the others were stopped too."
            raise CommandError(msg)

    def _work(self, **options: Any) -> None:
        pipe = options.get("pipe")
        aliases = options["channels"]
        relays = relays_of(aliases, options["database"])
        worker = _for_tenants(options) if options["tenants"] else _for_one(options)

        def stop(number: int) -> None:
            worker.stop()
            if pipe is None:  # the next signal ends the process
                signal.signal(number, signal.SIG_DFL)

        before = self._on_signals(stop)
        if pipe is not None:
            end_with_supervisor(pipe, worker.stop, options["lease"])
        try:
            if options["verbosity"] > 0:
                parts = [
                    (
                        verb,
                        [alias for alias in aliases if (alias in relays) is forwards],
                    )
                    for verb, forwards in (("Handling", False), ("Forwarding", True))
                ]
                for verb, names in parts:
                    if names:
                        where = repr(options["database"])
                        if options["tenants"]:
                            where = "all tenants"
                        self.stdout.write(f"{verb} {', '.join(names)} of {where}.")
                self.stdout.flush()  # a log file should show it while the worker runs
            code = 1 if pipe is None else STOP
            with clear_errors(options["database"], code=code):
                if not options["tenants"]:
                    _mind_clock(options["database"])
                worker.run()
            if isinstance(worker, DatabasesWorker) and options["until_empty"]:
                for alias, error in worker.failures.items():
                    with clear_errors(alias, code=code):
                        raise error
        except StopWorker as error:
            msg = f"{error} The worker stops."
            code = 1 if pipe is None else STOP
            raise CommandError(msg, returncode=code) from error
        finally:
            self._restore(before)
            if options["verbosity"] > 0:
                tally = worker.tally
                counts = [f"{tally.forwarded} forwarded"] if relays else []
                if len(relays) < len(aliases):
                    counts += [
                        f"{tally.handled} handled",
                        f"{tally.failed} failed",
                        f"{tally.dead} dead",
                        f"{tally.expired} expired",
                    ]
                self.stdout.write(f"{', '.join(counts)}.")
        paused = worker.paused_channels()
        if options["until_empty"] and paused:
            msg = (
                f"{', '.join(paused)}: messages remain because the channel is paused: "
                f"{worker.why_paused(paused[0])}."
            )
            raise CommandError(msg)
        limit = options["max_megabytes"]
        if pipe is not None and limit is not None and megabytes_used() >= limit:
            sys.exit(REPLACE)

    def _on_signals(self, stop: Callable[[int], None]) -> dict[int, Any]:
        """Have the signals that end a process call `stop`; return the old handlers."""

        def receive(number: int, _frame: FrameType | None) -> None:
            stop(number)

        before: dict[int, Any] = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, receive)
        except ValueError:  # not in the main thread: under the reloader, or in a test
            return before
        return before

    def _restore(self, before: dict[int, Any]) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    @contextmanager
    def _logging(self, verbosity: int) -> Iterator[None]:
        """Show the log according to the verbosity, while the worker runs."""
        logger = logging.getLogger("django_cqrs")
        level, handler = logger.level, None
        logger.setLevel(LEVELS.get(verbosity, logging.DEBUG))
        if not logger.hasHandlers():
            handler = logging.StreamHandler(self.stderr)
            handler.setFormatter(_OneLine())
            logger.addHandler(handler)
        try:
            yield
        finally:
            logger.setLevel(level)
            if handler is not None:
                logger.removeHandler(handler)
