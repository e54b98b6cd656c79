"""``manage.py cqrs_projections``: what it shows, does, refuses and exits with."""

import io
import json
from typing import Annotated

import pytest
from django.core.management import CommandError, call_command

from django_cqrs import event_handler
from django_cqrs.events import (
    PartitionName,
    Projections,
    Row,
    on_reset,
    operations,
    projection,
)
from django_cqrs.events.models import Generation, ProjectionFailure
from django_cqrs.retries import Retry
from tests.events.projections.support import OrderPlaced, append, project
from tests.events.views.models import Entry, OrderRow

pytestmark = pytest.mark.django_db

fails_at: set[int] = set()


@projection("inline", views=[OrderRow])
class CommandInline:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1

    @on_reset
    def emptied(self, partition: PartitionName):
        if partition is not None:
            OrderRow.objects.filter(number=partition.removeprefix("order-")).delete()


@projection(
    "followed",
    channel="outbox",
    views=[Entry],
    retry=Retry(attempts=1),
    on_failure="skip",
)
class CommandFollowed:
    @event_handler
    def placed(self, event: OrderPlaced):
        if event.number in fails_at:
            msg = f"not {event.number}"
            raise ValueError(msg)
        Entry.objects.create(number=event.number)


@pytest.fixture
def registry(monkeypatch):
    fails_at.clear()
    made = project(CommandInline, CommandFollowed)
    monkeypatch.setattr(operations, "projects", made)
    return made


def run(*arguments, **options):
    out = io.StringIO()
    call_command("cqrs_projections", *arguments, stdout=out, **options)
    return out.getvalue()


def numbers():
    return list(Entry.objects.order_by("number").values_list("number", flat=True))


def test_e34_1_what_the_list_shows(registry):
    """Each projection with its status, its place and its lag, as text and as JSON. [E34.1]"""
    append(registry, *map(OrderPlaced, range(3)))

    text = run("list")
    run("init", "followed")
    found = json.loads(run("list", "--format", "json"))

    lines = [line.split() for line in text.splitlines()]
    assert lines[2][:3] == ["inline", "live", "inline"]
    assert lines[3][:3] == ["followed", "new", "outbox"]
    assert text.splitlines()[-1].startswith("Settled position ")
    assert found["version"] == 1
    assert [each["name"] for each in found["projections"]] == ["inline", "followed"]
    assert found["projections"][1]["lag"] == 3
    assert found["settled"] == found["head"]


def test_e34_1_a_following_projection_is_run_paused_and_resumed(registry):
    """Each says what it has done, or that there was nothing to do. [E34.1]"""
    append(registry, *map(OrderPlaced, range(3)))

    assert run("init", "followed") == "followed: set up.\n"
    assert run("init", "followed") == "followed: is set up already.\n"
    assert run("pause", "followed") == "followed: paused.\n"
    assert run("pause", "followed") == "followed: is not running.\n"
    with pytest.raises(CommandError, match="is paused: resume it first"):
        run("run", "followed")
    assert run("resume", "followed") == "followed: resumed.\n"
    assert run("run", "followed") == "followed: 3 events.\n"
    assert run("wait", "followed", "--timeout", "0").startswith("followed: at position")
    assert "status: live" in run("show", "followed")
    assert json.loads(run("show", "followed", "--format", "json"))["lag"] == 0
    assert run("reshard", "followed", "2") == "followed: 2 shards.\n"
    assert numbers() == [0, 1, 2]


def test_e34_1_failures_are_listed_retried_and_skipped(registry):
    """By their keys, or all of them. [E34.1]"""
    fails_at.update([1, 2])
    append(registry, *map(OrderPlaced, range(4)))
    run("run", "followed")
    assert numbers() == [0, 3]

    found = json.loads(run("failures", "followed", "--format", "json"))["failures"]
    assert [each["error"] for each in found] == ["not 1", "not 2"]
    assert "not 1" in run("failures", "followed")
    fails_at.clear()
    key = str(found[0]["key"])
    assert run("retry", "followed", key) == "followed: 1 retried.\n"
    assert run("skip", "followed", str(found[1]["key"])) == "followed: 1 given up.\n"
    assert numbers() == [0, 1, 3]
    assert not ProjectionFailure.objects.exists()
    with pytest.raises(CommandError, match=key):
        run("retry", "followed", key)


def test_e28_7_all_are_rebuilt_and_reset(registry):
    """`--all` is every projection that it applies to. [E28.7, E34.1]"""
    append(registry, OrderPlaced(1), OrderPlaced(1))
    run("run", "--all")
    OrderRow.objects.update(changes=9)
    Entry.objects.all().delete()

    assert run("rebuild", "--all") == "inline: 2 events.\nfollowed: 2 events.\n"

    assert OrderRow.objects.get().changes == 2
    assert numbers() == [1, 1]
    assert run("reset", "--all") == "inline: empty.\nfollowed: empty.\n"
    assert run("backfill", "--all", "--batch", "1") == "inline: 2 events.\n"
    assert run("delete", "--all") == "inline: deleted.\nfollowed: deleted.\n"
    assert not Generation.objects.exists()


def test_e34_2_a_check_fails_where_one_has_failed_or_is_late(registry):
    """Its exit code is that of a failed command, and the text names them. [E34.2]"""
    fails_at.add(1)
    append(registry, OrderPlaced(1))
    run("list", "--check")

    with pytest.raises(CommandError, match=r"Late or failed: inline, followed\."):
        run("list", "--check", "--max-lag", "-1")
    run("run", "followed")
    with pytest.raises(CommandError, match=r"Late or failed: followed\."):
        run("list", "--check")


@pytest.mark.parametrize("action", ["show", "run", "rebuild", "failures", "retry"])
def test_e28_6_an_unknown_name_is_refused_with_a_near_one(registry, action):
    """The command fails, and nothing is done. [E28.6]"""
    with pytest.raises(CommandError, match="Did you mean 'followed'"):
        run(action, "folowed")


def test_e29_2_partitions_are_rebuilt_by_name(registry):
    """Several are rebuilt each in a transaction of its own, of one projection. [E29.2]"""
    for number in (1, 2, 3):
        append(registry, OrderPlaced(number), stream=f"order-{number}")
    OrderRow.objects.update(changes=9)
    parts = ("--partition", "order-1", "--partition", "order-3")

    assert run("rebuild", "inline", *parts) == "inline: 2 events.\n"

    found = OrderRow.objects.order_by("number").values_list("number", "changes")
    assert list(found) == [(1, 1), (2, 9), (3, 1)]
    with pytest.raises(CommandError, match=r"--partition is for one projection"):
        run("rebuild", "--all", *parts)


def test_one_or_all(registry):
    """A name, or `--all`, and not both."""
    for arguments in ((), ("followed", "--all")):
        with pytest.raises(CommandError, match=r"Give the name of a projection, or"):
            run("pause", *arguments)


def test_e34_5_its_help_touches_no_database(capsys):
    """Describing commands need no tables. [E34.5]"""
    with pytest.raises(SystemExit) as ended:
        call_command("cqrs_projections", "--help")

    assert ended.value.code == 0
    assert "rebuild" in capsys.readouterr().out
    assert Projections().names() is not None
