"""Each keyword of the decorators does what the reference says, or is refused."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import subprocess
import sys
from abc import ABC, abstractmethod
from functools import partial
from typing import Annotated, Protocol

import pytest
from django.db import connections

from django_cqrs import (
    CommandBus,
    Depends,
    InstantRetry,
    QueryBus,
    Registry,
    Service,
    command_handler,
    event_handler,
    query_handler,
    service,
)
from django_cqrs.channels import channels
from django_cqrs.checks import check_registry, check_settings
from django_cqrs.declaration.declarations import Policies
from django_cqrs.declaration.keywords import KEYWORDS, NOWHERE
from django_cqrs.exceptions import InvalidHandler
from tests.docs_support.pages import DOCS
from tests.support import registry_of

ALIASES = {
    "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
    "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
    "commit": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
}


@pytest.fixture
def kept(settings):
    """The channels of each kind."""
    settings.DJANGO_CQRS = {"CHANNELS": ALIASES}


# ------------------------------------------------------------------ the reference


def rows_of_reference() -> dict[str, tuple[str, ...]]:
    """Return the cells of the reference's table, by the keyword."""
    page = (DOCS / "reference" / "decorators.md").read_text()
    heading = "| keyword | commands | events | queries | meaning |"
    lines = page.split(heading)[1].split("\n\n")[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): tuple(row[1:4]) for row in rows[1:]}


def test_the_reference_says_what_the_checks_read():
    """Its table has a row for each keyword, in the words of the code's own."""
    assert rows_of_reference() == {
        each.name: (each.command.text, each.event.text, each.query.text)
        for each in KEYWORDS.values()
    }


SHOWN = """
route: 'Any' = None
name: 'str | None' = None
aliases: 'tuple[str, ...] | list[str]' = ()
using: 'str | None' = None
atomic: 'bool | None' = None
channel: 'str | bool | None' = None
delay: 'timedelta | float | Callable[[Message], Span | datetime | None] | None' = None
expires: 'timedelta | float | Callable[[Message], Span | datetime | None] | None' = None
priority: 'int | None' = None
retry: 'Retry | None' = None
identifier: 'Any' = None
on_missing: 'OnMissing | None' = None
on_existing: 'OnExisting | None' = None
output: 'str | tuple[str, ...] | list[str] | None' = None
ordering_key: 'KeySource | Literal[True] | None' = None
idempotency_key: 'KeySource | None' = None
on_dead: 'str | type | None' = None
tenant: 'bool | None' = None
"""


@pytest.mark.parametrize("decorator", [command_handler, event_handler])
def test_help_shows_each_keyword_with_its_type_and_default(decorator):
    """help() has no dict of keywords."""
    signature = inspect.signature(decorator)

    assert [str(each) for each in signature.parameters.values()] == (
        SHOWN.strip().splitlines()
    )
    # Python shows annotations that are strings with quotes, from 3.14 on without.
    text = pydoc.render_doc(decorator, renderer=pydoc.plaintext).replace("'", "")
    assert all(line.replace("'", "") in text for line in SHOWN.strip().splitlines())
    assert "**" not in text.partition(") -> ")[0]


@pytest.mark.parametrize(
    ("decorator", "name"),
    [(command_handler, "command_handler"), (event_handler, "event_handler")],
)
def test_a_misspelt_keyword_is_refused_under_the_name_of_the_decorator(decorator, name):
    """Also without a value, and before anything is decorated."""
    for value in (True, None):
        with pytest.raises(TypeError) as caught:
            decorator("ticket.open", chanel=value)

        assert str(caught.value).startswith(
            f"{name}() got an unexpected keyword argument 'chanel'"
        )


def test_no_keyword_is_without_a_rule():
    """What the decorators take, what an endpoint keeps and what the table has agree."""
    kept = {field.name for field in dataclasses.fields(Policies)}
    assert kept == set(KEYWORDS)
    for decorator in (command_handler, event_handler):
        taken = set(inspect.signature(decorator).parameters) - {"route"}
        assert taken == set(KEYWORDS)
    taken = set(inspect.signature(query_handler).parameters) - {"route"}
    assert taken == {"channel"} | {
        each.name for each in KEYWORDS.values() if each.query is not NOWHERE
    }


# ------------------------------------------------------------------- databases


@pytest.mark.usefixtures("kept")
@pytest.mark.django_db(databases=["default", "other"], transaction=True)
@pytest.mark.parametrize("by", ["sender", "call", "transaction"])
@pytest.mark.parametrize("alias", list(ALIASES))
def test_a_handler_that_names_no_database_runs_on_that_of_its_message(alias, by):
    """Behind every channel it is the one that the message was sent in."""
    seen = []

    @command_handler("later", name="later", channel=alias)
    def later(text: str) -> None:
        seen.append([each for each in connections if connections[each].in_atomic_block])

    @command_handler("send", name="send", using="other" if by == "sender" else None)
    def send(text: str, commands: CommandBus) -> None:
        commands.dispatch(text, route="later")

    registry = registry_of(later, send)
    if by == "call":
        registry.command_bus.dispatch("x", route="later", using="other")
    elif by == "transaction":
        registry.command_bus.dispatch("x", route="send", using="other")
    else:
        registry.command_bus.dispatch("x", route="send")
    if alias == "outbox":
        channels[alias].run(registry=registry, using="other")
    elif alias == "memory":
        channels[alias].run()

    assert seen == [["other"]]


# ------------------------------------------------------------- a bus of one's own


class AuditBus(CommandBus):
    """A bus with policies of its own."""


class ReportBus(QueryBus):
    """One of queries."""


@command_handler("inner")
def inner() -> str:
    return "inner"


@command_handler("outer")
def outer(text: str, bus: AuditBus) -> bool:
    """Return whether the bus has the policies of the one that was made."""
    assert bus.dispatch(route="inner") == "inner"
    return bus._retry == InstantRetry(7)


@query_handler("report")
def report(text: str, bus: ReportBus | None) -> str:
    return type(bus).__name__


@pytest.mark.django_db
def test_a_bus_of_ones_own_that_is_asked_for_by_its_class_is_the_registrys():
    """It is the one that was made for the registry, policies and all."""
    registry = registry_of(inner, outer, report)
    audit_bus = AuditBus(instant_retry=InstantRetry(7), registry=registry)
    report_bus = ReportBus(registry=registry)

    assert check_registry(registry) == []
    assert registry.command_bus.dispatch("x", route="outer") is True
    assert registry.query_bus.ask("x", route="report") == type(report_bus).__name__
    assert audit_bus.dispatch("x", route="outer") is True


@pytest.mark.django_db
def test_a_bus_in_depends_is_the_one_that_exists():
    """As by its annotation: another one would have no policies, and be global."""

    @command_handler("through")
    def through(
        text: str,
        own: Annotated[CommandBus, Depends(AuditBus)],
        usual: Annotated[CommandBus, Depends(CommandBus)],
    ) -> list[object]:
        return [own, usual]

    registry = registry_of(inner, through)
    audit_bus = AuditBus(instant_retry=InstantRetry(7), registry=registry)

    assert check_registry(registry) == []
    for _ in range(2):
        given = registry.command_bus.dispatch("x", route="through")
        assert given == [audit_bus, registry.command_bus]


@pytest.mark.parametrize("count", [0, 2])
def test_E005_a_bus_of_ones_own_that_is_not_there_or_ambiguous(count):
    """None, or several, of its class use the registry: which is not guessed."""
    registry = registry_of(inner, outer)
    made = [AuditBus(registry=registry) for _ in range(count)]
    reason = {
        0: (
            "no AuditBus exists for this registry; create one, as in `auditbus = "
            "AuditBus()`, in a module that is imported before the handlers"
        ),
        2: (
            "2 buses of the class AuditBus use this registry, so the choice is "
            "ambiguous; give each its own class, or use Depends(...)"
        ),
    }[count]

    [found] = check_registry(registry)

    assert len(made) == count
    assert found.id == "django_cqrs.E005"
    assert found.msg == (
        f"Nothing can fill the parameter 'bus' of {__name__}.outer: {reason}."
    )


@pytest.mark.django_db
def test_a_bus_of_ones_own_can_be_overridden():
    """As anything else that a handler is given."""
    registry = registry_of(inner, outer)
    made = AuditBus(registry=registry)
    fake = AuditBus(instant_retry=InstantRetry(7), registry=registry_of(inner))

    with registry.override(AuditBus, lambda: fake):
        assert made.dispatch("x", route="outer") is True
    assert made.dispatch("x", route="outer") is False


# -------------------------------------------------------------------- platforms


def test_the_worker_is_imported_where_memory_is_not_measured():
    """Windows has no module `resource`; a bound of memory is refused there."""
    code = """
import sys
sys.modules["resource"] = None
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_cqrs", "django_cqrs.outbox"])
django.setup()
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.worker import Bounds
try:
    Bounds(megabytes=5)
except InvalidOption as error:
    print(str(error).replace(sys.platform, "windows"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == (
        "A worker cannot be limited by memory here: this platform (windows) does not "
        "report how much a process has used. Limit it by messages or by seconds."
    )


# ------------------------------------------------------------- services, parameters


class Mailer(Protocol):
    def send(self) -> str: ...


class Press(ABC):
    @abstractmethod
    def send(self) -> str: ...


class Post:
    """What implements both, and needs another service itself."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def send(self) -> str:
        self.desk.count += 1
        return f"by post {self.desk.count}"


class Desk:
    def __init__(self) -> None:
        self.count = 0


class Fake:
    def send(self) -> str:
        return "by nobody"


@service
class Office:
    """A service that needs what only a test or a setting can give."""

    def __init__(self, mailer: Mailer) -> None:
        self.mailer = mailer

    @command_handler("office.mail")
    def mail(self) -> str:
        return self.mailer.send()


@command_handler("mail.protocol")
def mail_by_protocol(mailer: Annotated[Mailer, Service()]) -> str:
    return mailer.send()


@command_handler("mail.abstract")
def mail_by_abstract(text: str, press: Press) -> str:
    return press.send()


MAILS = (
    (mail_by_protocol, Mailer, "mail.protocol"),
    (mail_by_abstract, Press, "mail.abstract"),
    (Office, Mailer, "office.mail"),
)


@pytest.mark.django_db
@pytest.mark.parametrize(("target", "interface", "route"), MAILS)
def test_an_override_of_an_interface_needs_no_resolver(target, interface, route):
    """Inside the block the route works; outside nothing gives the interface."""
    registry = registry_of(target, inner)
    payload = "x" if route == "mail.abstract" else None
    send = partial(registry.command_bus.dispatch, payload, route=route)

    with pytest.raises(InvalidHandler, match=r"SERVICES names no class for it"):
        send()
    with registry.override(interface, Fake):
        assert send() == "by nobody"
        assert check_registry(registry) == []
    with pytest.raises(InvalidHandler, match=r"SERVICES names no class for it"):
        send()
    assert registry.command_bus.dispatch(route="inner") == "inner"


@pytest.mark.django_db
@pytest.mark.parametrize("is_path", [False, True], ids=["class", "path"])
@pytest.mark.parametrize(("target", "interface", "route"), MAILS)
def test_services_names_the_class_that_implements_an_interface(
    settings, target, interface, route, is_path
):
    """It is built once, as a service is, and can be overridden by either name."""
    pair = (interface, Post)
    if is_path:
        pair = (f"{__name__}.{interface.__qualname__}", f"{__name__}.Post")
    settings.DJANGO_CQRS = {"SERVICES": dict([pair])}
    registry = registry_of(target)
    payload = "x" if route == "mail.abstract" else None
    send = partial(registry.command_bus.dispatch, payload, route=route)

    assert check_registry(registry) == []
    assert [send(), send()] == ["by post 1", "by post 2"]
    for wanted in (interface, Post):
        with registry.override(wanted, Fake):
            assert send() == "by nobody"
    assert send() == "by post 3"


@pytest.mark.django_db
def test_services_and_a_resolver_work_together(settings):
    """The setting says which class, the resolver gives its instance."""
    asked = []

    def resolve(cls: type) -> object:
        asked.append(cls)
        return Fake()

    settings.DJANGO_CQRS = {"SERVICES": {Mailer: Post}, "SERVICE_RESOLVER": resolve}
    registry = registry_of(mail_by_protocol)

    assert registry.command_bus.dispatch(route="mail.protocol") == "by nobody"
    assert asked == [Post]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["x"], "DJANGO_CQRS['SERVICES'] = ['x'] is not a dictionary."),
        (
            {Mailer: "no.such.Class"},
            (
                "DJANGO_CQRS['SERVICES']: 'no.such.Class' cannot be imported: No "
                "module named 'no'."
            ),
        ),
        (
            {Mailer: 3},
            "DJANGO_CQRS['SERVICES']: 3 is not a class, nor the path of one.",
        ),
    ],
    ids=["list", "path", "number"],
)
def test_E013_services_that_are_no_classes(settings, given, said):
    """The check of the settings says what is wrong with it."""
    settings.DJANGO_CQRS = {"SERVICES": given}

    [found] = check_settings()

    assert found.id == "django_cqrs.E013"
    assert found.msg == said
    assert found.hint == "Give a class, or its dotted path, for each interface."


@dataclasses.dataclass(frozen=True)
class Open:
    title: str


@dataclasses.dataclass(frozen=True)
class Close:
    title: str = ""


@pytest.mark.parametrize("second", [Open, Close], ids=["unbuildable", "buildable"])
def test_E005_a_second_parameter_for_the_message(second):
    """It is given nothing that was never sent, and the handler is named."""

    def handle(command: Open | Close, again: object) -> None: ...

    handle.__annotations__["again"] = second
    [found] = check_registry(registry_of(command_handler(handle)))

    assert found.id == "django_cqrs.E005"
    assert found.msg == (
        f"Nothing can fill the parameter 'again' of {__name__}.{handle.__qualname__}: "
        f"another parameter already receives the message as {second.__name__}, which "
        "is not a service to build; keep one of the two, or use Depends(...) for "
        "this one."
    )


@pytest.mark.parametrize(
    "annotation", [Open("x"), list[Open("x")], 5, [int], (int, str), Registry], ids=str
)
def test_a_keyed_handler_annotated_with_an_object_breaks_no_check(annotation):
    """The checks report it, or say nothing; they do not raise."""

    def handle(command: object) -> None: ...

    handle.__annotations__["command"] = annotation
    found = check_registry(registry_of(command_handler("handle")(handle)))

    assert {each.id for each in found} <= {"django_cqrs.W003", "django_cqrs.E006"}
