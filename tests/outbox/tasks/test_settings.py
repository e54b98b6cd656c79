"""The options of the backend in TASKS: what is refused, what a check reports."""

import subprocess
import sys

import pytest
from django.core.checks import run_checks

from django_cqrs import Retry
from django_cqrs.outbox.tasks.djangos import InvalidTaskBackend, task_backends
from tests.outbox.tasks import work
from tests.outbox.tasks.conftest import BACKEND, backend

HINT = (
    'A queue is a channel of its name, or the one in OPTIONS["channel"]. Add {alias!r} '
    'to DJANGO_CQRS["CHANNELS"], with the BACKEND '
    "django_cqrs.outbox.channel.OutboxChannel."
)


def reported():
    return [
        (each.id, each.msg, each.hint)
        for alias in task_backends
        for each in task_backends[alias].check()
    ]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"chanel": "outbox"},
            "has no option 'chanel': only 'channel', 'retry', 'atomic', 'using'.",
        ),
        ({"retry": 3}, "has the option 'retry' 3: give a Retry(...)."),
        ({"atomic": None}, "has the option 'atomic' None: give True or False."),
        ({"using": "no"}, "has the option 'using' 'no': give an alias of DATABASES."),
        ({"channel": 7}, "has the option 'channel' 7: give the alias of a channel."),
    ],
)
def test_an_invalid_option(settings, options, text):
    """It is refused with the backend's alias, where the backend is first used."""
    settings.TASKS = {"default": {"BACKEND": BACKEND, "OPTIONS": options}}

    with pytest.raises(InvalidTaskBackend) as caught:
        task_backends["default"]
    assert str(caught.value) == f"The task backend 'default' {text}"


def test_an_alias_with_a_colon(settings):
    """It would be ambiguous in the name of an endpoint."""
    settings.TASKS = {"a:b": {"BACKEND": BACKEND}}

    with pytest.raises(InvalidTaskBackend, match="has a colon in its alias"):
        task_backends["a:b"]


def test_valid_options(settings):
    """No check has anything to say, with one channel or one for each queue."""
    settings.TASKS = {
        "default": backend(retry=Retry(attempts=3), atomic=False, using="other"),
        "second": {"BACKEND": BACKEND, "QUEUES": ["outbox"]},
    }

    assert reported() == []


def test_django_cqrs_outbox_e004_no_tables(settings):
    """The backend needs the app with the tables."""
    apps = [each for each in settings.INSTALLED_APPS if each != "django_cqrs.outbox"]
    settings.INSTALLED_APPS = apps

    assert (
        "django_cqrs_outbox.E004",
        "The task backend 'default' needs the outbox's tables.",
        "Add 'django_cqrs.outbox' to INSTALLED_APPS and migrate.",
    ) in reported()


@pytest.mark.parametrize(
    ("config", "text", "alias"),
    [
        (
            {"QUEUES": ["outbox", "mail"]},
            " for the queue 'mail': Channel 'mail' is not in DJANGO_CQRS['CHANNELS'].",
            "mail",
        ),
        (
            {"OPTIONS": {"channel": "memory"}},
            ": <InMemoryChannel 'memory'> is not an outbox, so no result is kept.",
            "memory",
        ),
        (
            {"QUEUES": [], "OPTIONS": {"channel": "outbux"}},
            ": Channel 'outbux' is not in DJANGO_CQRS['CHANNELS']. Did you mean 'outbox'?",
            "outbux",
        ),
    ],
)
def test_django_cqrs_outbox_e005_no_channel(settings, config, text, alias):
    """A queue without an outbox is reported with what is to be added."""
    settings.TASKS = {"default": {"BACKEND": BACKEND, **config}}

    assert reported() == [
        (
            "django_cqrs_outbox.E005",
            f"The task backend 'default' has no channel{text}",
            HINT.format(alias=alias),
        )
    ]


@pytest.mark.django_db
def test_the_channel_of_a_test_suite_calls_tasks_at_once(settings):
    """Settings in which every channel is immediate pass the check, as for handlers."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {"outbox": {"BACKEND": "django_cqrs.channels.ImmediateChannel"}}
    }

    assert reported() == []
    work.noop.enqueue(7)
    assert work.seen == [((7,), {})]


def test_an_invalid_time(settings):
    """TASK_RESULTS is checked as the other times for which rows are kept."""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "TASK_RESULTS": None}

    [found] = [
        each for each in run_checks(tags=["django_cqrs"]) if "TASK_RESULTS" in each.msg
    ]
    assert found.id == "django_cqrs.E013"


EARLY = """
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django_cqrs", "django_cqrs.outbox"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    TASKS={"default": {"BACKEND": "django_cqrs.outbox.tasks.OutboxTaskBackend"}},
)
from django_cqrs.outbox.tasks.djangos import make_task

def early():
    return 7

task = make_task(early)
django.setup()
print(task.call())
"""


def test_a_task_before_the_apps_are_loaded():
    """A module with tasks may be imported before any model."""
    done = subprocess.run(
        [sys.executable, "-c", EARLY], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("7\n", "")
