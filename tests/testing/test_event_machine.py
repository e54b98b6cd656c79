"""The machine of event-sourced objects finds appliers that are not repeatable."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from django_cqrs import command_handler
from django_cqrs.events import applies, event_stream
from django_cqrs.exceptions import InvalidOption
from django_cqrs.modelling import aggregate
from django_cqrs.testing.machines import EventMachine
from tests.modelling.models import Account

FEW = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    stateful_step_count=6,
    database=None,
    phases=[Phase.generate],
)


@dataclass(frozen=True)
class StartLog:
    log_id: UUID


@dataclass(frozen=True)
class WriteLog:
    log_id: UUID
    text: str


@dataclass(frozen=True)
class LogStarted:
    log_id: UUID


@dataclass(frozen=True)
class LogWritten:
    log_id: UUID
    text: str


class Silent(Exception):
    """What a log refuses."""


class Logging:
    """The handlers and appliers of all logs here."""

    @command_handler
    @classmethod
    def start(cls, command: StartLog) -> LogStarted:
        return LogStarted(command.log_id)

    @command_handler
    def write(self, command: WriteLog) -> LogWritten:
        if not command.text:
            raise Silent
        return LogWritten(self.log_id, command.text)

    @applies
    def started(self, event: LogStarted) -> None:
        self.log_id = event.log_id

    @applies
    def written(self, event: LogWritten) -> None:
        self.lines.append(event.text)


@aggregate(identifier="log_id")
@event_stream("kit.log", snapshot_every=2)
@dataclass
class SoundLog(Logging):
    log_id: UUID | None = None
    lines: list[str] = field(default_factory=list)


@aggregate(identifier="log_id")
@event_stream("kit.clocked")
@dataclass
class ClockedLog(Logging):
    log_id: UUID | None = None
    lines: list[str] = field(default_factory=list)
    at: datetime | None = None

    @applies
    def written(self, event: LogWritten) -> None:
        self.at = timezone.now()


@aggregate(identifier="log_id")
@event_stream("kit.dated")
@dataclass
class DatedLog(Logging):
    log_id: UUID | None = None
    lines: list[str] = field(default_factory=list)
    year: int = 0

    @applies
    def written(self, event: LogWritten) -> None:
        self.year = timezone.now().year


@aggregate(identifier="log_id")
@event_stream("kit.random")
@dataclass
class RandomLog(Logging):
    log_id: UUID | None = None
    lines: list[str] = field(default_factory=list)

    @applies
    def written(self, event: LogWritten) -> None:
        self.lines.append(uuid.uuid4().hex)


@aggregate(identifier="log_id")
@event_stream("kit.changed")
@dataclass
class ChangedLog(Logging):
    log_id: UUID | None = None
    lines: list[str] = field(default_factory=list)

    @command_handler
    def write(self, command: WriteLog) -> LogWritten:
        self.lines.append("beside the event")
        return LogWritten(self.log_id, command.text)


@aggregate(identifier="log_id")
@event_stream("kit.aliased", snapshot_every=2)
@dataclass
class AliasedLog(Logging):
    log_id: UUID | None = None
    lines: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    @applies
    def started(self, event: LogStarted) -> None:
        self.log_id = event.log_id
        self.shown = self.lines


def machine(log):
    class Machine(EventMachine):
        aggregate = log
        messages = [StartLog, WriteLog]
        refusals = (Silent,)

    return Machine


def run(log):
    run_state_machine_as_test(machine(log), settings=FEW)


TestSoundLog = machine(SoundLog).TestCase
TestSoundLog.settings = FEW


@pytest.mark.parametrize("log", [ClockedLog, DatedLog, RandomLog])
def test_e35_5_an_applier_that_depends_on_more_than_its_event_is_found(log):
    """On the clock, also by the year alone, or on chance. [E35.5]"""
    with pytest.raises(AssertionError, match=f"The events of {log.__name__} "):
        run(log)


def test_e35_5_a_change_without_an_event_is_found():
    """The object of the handler is not the one that its events make. [E35.5]"""
    with pytest.raises(AssertionError, match="applied again, make another object"):
        run(ChangedLog)


def test_e35_5_a_state_that_snapshots_lose_is_found():
    """One list under two names is two lists in a snapshot. [E35.5]"""
    with pytest.raises(AssertionError, match="applied to a snapshot at version"):
        run(AliasedLog)


def test_e35_5_a_sound_object_is_made_again_with_and_without_snapshots():
    """Whatever messages come. [E35.5]"""
    run(SoundLog)


def test_other_aggregates_are_refused():
    """They are not made of events, or are rows."""

    class OfRows(EventMachine):
        aggregate = Account

    class InRows(machine(SoundLog)):
        rows = True

    with pytest.raises(InvalidOption, match="Use AggregateMachine"):
        OfRows()
    with pytest.raises(InvalidOption, match="keeps its objects in memory"):
        InRows()
