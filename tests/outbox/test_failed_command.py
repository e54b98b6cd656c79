"""``manage.py cqrs_failed``: dead letters listed, shown, replayed and deleted."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from django_cqrs import Registry, Retry, buses, command_handler
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.testing.flow import Flow
from tests.outbox.support import rows, work
from tests.outbox.work import Work

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@pytest.fixture
def registry(monkeypatch):
    state = {"broken": True, "seen": []}

    @command_handler("desk.print", channel="outbox", retry=Retry(attempts=1))
    def print_label(number: int) -> None:
        if state["broken"]:
            msg = f"no paper for {number}"
            raise OSError(msg)
        state["seen"].append(number)

    registry = Registry()
    registry.add(print_label)
    registry.state = state
    monkeypatch.setattr(buses, "registry", registry)
    return registry


@pytest.fixture
def letters(registry):
    with Flow(registry=registry) as flow:
        for number in (1, 2, 3):
            registry.command_bus.dispatch(number, route="desk.print")
            with pytest.raises(OSError, match="no paper"):
                flow.run("outbox")
    return list(DeadLetter.objects.order_by("sequence"))


def output_of(*arguments, **options):
    stdout = StringIO()
    call_command("cqrs_failed", *arguments, stdout=stdout, no_color=True, **options)
    return stdout.getvalue()


def test_list(letters):
    """Dead letters are listed, the newest first, with reason and error. [C05.2]"""
    lines = output_of("list").splitlines()

    assert lines[0].split() == (
        ["Id", "Failed", "at", "Channel", "Endpoint", "Reason", "Tries", "Error"]
    )
    assert len(lines) == 5
    assert lines[2].startswith(str(letters[2].pk))
    assert lines[2].endswith("failed    1        no paper for 3")


def test_list_json(letters):
    """JSON is one document of stable keys, and has no payload. [C05.2]"""
    document = json.loads(output_of("list", "--format", "json", "--limit", "1"))

    assert [each["id"] for each in document] == [letters[2].pk]
    assert document[0]["exception"] == "builtins.OSError"
    assert "payload" not in document[0]


def test_list_is_filtered_and_limited(letters):
    """Filters narrow the list; what the limit leaves out is counted. [C05.2]"""
    assert output_of("list", "--reason", "poison") == "No dead letters.\n"
    assert output_of("list", "--limit", "2").endswith("... and 1 more.\n")


def test_show(letters):
    """One is shown whole: ids, error, headers, payload, traceback. [C05.2]"""
    text = output_of("show", str(letters[0].pk))

    assert "endpoint:       tests.outbox.test_failed_command.print_label\n" in text
    assert "reason:         failed: the handler failed\n" in text
    assert "payload:        1\n" in text
    assert "OSError: no paper for 1" in text


def test_show_unknown():
    """An id that is none is refused. [C05.2]"""
    with pytest.raises(CommandError, match="Dead letter not found: 99"):
        output_of("show", "99")


def test_replay_one(letters, registry):
    """One is put back with its bytes and its endpoint, and handled by that alone. [C05.2]"""
    text = output_of("replay", str(letters[1].pk))
    registry.state["broken"] = False
    with Flow(registry=registry) as flow:
        flow.run("outbox")

    assert text == "Replayed 1.\n"
    assert registry.state["seen"] == [2]
    assert DeadLetter.objects.count() == 2
    assert OutboxMessage.objects.count() == 0


def test_replay_all_by_filter(letters, registry):
    """All that a filter leaves are put back, in the order of their sending. [C05.2]"""
    assert output_of("replay", "--all", "--channel", "other") == "Replayed 0.\n"
    assert output_of("replay", "--all", "--reason", "failed") == "Replayed 3.\n"
    registry.state["broken"] = False
    with Flow(registry=registry) as flow:
        flow.run("outbox")

    assert registry.state["seen"] == [1, 2, 3]


def test_an_unknown_id_replays_nothing(letters):
    """Where one id is none, nothing at all is done. [C05.2]"""
    with pytest.raises(CommandError) as caught:
        output_of("replay", str(letters[0].pk), "0")

    assert str(caught.value) == "Dead letter not found: 0. Nothing was done."
    assert DeadLetter.objects.count() == 3


def test_say_which(letters):
    """Neither an id nor --all is no order to replay everything. [C05.2]"""
    with pytest.raises(
        CommandError, match="Name the dead letters: cqrs_failed replay ID"
    ):
        output_of("replay")


def test_dry_run(letters):
    """A dry run counts and does nothing. [C05.2]"""
    assert output_of("delete", "--all", "--dry-run") == "Would delete 3.\n"
    assert DeadLetter.objects.count() == 3


def test_delete(letters):
    """Deleting leaves neither the letter nor a message. [C05.2]"""
    text = output_of("delete", str(letters[0].pk), "--no-input")

    assert text == "Deleted 1.\n"
    assert DeadLetter.objects.count() == 2
    assert OutboxMessage.objects.count() == 0


def test_delete_asks(letters, monkeypatch):
    """Without --no-input it asks, and anything but yes is no. [C05.2]"""
    monkeypatch.setattr("builtins.input", lambda _question: "y")

    assert output_of("delete", "--all") == "Nothing was deleted.\n"
    assert DeadLetter.objects.count() == 3


def test_what_is_tried_again_is_listed_with_its_last_error():
    """The next first; what waits for its time without having failed is not."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=3, delay=600))
    def do(command: Work):
        msg = f"no paper for {command.number}\nat all"
        raise ValueError(msg)

    registry.command_bus.dispatch(Work(1))
    registry.command_bus.dispatch(Work(2), delay=3600)
    work(registry)
    (row, _) = rows()

    lines = output_of("waiting").splitlines()

    assert lines[0].split("  ")[0] == "Id"
    assert lines[2:] == [
        (
            f"{row.pk:<4}  {row.available_at:%Y-%m-%d %H:%M:%S}  outbox     do          "
            f"1        ValueError: no paper for 1"
        )
    ]
    assert output_of("waiting", "--channel", "mail") == (
        "No messages are waiting for another attempt.\n"
    )
