"""The policies for failures that settings give, and those that a function decides."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from io import StringIO

import pytest
from django.core.management import call_command

from django_cqrs import (
    DEADLOCKS,
    CommandBus,
    Header,
    InstantRetry,
    Message,
    Retry,
    command_handler,
    message,
)
from django_cqrs.channels import channels
from django_cqrs.checks import check_channels, check_settings
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.management.commands import cqrs_routes
from django_cqrs.outbox.models import DeadLetter, JournalEntry, OutboxMessage
from django_cqrs.outbox.worker import Bounds, Worker
from tests.support import registry_of

pytestmark = pytest.mark.django_db

OUTBOX = "django_cqrs.outbox.channel.OutboxChannel"
MEMORY = "django_cqrs.channels.InMemoryChannel"
OWN, SHARED = {"attempts": 2, "delay": 0}, {"attempts": 4, "delay": 0}


class Refused(Exception):
    """What a handler here raises on purpose."""


class Away(Exception):
    """A failure that waiting helps against."""


def decide(error: Exception) -> str:
    """Decide by what the exception says."""
    return str(error)


def sized(backend, options=None, **settings):
    """Return settings with one channel, and perhaps a policy of the project."""
    channel = {"BACKEND": backend, "OPTIONS": options or {}}
    return {"CHANNELS": {"mail": channel}, **settings}


def handler_of(retry=None, said="no", *, error=Refused, channel="mail"):
    """Return a handler that fails, and the attempts that it sees."""
    seen = []

    @command_handler("do", name="do", channel=channel, retry=retry)
    def do(text: str, message: Message) -> None:
        seen.append((message.attempt, message.is_last_attempt))
        raise error(said)

    return do, seen


def run_to_the_end(registry, backend):
    registry.command_bus.dispatch("x", route="do")
    if backend == OUTBOX:
        bounds = Bounds(until_empty=True)
        for _ in range(9):
            OutboxMessage.objects.update(available_at="2000-01-01T00:00:00Z")
            Worker(registry, ["mail"], using="default", bounds=bounds).run()
    else:
        while channels["mail"].waiting():
            with pytest.raises((Refused, Away)):
                channels["mail"].run()


# ------------------------------------------------------------------------- defaults


@pytest.mark.parametrize("backend", [OUTBOX, MEMORY], ids=["outbox", "memory"])
@pytest.mark.parametrize(
    ("sources", "attempts"),
    [
        ((Retry(attempts=1), {"retry": OWN}, SHARED), 1),
        ((None, {"retry": OWN}, SHARED), 2),
        ((None, {"retry": Retry(**OWN)}, None), 2),
        ((None, {}, SHARED), 4),
        ((None, {}, Retry(**SHARED)), 4),
    ],
    ids=["handler", "channel", "channel's object", "project", "project's object"],
)
def test_the_handler_beats_the_channel_and_the_channel_the_project(
    settings, backend, sources, attempts
):
    """Each is a default for those that say nothing themselves."""
    own, options, shared = sources
    settings.DJANGO_CQRS = sized(backend, options, RETRY=shared)
    do, seen = handler_of(own)

    run_to_the_end(registry_of(do), backend)

    assert [number for number, _ in seen] == list(range(1, attempts + 1))
    assert [is_last for _, is_last in seen] == [False] * (attempts - 1) + [True]


def test_without_any_of_them_the_outbox_has_its_own(settings):
    """Five attempts, as before."""
    settings.DJANGO_CQRS = sized(OUTBOX)
    do, seen = handler_of()

    run_to_the_end(registry_of(do), OUTBOX)

    assert len(seen) == Retry().attempts == 5


def test_paths_in_on_are_imported(settings):
    """A settings module cannot import the exceptions of an app."""
    away = f"{__name__}.Away"
    settings.DJANGO_CQRS = sized(
        OUTBOX, {"retry": {**OWN, "on": [away, "django_cqrs.DEADLOCKS"]}}
    )
    assert channels["mail"].retry == Retry(**OWN, on=(Away, DEADLOCKS))
    for error, attempts in ((Away, 2), (Refused, 1)):
        do, seen = handler_of(error=error)
        run_to_the_end(registry_of(do), OUTBOX)
        assert len(seen) == attempts


@pytest.mark.parametrize("given", [InstantRetry(2), {"retries": 2}])
def test_the_projects_command_bus_retries_at_once(settings, given):
    """The bus of each registry does; one of your own has its own policy, or none."""
    settings.DJANGO_CQRS = {"INSTANT_RETRY": given}
    do, seen = handler_of(channel=None)
    registry = registry_of(do)

    with pytest.raises(Refused):
        registry.command_bus.dispatch("x", route="do")
    with pytest.raises(Refused):
        CommandBus(registry=registry).dispatch("x", route="do")

    assert seen == [(1, False), (2, False), (3, True), (1, True)]


def test_settings_that_change_are_read_again(settings):
    """As override_settings needs it."""
    do, seen = handler_of(channel=None)
    registry = registry_of(do)
    for retries in (1, 0):
        settings.DJANGO_CQRS = {"INSTANT_RETRY": {"retries": retries}}
        with pytest.raises(Refused):
            registry.command_bus.dispatch("x", route="do")

    assert seen == [(1, False), (2, True), (1, True)]


# ------------------------------------------------------------------------ bad values

FAULTS = [
    (3, " = 3 is neither None, nor {cls}(...), nor a dictionary of its values."),
    ({"delays": 1}, ": {cls} has no argument 'delays'.{hint}"),
    ({"on": "no.such.Error"}, ": No module named 'no'"),
    ({"on": 5}, ": {cls}(on=...) takes exception classes and DEADLOCKS"),
]


@pytest.mark.parametrize(("given", "said"), FAULTS)
@pytest.mark.parametrize("cls", ["Retry", "InstantRetry"])
def test_E013_a_policy_of_the_project_that_is_none(settings, cls, given, said):
    """The check names the setting, what is wrong with it, and what to give."""
    key = "RETRY" if cls == "Retry" else "INSTANT_RETRY"
    settings.DJANGO_CQRS = {key: given}

    [found] = check_settings()

    assert found.id == "django_cqrs.E013"
    hint = " Did you mean 'delay'?" if cls == "Retry" else ""
    wanted = said.format(cls=cls, hint=hint)
    assert found.msg.startswith(f"DJANGO_CQRS[{key!r}]{wanted}")
    assert found.hint == f"Give a dictionary of the arguments of {cls}, or remove it."


@pytest.mark.parametrize(("given", "said"), FAULTS)
def test_E016_a_policy_of_a_channel_that_is_none(settings, given, said):
    """The channel cannot be made, whether a handler uses it or not."""
    settings.DJANGO_CQRS = sized(OUTBOX, {"retry": given})

    [found] = check_channels()

    wanted = said.format(cls="Retry", hint=" Did you mean 'delay'?")
    assert found.id == "django_cqrs.E016"
    assert found.msg.startswith(f"The option 'retry' of the channel 'mail'{wanted}")


def test_a_channel_that_never_tries_again_has_no_such_option(settings):
    """A policy there would do nothing."""
    settings.DJANGO_CQRS = sized("django_cqrs.channels.OnCommitChannel", {"retry": OWN})
    with pytest.raises(InvalidChannel, match="has no option 'retry'"):
        channels["mail"]


def test_a_bad_policy_of_the_project_ends_no_worker(settings):
    """A worker that was started without checks keeps the message."""
    settings.DJANGO_CQRS = sized(OUTBOX, RETRY={"attempts": 0})
    do, seen = handler_of(Retry(attempts=1))
    other = command_handler("other", name="other", channel="mail")(lambda text: None)
    registry = registry_of(do, other)
    registry.command_bus.dispatch("x", route="do")
    OutboxMessage.objects.update(endpoint="other")

    bounds = Bounds(until_empty=True, messages=1)
    tally = Worker(registry, ["mail"], using="default", bounds=bounds).run()

    assert (tally.failed, seen) == (1, [])
    [row] = OutboxMessage.objects.all()
    assert row.attempts == 1
    assert "ImproperlyConfigured: DJANGO_CQRS['RETRY']" in row.last_error


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"attempts": True}, ValueError),
        ({"attempts": 2.0}, ValueError),
        ({"delay": "1"}, ValueError),
        ({"cap": None}, ValueError),
        ({"factor": 0.5}, ValueError),
        ({"delay": float("nan")}, ValueError),
        ({"on": lambda: "retry"}, TypeError),
        ({"on": (decide,)}, TypeError),
        ({"on": int}, TypeError),
    ],
    ids=["bool", "float", "text", "none", "factor", "nan", "lambda", "tuple", "class"],
)
def test_arguments_that_are_no_policy(arguments, error):
    """They are refused where they are written."""
    with pytest.raises(error, match="Retry"):
        Retry(**arguments)


def test_an_async_function_cannot_decide():
    """Its answer would be a coroutine."""

    async def later(error: Exception) -> str:
        return "retry"

    with pytest.raises(TypeError, match="it must not be async"):
        Retry(on=later)
    with pytest.raises(TypeError, match="not <function decide"):
        InstantRetry(on=decide)


# ------------------------------------------------------------------------- functions


DECISIONS = {
    "retry": (3, 1, ["failed"] * 3),
    "dead": (1, 1, ["failed"]),
    "drop": (1, 0, ["dropped"]),
}


@pytest.mark.parametrize("backend", [OUTBOX, MEMORY], ids=["outbox", "memory"])
@pytest.mark.parametrize(
    ("said", "final_failure"),
    [(said, "dead_letter") for said in DECISIONS]
    + [("dead", "stop"), ("drop", "stop")],
)
def test_a_function_of_the_exception_decides(settings, backend, said, final_failure):
    """A dropped message is settled and journalled; no dead letter is written for it."""
    attempts, letters, outcomes = DECISIONS[said]
    settings.DJANGO_CQRS = sized(backend, JOURNAL=3600)
    policy = Retry(attempts=3, delay=0, on=decide, final_failure=final_failure)
    do, seen = handler_of(policy, said)

    run_to_the_end(registry_of(do), backend)

    assert len(seen) == attempts
    if backend == OUTBOX:
        assert OutboxMessage.objects.count() == 0
        assert DeadLetter.objects.count() == letters
        found = JournalEntry.objects.order_by("pk").values_list("outcome", flat=True)
        assert list(found) == outcomes


@pytest.mark.parametrize(
    ("decider", "text"),
    [
        (decide, f"{__name__}.decide, in on=, answered 'no', which is none of"),
        (
            lambda error: error.nothing,
            "<lambda>, in on=, failed: the message is retried",
        ),
    ],
    ids=["answer", "error"],
)
def test_a_function_that_does_not_answer_loses_nothing(settings, caplog, decider, text):
    """The message is tried again, and then given up as the policy says; it is logged."""
    settings.DJANGO_CQRS = sized(OUTBOX)
    do, seen = handler_of(Retry(attempts=2, delay=0, on=decider))

    with caplog.at_level(logging.ERROR, "django_cqrs.worker"):
        run_to_the_end(registry_of(do), OUTBOX)

    assert len(seen) == 2
    assert text in caplog.text
    assert DeadLetter.objects.get().attempts == 2


# ---------------------------------------------------------------------------- routes


@message("retry_settings.mail")
@dataclass(frozen=True)
class Mail:
    address: str


def next_monday(message): ...


@pytest.fixture
def routes(settings, monkeypatch):
    """The lines of cqrs_routes for handlers with every kind of policy."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            "mail": {"BACKEND": OUTBOX, "OPTIONS": {"retry": {"attempts": 9}}},
            "plain": {"BACKEND": OUTBOX},
            "outbox": {"BACKEND": OUTBOX},  # of the installed apps' own handlers
            "default": {"BACKEND": OUTBOX},
        },
        "RETRY": {"attempts": 2, "delay": 7},
    }

    @command_handler(
        "own",
        name="own",
        channel="mail",
        delay=60,
        retry=Retry(attempts=1, on=(Away, DEADLOCKS), final_failure="drop"),
        ordering_key="address",
        idempotency_key=Header("payment"),
    )
    def own(command: Mail) -> None: ...

    @command_handler("channels", name="channels", channel="mail")
    def of_channel(command: Mail) -> None: ...

    @command_handler("projects", name="projects", channel="plain", delay=next_monday)
    def of_project(command: Mail) -> None: ...

    @command_handler("now", name="now")
    def now(command: Mail) -> None: ...

    monkeypatch.setattr(
        cqrs_routes, "registry", registry_of(own, of_channel, of_project, now)
    )

    def show(*arguments):
        stdout = StringIO()
        call_command("cqrs_routes", *arguments, stdout=stdout, no_color=True)
        return stdout.getvalue()

    return show


def test_routes_show_the_delay_the_policy_and_the_keys(routes):
    """In columns that are there where a handler has one."""
    lines = [line for line in routes().splitlines() if "<locals>" in line]
    tails = {
        line.split()[0]: line.split("default", 1)[1].split() for line in sorted(lines)
    }

    assert " ".join(tails["own"]) == (
        "60 s 1 attempt ordered by address, once per Header('payment')"
    )
    assert " ".join(tails["channels"]) == "9 attempts from 1 s"
    assert " ".join(tails["projects"]) == "next_monday 2 attempts from 7 s"
    assert tails["now"] == []


def test_json_has_the_policy_and_what_gives_it(routes):
    """The most special source is decisive."""
    found = {
        each["message"]: each
        for each in json.loads(routes("--format", "json"))["routes"]
    }

    assert found["own"]["delay"] == 60.0
    assert found["own"]["ordering_key"] == "address"
    assert found["own"]["idempotency_key"] == "Header('payment')"
    assert found["own"]["retry"] == {
        "attempts": 1,
        "delay": 1,
        "factor": 2,
        "cap": 600,
        "jitter": True,
        "on": [f"{__name__}.Away", "DEADLOCKS"],
        "final_failure": "drop",
        "source": "handler",
    }
    sources = {
        name: each["retry"] and each["retry"]["source"] for name, each in found.items()
    }
    assert sources == {
        "own": "handler",
        "channels": "channel",
        "projects": "project",
        "now": None,
    }


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "own",
            [
                "after a delay of 60 s",
                "one at a time in the order of address",
                "once per Header('payment')",
                (
                    f"if it fails: one attempt, on {__name__}.Away, DEADLOCKS; then drop "
                    "(by its own retry=)"
                ),
            ],
        ),
        (
            "channels",
            [
                (
                    "if it fails: at most 9 attempts, the first two 1 s apart, each next "
                    "delay 2 times as long, up to 600 s, on Exception; then dead_letter "
                    "(by the channel's OPTIONS)"
                ),
            ],
        ),
        (
            "projects",
            [
                "after the delay that next_monday returns",
                (
                    "if it fails: at most 2 attempts, 7 s between them, on Exception; then "
                    "dead_letter (by DJANGO_CQRS['RETRY'])"
                ),
            ],
        ),
        ("now", []),
    ],
)
def test_one_message_is_explained_with_them(routes, name, lines):
    """After its transaction."""
    found = routes(name).splitlines()

    assert [line.strip() for line in found[4:]] == lines
