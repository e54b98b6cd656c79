"""``manage.py cqrs_events``: streams, events, positions and shapes, as operators see them."""

import io
import json
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated

import pytest
from django.core.management import CommandError, call_command

from django_cqrs import Registry, command_handler, message
from django_cqrs.conversion import upcaster
from django_cqrs.conversion.masking import MASK, Sensitive
from django_cqrs.events import EventStore, Stored, Tag, applies, event_stream, store
from django_cqrs.events.management import shapes_command
from django_cqrs.events.management.commands import cqrs_events
from django_cqrs.events.models import Stream
from django_cqrs.events.redaction import redact
from django_cqrs.modelling import aggregate
from django_cqrs.times import TimeFromNow
from tests.events.support import in_a_transaction

pytestmark = in_a_transaction


@message("account.opened")
@dataclass(frozen=True)
class AccountOpened:
    account_id: int
    email: Annotated[str, Sensitive(), Tag("email")] = ""


@message("account.charged", version=3)
@dataclass(frozen=True)
class AccountCharged:
    account_id: int
    cents: int


@message("account.closed")
@dataclass(frozen=True)
class AccountClosed:
    account_id: int


@upcaster("account.charged", version=2)
def in_cents(payload):
    return {"account_id": payload["account_id"], "cents": payload["amount"] * 100}


@aggregate
@event_stream("account")
@dataclass
class ShownAccount:
    account_id: int | None = None
    contact: str = ""
    charges: list[int] = field(default_factory=list)

    @command_handler("shown.close")
    def close(self, account_id: int): ...

    @applies
    def opened(self, event: AccountOpened):
        self.account_id = event.account_id
        self.contact = f"mail to {event.email}"

    @applies
    def charged(self, event: AccountCharged):
        self.charges.append(event.cents)


@pytest.fixture
def accounts(monkeypatch):
    """A store whose registry is that of the project."""
    made = Registry()
    for each in (ShownAccount, AccountOpened, AccountCharged, AccountClosed):
        made.add(each)
    monkeypatch.setattr(store, "projects", made)
    return EventStore()


def run(*arguments, **options):
    out = io.StringIO()
    call_command("cqrs_events", *arguments, stdout=out, **options)
    return out.getvalue()


def read(*arguments):
    return json.loads(run(*arguments, "--format", "json"))


def fill(accounts):
    """Append two events to each of three streams."""
    for key in (3, 1, 2):
        accounts.append(
            [
                Stored(
                    AccountOpened(key, "ada@example.org"),
                    headers={"reason": "for ada@example.org", "try": 1},
                ),
                AccountCharged(key, 250),
            ],
            stream=f"account-{key}",
        )


@pytest.mark.database
def test_streams_are_listed_by_category_and_key(accounts):
    """Each with its last version and event; the next page begins behind the last one. [E34.1]"""
    fill(accounts)
    accounts.append(AccountClosed(9), stream="journal")

    text = run("streams", "--category", "account", "--limit", "2")
    assert [re.split("  +", line) for line in text.splitlines()[2:]] == [
        *(
            [f"account-{key}", "2", "account.charged", str(row.recorded_at)]
            for key in (1, 2)
            for row in accounts.read(f"account-{key}", first=2)
        ),
        ["There may be more: --after account-2"],
    ]
    found = read("streams", "--after", "account-2")
    assert [(each["stream"], each["last_version"]) for each in found["streams"]] == [
        ("account-3", 2),
        ("journal", 1),
    ]
    assert found["after"] is None
    assert run("streams", "--category", "order") == "No streams.\n"


@pytest.mark.database
def test_an_archived_stream_says_so(accounts):
    """There is another column, with what each stream is. [E34.1]"""
    fill(accounts)
    Stream.objects.filter(key="2").update(archived_at=TimeFromNow())
    Stream.objects.filter(key="3").update(deleted_at=TimeFromNow())

    lines = run("streams").splitlines()

    assert lines[0].split()[-1] == "status"
    assert [line.split()[-1] for line in lines[2:]] == ["live", "archived", "deleted"]


@pytest.mark.database
def test_the_state_of_a_stream_now_and_earlier(accounts):
    """``--at`` takes a version or a time; sensitive values of its events are masked. [E34.1]"""
    fill(accounts)
    last = list(accounts.read("account-1"))[-1]
    before = (last.recorded_at - timedelta(days=1)).isoformat()

    shown = read("show", "account-1")
    earlier = read("show", "account-1", "--at", "1")
    then = read("show", "account-1", "--at", last.recorded_at.isoformat())

    assert shown["class"] == f"{__name__}.ShownAccount"
    assert shown["state"] == {
        "account_id": 1,
        "contact": f"mail to {MASK}",
        "charges": [250],
    }
    assert (shown["state_version"], shown["last_version"]) == (2, 2)
    assert (earlier["state_version"], earlier["state"]["charges"]) == (1, [])
    assert then["state"] == shown["state"]
    assert [each["name"] for each in shown["events"]] == [
        "account.opened",
        "account.charged",
    ]
    text = run("show", "account-1", "--limit", "1")
    assert "stream: account-1\nstatus: live\n" in text
    assert f'"contact": "mail to {MASK}", "charges": [250]' in text
    assert "account.opened" not in text
    assert "ada@example.org" not in json.dumps([shown, earlier, then])
    with pytest.raises(CommandError, match=r"The stream 'account-1' has no event at"):
        run("show", "account-1", "--at", before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "account-7"], "There is no stream 'account-7'."),
        (["show", "account-"], "nothing follows its hyphen"),
        (["show", "account-1", "--at", "noon"], "--at takes a version, such as 3, or"),
        (["show", "account-1", "--at", "2026-13-01T00:00"], "not '2026-13-01T00:00'."),
        (["read", "--timeout", "1"], "--timeout is for --follow."),
        (["read", "--follow", "--archived"], "--follow does not take --archived"),
        (["read", "--category", "account-1"], "category= takes a category"),
        (["streams", "--limit", "0"], "it takes a number from 1, not 0"),
        (["streams", "--tenant", "acme"], "--tenant needs DJANGO_CQRS['TENANCY']"),
    ],
)
def test_what_cannot_be_shown_is_one_line(accounts, arguments, said):
    """A stream that is not there, and options that make no sense."""
    fill(accounts)

    with pytest.raises(CommandError) as caught:
        run(*arguments)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.database
def test_events_are_read_in_pages_and_masked(accounts):
    """By name, category, stream and tag; headers that quote a sensitive value as well. [E34.1]"""
    fill(accounts)

    first = read("read", "--limit", "4")
    second = read("read", "--after", str(first["after"]))
    named = read("read", "--name", "*.opened", "--stream", "account-1")
    tagged = read("read", "--tag", "email:ada@example.org")

    assert [each["stream"] for each in first["events"]] == ["account-3"] * 2 + [
        "account-1"
    ] * 2
    assert [each["stream"] for each in second["events"]] == ["account-2"] * 2
    assert second["after"] is None
    [event] = named["events"]
    assert event["payload"] == {"account_id": 1, "email": MASK}
    assert event["headers"] == {"reason": f"for {MASK}", "try": 1}
    assert event["tags"] == [f"email:{MASK}"]
    assert event["not_shown"] is None
    assert len(tagged["events"]) == 3
    assert "ada@example.org" not in json.dumps([first, second, named, tagged])
    line = run("read", "--name", "account.opened", "--limit", "1", "--payload")
    assert f'"email": "{MASK}"' in line
    assert "There may be more: --after " in line
    assert run("read", "--name", "order.*") == "No events.\n"


def test_events_are_followed_until_a_number_or_a_time(accounts):
    """Each is a line, as it settles. [E34.1]"""
    fill(accounts)

    text = run("read", "--follow", "--after", "0", "--limit", "2")
    found = run("read", "--follow", "--after", "0", "--timeout", "0", format="json")
    none = run("read", "--follow", "--timeout", "0")

    assert [line.split("  ")[1:4] for line in text.splitlines()] == [
        ["account-3", "1", "account.opened"],
        ["account-3", "2", "account.charged"],
    ]
    assert [json.loads(line)["version"] for line in found.splitlines()] == [1, 2] * 3
    assert none == ""


def test_an_event_without_a_class_is_not_shown(accounts):
    """Nobody can tell which of its values are sensitive."""
    fill(accounts)
    stranger = EventStore(registry=Registry())

    [recorded, _] = stranger.read("account-1")
    shown = redact(recorded, stranger.registry.routes.types)

    assert shown.payload is None
    assert shown.reason.startswith("No registered message class is named ")
    assert shown.headers["try"] == 1
    assert shown.tags == (f"email:{MASK}",)


def test_the_positions_of_a_store(accounts):
    """The last one, the settled one, and who holds followers back. [E34.1]"""
    fill(accounts)
    head = accounts.head()

    assert run("head") == f"Settled position {head} of {head}.\n"
    assert read("head") == {
        "version": 1,
        "head": head,
        "settled": head,
        "held_back_by": [],
    }


@pytest.mark.database
def test_e13_5_shapes_are_counted_and_those_without_a_way_named(accounts, monkeypatch):
    """By name and version, with the class that reads them; exit 1 if one has none. [E13.5]"""
    fill(accounts)
    accounts.append(AccountClosed(1), stream="account-1")
    in_order = shapes_command.StoredEvent.objects.order_by("pk")
    rows = list(in_order.filter(name="account.charged").values_list("pk", flat=True))
    for shape, row in zip((1, 2, 3), rows, strict=True):
        shapes_command.StoredEvent.objects.filter(pk=row).update(shape=shape)

    lines = [line.split(None, 3) for line in run("shapes").splitlines()[2:]]
    here = __name__
    assert lines == [
        [
            "account.charged",
            "1",
            "1",
            f"{here}.AccountCharged, version 3, by upcasters",
        ],
        [
            "account.charged",
            "2",
            "1",
            f"{here}.AccountCharged, version 3, by upcasters",
        ],
        ["account.charged", "3", "1", f"{here}.AccountCharged"],
        ["account.closed", "1", "1", f"{here}.AccountClosed"],
        ["account.opened", "1", "3", f"{here}.AccountOpened"],
    ]

    shapes_command.StoredEvent.objects.filter(pk=rows[0]).update(shape=4)
    fewer = Registry()
    for each in (AccountOpened, AccountCharged):
        fewer.add(each)
    monkeypatch.setattr(store, "projects", fewer)
    with pytest.raises(CommandError) as caught:
        run("shapes")
    assert caught.value.returncode == 1
    assert str(caught.value) == (
        "No class reads 2 events: account.charged 4, account.closed 1."
    )
    with pytest.raises(CommandError, match=r"No class reads 1 events: account.charged"):
        run("shapes", "--accept", "account.closed")


def test_shapes_of_an_empty_store(accounts):
    """There is nothing to read."""
    assert run("shapes") == "No events.\n"
    assert read("shapes") == {"version": 1, "shapes": []}


@pytest.mark.parametrize("action", cqrs_events.SUBCOMMANDS)
def test_e34_5_help_touches_no_database(action, capsys, django_db_blocker):
    """Describing a subcommand needs no tables. [E34.5]"""
    with django_db_blocker.block(), pytest.raises(SystemExit) as ended:
        call_command("cqrs_events", action, "--help")

    assert ended.value.code == 0
    assert "--database" in capsys.readouterr().out
