"""Event streams beside other apps: without the outbox, and the others without them."""

import subprocess
import sys
from pathlib import Path

from tests.limits import LIMIT

SETTINGS = """
import sys
import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DJANGO_CQRS={
        "CHANNELS": {
            "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
            "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
        }
    },
    INSTALLED_APPS=[%s],
    USE_TZ=True,
)
django.setup()
from dataclasses import dataclass
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection
from django_cqrs import Registry, command_handler, event_handler, message

call_command("migrate", verbosity=0, run_syncdb=True)
"""

WITHOUT_THE_OUTBOX = """
from django_cqrs.checks import check_registry
from django_cqrs.events import EventStore, Projections, projection
from tests.events.views.models import Entry

@message("ticket.sold")
@dataclass(frozen=True)
class Sold:
    number: int

@projection("inline")
def inline(event: Sold):
    Entry.objects.create(text="inline", number=event.number)

@projection("by hand", on_demand=True)
def by_hand(event: Sold):
    Entry.objects.create(text="by hand", number=event.number)

@projection("followed", channel="outbox")
def followed(event: Sold):
    Entry.objects.create(text="followed", number=event.number)

registry = Registry()
for each in (inline, by_hand):
    registry.add(each)
EventStore(registry=registry).append([Sold(1), Sold(2)], stream="ticket-1")
print(Projections(registry=registry).run("by hand"))
print(sorted(Entry.objects.values_list("text", "number")))
print([each.id for each in check_registry(registry)])
registry.add(followed)
for each in (*check_registry(registry), *run_checks()):
    print(each.id, each.msg, each.hint)
print([name for name in connection.introspection.table_names() if "outbox" in name])
"""

WITHOUT_EVENTS = """
from django_cqrs.outbox.worker import Bounds, Worker

handled = []

@command_handler("ticket.note", channel="outbox")
def note(number: int) -> None:
    handled.append(number)

@event_handler("ticket.noted")
def noted(number: int) -> None:
    handled.append(-number)

registry = Registry()
for each in (note, noted):
    registry.add(each)
registry.command_bus.dispatch(1, route="ticket.note")
registry.event_bus.publish(2, route="ticket.noted")
Worker(registry, ["outbox"], using="default", bounds=Bounds(until_empty=True)).run()
print(sorted(handled))
call_command("cqrs_routes", verbosity=0)
print([each.id for each in run_checks(databases=["default"])])
print([name for name in connection.introspection.table_names() if "events" in name])
print([name for name in sys.modules if name.startswith("django_cqrs.events")])
"""


def run(apps, code):
    """Return the lines that a process with these apps prints."""
    settings = SETTINGS % ", ".join(map(repr, apps))
    done = subprocess.run(
        [sys.executable, "-c", settings + code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_e36_5_without_the_outbox_projections_run_inline_and_by_command():
    """One on a channel of the outbox is a check, which says what to install. [E36.5]"""
    apps = ["django_cqrs", "django_cqrs.events", "tests.events.views"]

    assert run(apps, WITHOUT_THE_OUTBOX) == [
        "2",
        "[('by hand', 1), ('by hand', 2), ('inline', 1), ('inline', 2)]",
        "[]",
        (
            "django_cqrs_outbox.E001 The channel 'outbox' needs the outbox's tables. "
            "Add 'django_cqrs.outbox' to INSTALLED_APPS and migrate."
        ),
        "[]",
    ]


def test_e36_6_without_event_streams_there_is_neither_a_table_nor_an_import():
    """Messages are handled, routes listed and checks run without them. [E36.6]"""
    assert run(["django_cqrs", "django_cqrs.outbox"], WITHOUT_EVENTS) == [
        "[-2, 1]",
        "No routes.",
        "[]",
        "[]",
        "[]",
    ]
