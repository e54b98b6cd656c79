"""Every mistake in a declaration is a check: an id, a hint, and the place."""

from __future__ import annotations

import functools
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    Never,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    TypeVarTuple,
    runtime_checkable,
)
from uuid import UUID

import pydantic
import pytest
from django.apps import apps
from django.core.checks import Error, run_checks
from django.core.management import call_command
from django.db import models
from django.db.migrations.loader import MigrationLoader
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from django_cqrs import (
    Command,
    CommandBus,
    Header,
    Query,
    Registry,
    Retry,
    Send,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.channels import Channel
from django_cqrs.checks import check_registry, check_routes, check_settings
from django_cqrs.conversion import converter, upcasting
from django_cqrs.conversion.converters import converter_problems
from django_cqrs.conversion.upcasting import upcaster
from django_cqrs.declaration.declarations import Kind
from django_cqrs.documents import document
from django_cqrs.exceptions import InvalidHandler
from django_cqrs.interception import (
    Marker,
    Proceed,
    after,
    around,
    before,
    pointcut,
    pre_send,
)
from django_cqrs.management.listing import rows_of
from django_cqrs.messages import message_name_of
from django_cqrs.modelling import (
    business_interface,
    business_method,
    implement,
    sql_query,
)
from django_cqrs.problems import Rule
from django_cqrs.views import AsyncCommandView, CommandView, QueryView
from tests.apps.strays import handlers as strays
from tests.documents import test_shapes
from tests.graph import test_graph_problems
from tests.modelling import test_checks as of_the_model
from tests.outbox import test_given_up
from tests.schedules import test_declarations as of_schedules
from tests.schema_lock import test_command as of_schemas
from tests.support import registry_of
from tests.tenancy import test_checks as of_tenants
from tests.testapp.messages import OpenTicket


@dataclass(frozen=True)
class Open:
    title: str = ""


@dataclass(frozen=True)
class Base:
    number: int = 0


@dataclass(frozen=True)
class Mixin:
    pass


@dataclass(frozen=True)
class Both(Base, Mixin):
    pass


def checks_of(*handlers):
    registry = Registry()
    for handler in handlers:
        registry.add(handler)
    return check_registry(registry)


def only(found):
    assert len(found) == 1, found
    assert found[0].hint
    assert found[0].obj is not None
    return found[0]


def test_no_problem_no_check():
    """A sound handler gives no check."""

    @command_handler
    def open_ticket(command: Open) -> None: ...

    assert checks_of(open_ticket) == []


@pytest.mark.django_db(databases="__all__")  # Django asks SQLite whether it has JSON
def test_the_projects_own_handlers_are_sound():
    """The checks of the installed apps run with `manage.py check`."""
    assert run_checks(tags=["django_cqrs"]) == []
    call_command("check")


def test_E001_duplicate_handler():
    """Two handlers for one command class are reported with both places."""

    @command_handler
    def one(command: Open) -> None: ...

    @command_handler
    def two(command: Open) -> None: ...

    found = only(checks_of(one, two))

    assert found.id == "django_cqrs.E001"
    assert found.obj is two
    assert found.msg.startswith("Open has more than one command handler: ")
    assert ".one (" in found.msg
    assert ".two (" in found.msg


def test_E001_duplicate_key():
    """Two handlers for one key of a query are reported."""

    @query_handler("ticket.list")
    def one() -> None: ...

    @query_handler("ticket.list")
    def two() -> None: ...

    found = only(checks_of(one, two))

    assert found.id == "django_cqrs.E001"
    assert found.msg.startswith("'ticket.list' has more than one query handler: ")


def test_E002_ambiguous_handler():
    """Handlers of two bases of one class are equally near to it."""

    @command_handler
    def one(command: Base) -> None: ...

    @command_handler
    def two(command: Mixin) -> None: ...

    found = only(checks_of(one, two))

    assert found.id == "django_cqrs.E002"
    assert found.msg.startswith("Two command handlers are equally near to Both: ")
    assert found.hint == "Write a handler for Both itself."


def test_E003_unregistered_class(settings):
    """A decorated method whose class is not registered leads nowhere."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.apps.strays"]

    found = [c for c in run_checks(tags=["django_cqrs"]) if c.id.endswith("E003")]

    assert only(found).obj is strays.Forgotten.close
    assert found[0].msg == (
        "tests.apps.strays.handlers.Forgotten.close is decorated, but its class "
        "Forgotten is not registered."
    )
    assert (
        found[0].hint
        == "Decorate the class with @service, or with @aggregate or @saga, outermost."
    )


def test_E004_duplicate_name():
    """One endpoint name for two handlers is reported: messages are stored under it."""

    @command_handler(name="tickets.open")
    def one(command: Open) -> None: ...

    @query_handler("x", aliases=["tickets.open"])
    def two() -> None: ...

    found = only(checks_of(one, two))

    assert found.id == "django_cqrs.E004"
    assert found.msg.startswith("Two handlers have the endpoint name 'tickets.open': ")
    assert found.hint == "Give one of them another name with name=."


def test_E005_unfillable_parameter():
    """A parameter after the payload that nothing fills is reported by its name."""

    @command_handler
    def open_ticket(command: Open, retries: int) -> None: ...

    found = only(checks_of(open_ticket))

    assert found.id == "django_cqrs.E005"
    assert "the parameter 'retries' of " in found.msg
    assert found.msg.endswith("int is neither a mark nor a class to build.")


def test_E005_abstract_service():
    """A Protocol cannot be built where there is no service resolver."""

    class Mailer(Protocol):
        def send(self) -> None: ...

    @command_handler
    def open_ticket(command: Open, mailer: Mailer) -> None: ...

    found = only(checks_of(open_ticket))

    assert found.id == "django_cqrs.E005"


def test_E006_unreadable_signature():
    """An annotation that names nothing is reported with the name."""

    @command_handler
    def open_ticket(command: Nowhere) -> None: ...  # noqa: F821

    found = only(checks_of(open_ticket))

    assert found.id == "django_cqrs.E006"
    assert found.msg.endswith("cannot be evaluated: name 'Nowhere' is not defined.")


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (list[int], "list[int] is not a class that can be matched with isinstance()"),
        (Annotated[str, Header("x")], "it has no parameter for the payload"),
    ],
)
def test_E007_no_route(annotation, reason):
    """A bare decorator needs a class for the payload."""

    @command_handler
    def open_ticket(command: annotation) -> None: ...

    found = only(checks_of(open_ticket))

    assert found.id == "django_cqrs.E007"
    assert found.msg.endswith(f"{reason}.")


def test_E007_opaque_protocol():
    """A Protocol that isinstance cannot decide routes nothing."""

    class HasTitle(Protocol):
        title: str

    @event_handler
    def audit(event: HasTitle) -> None: ...

    found = only(checks_of(audit))

    assert found.id == "django_cqrs.E007"
    assert found.msg.endswith("is not @runtime_checkable.")


def test_E008_duplicate_message_name():
    """One name for two message classes is reported with both."""

    @message("ticket.opened")
    class One: ...

    @message("ticket.opened")
    class Two: ...

    @event_handler
    def audit(event: One | Two) -> None: ...

    found = only(checks_of(audit))

    assert found.id == "django_cqrs.E008"
    assert found.msg.startswith("Two message classes are named 'ticket.opened': ")


def test_E009_pattern_as_key():
    """Only events have patterns."""

    @command_handler("ticket.*")
    def open_ticket() -> None: ...

    found = only(checks_of(open_ticket))

    assert found.id == "django_cqrs.E009"
    assert found.msg.endswith("takes a command by the pattern 'ticket.*'.")


def test_E010_scattered_policies():
    """Stacked decorators make one endpoint, whose policies stand in one place."""

    @command_handler("ticket.open", atomic=False)
    @command_handler(name="tickets.open")
    def open_ticket(command: Open) -> None: ...

    found = only(checks_of(open_ticket))

    assert found.id == "django_cqrs.E010"
    assert found.msg.endswith("give policies (atomic, name).")


def test_E011_unknown_database():
    """An alias that is not in DATABASES is reported with those that are."""

    @command_handler(using="archive")
    def open_ticket(command: Open) -> None: ...

    found = only(checks_of(open_ticket))

    assert found.id == "django_cqrs.E011"
    assert found.hint == "The aliases are default, other."


def test_E012_broken_converter():
    """A converter must say from what to what; else it is not used, and reported."""
    before = list(converter_problems)
    try:

        @converter
        def nonsense(value) -> str:
            return value

        found = only(checks_of())
    finally:
        converter_problems[:] = before

    assert found.id == "django_cqrs.E012"
    assert found.obj is nonsense
    assert found.hint == "Annotate it as (Money) -> str, or as (str) -> Money."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "settings.DJANGO_CQRS must be a dictionary, not list."),
        (
            {"HANDLERS_MODULE": "a.b"},
            "DJANGO_CQRS['HANDLERS_MODULE'] = 'a.b' is not a valid module name.",
        ),
        (
            {"SERVICE_RESOLVER": "nowhere.at_all"},
            (
                "DJANGO_CQRS['SERVICE_RESOLVER'] = 'nowhere.at_all' cannot be imported: "
                "No module named 'nowhere'."
            ),
        ),
        (
            {"REQUEST_HEADERS": 3},
            "DJANGO_CQRS['REQUEST_HEADERS'] must be a callable or its dotted path.",
        ),
    ],
)
def test_E013_bad_setting(settings, value, text):
    """A setting that cannot be used is reported by its key and value."""
    settings.DJANGO_CQRS = value

    found = check_settings()

    assert [(each.id, each.msg) for each in found] == [("django_cqrs.E013", text)]
    assert found[0].hint


UserId = NewType("UserId", int)
R = TypeVar("R")


@runtime_checkable
class Sized(Protocol):
    def __len__(self) -> int: ...


class Row(TypedDict):
    number: int


class Page(Query[list[R]], Generic[R]):
    """What several queries have in common."""


class MaybePage(Page[R | None], Generic[R]):
    """What some of them have in common."""


class Asked(Query[R], Generic[R]):
    """What says nothing itself."""


Rs = TypeVarTuple("Rs")


class Columns(Query[tuple[*Rs]], Generic[*Rs]):
    """What has any number of results."""


class Pair(NamedTuple):
    """What promises nothing, being a tuple."""

    first: int


def promising(result, base=Query):
    @dataclass(frozen=True)
    class Ask(base[result]):
        pass

    return Ask


def answering(query, result):
    def answer(query):
        raise NotImplementedError

    answer.__annotations__ = {"query": query, "return": result}
    return query_handler(answer)


@pytest.mark.parametrize(
    ("promised", "returned"),
    [
        (int, str),
        (int, int | None),
        (int, None),
        (None, int),
        (int, object),
        (int, float),
        (list[int], list[str]),
        (list[int], tuple[int, ...]),
        (tuple[int, str], tuple[int, int]),
        (dict[str, int], Mapping[str, int]),
        (Base, Open),
        (Both, Base),
        (type[Both], type[Base]),
        (UserId, int),
        (Literal["a"], str),
        (Literal["a"], Literal["a", "b"]),
        (int, Literal["a"]),
        (int | str, int | bytes),
        (Annotated[int, "doc"], str),
        (Sized, int),
    ],
    ids=str,
)
def test_E014_result_type(promised, returned):
    """A handler annotated otherwise than its message promises is reported."""
    handler = answering(promising(promised), returned)

    found = only(checks_of(handler))

    assert found.id == "django_cqrs.E014"
    assert found.obj is handler
    assert found.msg.startswith("Ask promises a result of type ")
    assert " is annotated to return " in found.msg
    assert found.hint == "Make both the same."


def test_E014_says_both_types():
    """The text names the message, the handler and what each says."""

    @dataclass
    class Count(Command[int]):
        pass

    @command_handler
    async def count(command: Count) -> None: ...

    found = only(checks_of(count))

    assert found.msg == (
        f"Count promises a result of type int, but "
        f"{__name__}.test_E014_says_both_types.<locals>.count is annotated to return "
        f"None."
    )


@pytest.mark.parametrize(
    ("promised", "returned"),
    [
        (int, int),
        (int, bool),
        (float, int),
        (complex, float),
        (int, Any),
        (Any, int),
        (object, int),
        (None, None),
        (int | None, int),
        (int | None, None),
        (Optional[int], int | None),
        (int, Annotated[int, "doc"]),
        (Sequence[int], list[int]),
        (Sequence[float], tuple[int, ...]),
        (Mapping[str, object], dict[str, int]),
        (list, list[int]),
        (list[int], list),
        (tuple[int, ...], tuple[int, int]),
        (Base, Both),
        (type[Base], type[Both]),
        (UserId, UserId),
        (int, UserId),
        (str, Literal["a", "b"]),
        (Literal["a", "b"], Literal["a"]),
        (int, Never),
        (Callable[[], int], Callable[[], int]),
        (Sized, str),
        (Row, dict[str, int]),
        (list[Row], list[Row]),
        ("int", int),
        ("Base", Both),
        ("Nowhere", int),
    ],
    ids=str,
)
def test_E014_is_silent_where_the_two_agree(promised, returned):
    """A subtype of what is promised will do; so will what nobody can tell."""
    assert checks_of(answering(promising(promised), returned)) == []


def test_E014_is_silent_without_an_annotation():
    """A handler need not say what it returns."""

    @query_handler
    def answer(query: promising(int)): ...

    assert checks_of(answer) == []


@pytest.mark.parametrize(
    ("base", "right", "wrong"),
    [
        (Page[int], list[int], list[str]),
        (Page[int], list[int], int),
        (Page, list[int], int),
        (MaybePage[int], list[int | None], list[str]),
        (Asked[int], int, str),
        (Asked["int"], int, str),
    ],
    ids=str,
)
def test_E014_looks_through_generic_bases(base, right, wrong):
    """What a common base promises is what each query fills in."""

    @dataclass(frozen=True)
    class Ask(base):
        pass

    @dataclass(frozen=True)
    class AskMore(Ask):
        pass

    for query in (Ask, AskMore):
        assert checks_of(answering(query, right)) == []
        assert only(checks_of(answering(query, wrong))).id == "django_cqrs.E014"


@pytest.mark.parametrize(
    "base", [Query, Asked, Asked["Nowhere"], Columns[int, str], Pair], ids=str
)
def test_E014_is_silent_where_a_base_promises_nothing(base):
    """So it is where a promise cannot be read."""

    @dataclass(frozen=True)
    class Ask(base):
        pass

    for query in (Ask, base) if base is Pair else (Ask,):
        assert checks_of(answering(query, str)) == []


def test_E014_for_each_member_of_a_union():
    """A handler of two messages keeps the promise of both."""
    handler = answering(promising(int) | promising(str), int)

    found = only(checks_of(handler))

    assert found.msg.startswith("Ask promises a result of type str, but ")


@message("checks.open_promised")
@dataclass(frozen=True)
class OpenPromised(Command[int]):
    pass


@message("checks.open_unpromised")
@dataclass(frozen=True)
class OpenUnpromised(Command[None]):
    pass


def test_E015_channelled_result():
    """A result cannot be promised by what a handler in the background handles."""

    @command_handler(channel="memory")
    def open_later(command: OpenPromised) -> int: ...

    found = only(checks_of(open_later))

    assert found.id == "django_cqrs.E015"
    assert found.obj is open_later
    assert found.msg == (
        f"OpenPromised promises a result of type int, but {__name__}."
        f"test_E015_channelled_result.<locals>.open_later handles it in the background."
    )
    assert found.hint == (
        "Derive OpenPromised from Command[None], or take channel= away."
    )


def test_E015_a_command_that_promises_nothing_may_wait():
    """Command[None] is what its sender gets; the handler's own result is dropped."""

    @command_handler(channel="memory")
    def open_later(command: OpenUnpromised) -> int: ...

    assert checks_of(open_later) == []


def test_E016_unknown_channel():
    """A channel that is not in CHANNELS is reported, with the one that was meant."""

    @command_handler("ticket.mail", channel="memry")
    def mail() -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E016"
    assert "Channel 'memry' is not in DJANGO_CQRS['CHANNELS']." in found.msg
    assert "Did you mean 'memory'?" in found.msg


def test_E017_channelled_query():
    """Who asks a query waits for its answer: a channel is refused."""

    @query_handler("ticket.list", channel="memory")
    def list_tickets() -> None: ...

    found = only(checks_of(list_tickets))

    assert found.id == "django_cqrs.E017"
    assert found.hint == "Remove channel=."


def test_E018_nameless_message():
    """A message class without a name cannot wait in a channel."""

    @dataclass(frozen=True)
    class Local:
        number: int

    @command_handler(channel="memory")
    def mail(command: Local) -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E018"
    assert "Local" in found.msg
    assert "@message" in found.hint


@pytest.mark.parametrize("policy", ["delay", "expires", "priority", "retry"])
def test_E019_channel_policy(policy):
    """A policy that only a channel can keep is reported where there is none."""
    value = Retry() if policy == "retry" else 5

    @command_handler("ticket.mail", **{policy: value})
    def mail() -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E019"
    assert found.msg.endswith(f"has {policy}=, but is called immediately.")


@pytest.mark.parametrize("policy", ["ordering_key", "idempotency_key"])
def test_E019_keys_without_a_channel(policy):
    """An event's handler is called with its command's others, in their order."""

    @event_handler("ticket.mail", **{policy: Header("tenant")})
    def mail() -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E019"
    assert found.msg.endswith(f"mail has {policy}=, but is called immediately.")


def test_E019_a_channel_that_keeps_no_order(settings):
    """It says so before anybody relies on it."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {"mail": {"BACKEND": "django_cqrs.channels.OnCommitChannel"}}
    }

    @command_handler("ticket.mail", channel="mail", ordering_key=Header("tenant"))
    def mail() -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E019"
    assert found.msg.endswith(
        "mail has ordering_key=Header(name='tenant'). Channel 'mail' "
        "(OnCommitChannel) does not support ordering_key=."
    )


MEMORY = {"CHANNELS": {"memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}}}


@dataclass(frozen=True)
class HasKey:
    number: int


class HasOther(NamedTuple):
    other: int


@pytest.mark.parametrize("policy", ["ordering_key", "idempotency_key"])
@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("other", "HasKey has no attribute 'other'."),
        ("number", "HasOther has no attribute 'number'."),
        (5, "A key must be an attribute's name, a Header, or a callable."),
        ("", "A key must be an attribute's name, a Header, or a callable."),
        (
            Header("timestamp"),
            (
                "The header 'timestamp' is not a key: it does not tell one message from "
                "another."
            ),
        ),
    ],
)
def test_E021_broken_key(settings, source, fault, policy):
    """Each class that the handler takes must have the attribute."""
    settings.DJANGO_CQRS = MEMORY

    @command_handler(channel="memory", name="do", **{policy: source})
    def do(command: HasKey | HasOther) -> None: ...

    # Neither class belongs to an app, so that neither has a name.
    found = only([each for each in checks_of(do) if each.id != "django_cqrs.E018"])

    assert found.id == "django_cqrs.E021"
    assert found.obj is do
    assert found.msg == (
        f"{__name__}.test_E021_broken_key.<locals>.do has {policy}={source!r}. {fault}"
    )
    assert found.hint == (
        "Name an attribute that every message it takes has, or give a Header, or a "
        "callable that takes the message."
    )


@pytest.mark.parametrize(
    "source", [Header("tenant"), lambda message: message.message_id, "whatever"]
)
def test_E021_is_silent_where_nobody_can_know(settings, source):
    """A header, a callable, an attribute of what any object may be."""
    settings.DJANGO_CQRS = MEMORY

    @event_handler("ticket.*", channel="memory", ordering_key=source)
    def by_object(event: object) -> None: ...

    @command_handler("ticket.do", channel="memory", ordering_key=source)
    def by_dict(command: dict) -> None: ...

    assert checks_of(by_object, by_dict) == []


def test_E021_a_handler_without_a_payload(settings):
    """It has no attribute that could be the key."""
    settings.DJANGO_CQRS = MEMORY

    @command_handler("ticket.count", channel="memory", ordering_key="number")
    def count() -> None: ...

    assert only(checks_of(count)).msg.endswith(
        "count has ordering_key='number'. It has no parameter for the payload."
    )


def test_E022_no_app_that_remembers_keys(settings):
    """The core has no table."""
    apps = [app for app in settings.INSTALLED_APPS if app != "django_cqrs.outbox"]
    settings.INSTALLED_APPS = apps

    @command_handler("ticket.pay", idempotency_key=Header("payment"))
    def pay() -> None: ...

    found = only(checks_of(pay))

    assert found.id == "django_cqrs.E022"
    assert found.obj is pay
    assert found.msg.endswith(
        "pay has idempotency_key=, but no installed app stores keys."
    )
    assert found.hint == "Add 'django_cqrs.outbox' to INSTALLED_APPS and migrate."


def test_E022_a_bus_whose_keys_no_app_remembers(settings):
    """Whatever handlers there are."""
    apps = [app for app in settings.INSTALLED_APPS if app != "django_cqrs.outbox"]
    settings.INSTALLED_APPS = apps
    registry = Registry()
    CommandBus(idempotency_key="payment", registry=registry)

    (problem,) = registry.problems

    assert problem.rule.id == "django_cqrs.E022"
    assert problem.message == (
        "A CommandBus keyed by 'payment' has idempotency_key=, but no installed app "
        "stores keys."
    )


def test_E022_a_handler_without_a_transaction():
    """Its key would be there although it had failed."""

    @command_handler("ticket.pay", atomic=False, idempotency_key=Header("payment"))
    def pay() -> None: ...

    found = only(checks_of(pay))

    assert found.id == "django_cqrs.E022"
    assert "has idempotency_key= and atomic=False" in found.msg


@pytest.mark.parametrize(
    ("policies", "said", "wanted"),
    [
        ({"name": 5}, "name=5", "a name"),
        ({"name": ""}, "name=''", "a name"),
        ({"name": ["a"]}, "name=['a']", "a name"),
        ({"aliases": 3}, "aliases=(3,)", "names"),
        ({"aliases": [["a"]]}, "aliases=(['a'],)", "names"),
        ({"using": ["a"]}, "using=['a']", "the alias of a database"),
        ({"atomic": "no"}, "atomic='no'", "True or False"),
        ({"priority": "high"}, "priority='high'", "a whole number"),
        ({"priority": True}, "priority=True", "a whole number"),
        ({"output": 3}, "output=3", "a routing key, or a tuple of them"),
        ({"output": ""}, "output=''", "a routing key, or a tuple of them"),
        ({"channel": "memory", "retry": 3}, "retry=3", "a Retry"),
        ({"channel": "memory", "priority": 1.5}, "priority=1.5", "a whole number"),
    ],
    ids=str,
)
@pytest.mark.parametrize("decorator", [command_handler, event_handler])
@pytest.mark.django_db
def test_E024_bad_policy(settings, decorator, policies, said, wanted):
    """It breaks its own handler: the table is made, listed and used all the same."""
    settings.DJANGO_CQRS = MEMORY
    registry = Registry()

    @registry.add
    @decorator("ticket.close", **policies)
    def close() -> None: ...

    @registry.add
    @decorator("ticket.open")
    def sound() -> None: ...

    bus = registry.bus_of(Kind(decorator.__name__.removesuffix("_handler")))
    send = bus.dispatch if isinstance(bus, CommandBus) else bus.publish
    found = only(check_registry(registry))

    assert found.id == "django_cqrs.E024"
    assert found.obj is close
    assert found.msg == (
        f"{__name__}.test_E024_bad_policy.<locals>.close has {said}: it takes {wanted}."
    )
    name = said.partition("=")[0]
    assert found.hint == f"Give {wanted}, or remove {name}=."
    assert [row.problem for row in rows_of(registry)] == [found.id, None]
    assert send(route="ticket.open") is None
    with pytest.raises(InvalidHandler, match=r"\(django_cqrs\.E024\)$"):
        send(route="ticket.close")


def test_E025_generator_handler():
    """Calling it would run nothing of it, and its sender would think it had."""

    @command_handler("ticket.close")
    def close() -> Any:
        yield

    @event_handler("ticket.closed")
    async def on_closed() -> Any:
        yield

    @query_handler("ticket.list")
    async def tickets() -> Any:
        yield

    found = checks_of(close, on_closed, tickets)

    place = f"{__name__}.test_E025_generator_handler.<locals>"
    assert [each.id for each in found] == ["django_cqrs.E025"] * 3
    assert [each.msg for each in found] == [
        f"{place}.close is a generator, so calling it would not execute its body.",
        (
            f"{place}.on_closed is an async generator, so calling it would not execute "
            "its body."
        ),
        (
            f"{place}.tickets is an async generator, so calling it would not execute its "
            "body."
        ),
    ]
    assert {each.hint for each in found} == {"Return a list, or remove the yield."}


def test_E027_unsent_command():
    """A Send that a plain handler without output= returns, or a query, goes nowhere."""

    @command_handler("ticket.close")
    def close() -> Send | None: ...

    @query_handler("ticket.list")
    def tickets() -> list[Send]: ...

    @command_handler("ticket.reopen", output="ticket.close")
    def reopen() -> tuple[int, Send]: ...

    found = checks_of(close, tickets, reopen)

    place = f"{__name__}.test_E027_unsent_command.<locals>"
    assert [each.id for each in found] == ["django_cqrs.E027"] * 2
    assert [each.msg for each in found] == [
        (
            f"{place}.close returns a Send that nothing sends: it is neither a method "
            "of an aggregate or a saga nor has output=."
        ),
        f"{place}.tickets returns a Send that nothing sends: it answers a query.",
    ]
    assert {each.hint for each in found} == {
        "Send the command with command_bus.dispatch(), or give the handler output=."
    }


def test_E025_a_query_may_answer_by_and_by():
    """Who asks reads the answer, or has it converted."""

    @query_handler("ticket.list")
    def tickets() -> Any:
        yield 1

    assert checks_of(tickets) == []


@pytest.mark.parametrize(
    ("key", "span"),
    [
        *(("IDEMPOTENCY_WINDOW", each) for each in (0, -1, None, "7 days")),
        *(("JOURNAL", each) for each in (0, True, "7 days", timedelta(0))),
    ],
)
def test_E013_span_of_time(settings, key, span):
    """A time to keep something for that is none, or an empty one."""
    settings.DJANGO_CQRS = {key: span}

    (found,) = check_settings()

    assert found.id == "django_cqrs.E013"
    assert found.hint == "Give a timedelta or a number of seconds above 0."
    assert found.msg == (f"DJANGO_CQRS[{key!r}] = {span!r} is not a valid duration.")


def test_E023_no_app_that_keeps_a_journal(settings):
    """The core has no table; without the setting there is nothing to keep."""
    apps = [app for app in settings.INSTALLED_APPS if app != "django_cqrs.outbox"]
    settings.INSTALLED_APPS = apps
    settings.DJANGO_CQRS = {"JOURNAL": 60}

    (found,) = check_settings()

    assert found.id == "django_cqrs.E023"
    assert found.msg == (
        "DJANGO_CQRS['JOURNAL'] is set, but no installed app keeps a journal."
    )
    assert found.hint == (
        "Add 'django_cqrs.outbox' to INSTALLED_APPS and migrate, or remove the key."
    )

    settings.DJANGO_CQRS = {"JOURNAL": None}
    assert check_settings() == []


def test_E016_says_what_is_wrong(settings):
    """The text is that of the channel's error, with the handler and the keyword."""
    settings.DJANGO_CQRS = {"CHANNELS": {"mail": {"BACKEND": "nowhere.Channel"}}}

    @command_handler("ticket.mail", channel="mail")
    def mail() -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E016"
    assert found.obj is mail
    assert found.msg == (
        f"{__name__}.test_E016_says_what_is_wrong.<locals>.mail has channel='mail'. "
        f"The channel 'mail' has a BACKEND that cannot be imported: "
        f"No module named 'nowhere'."
    )
    assert found.hint == "Fix DJANGO_CQRS['CHANNELS']['mail']."


def test_E016_once_for_all_handlers_of_a_channel(settings):
    """The fault is the channel's; each handler's route is broken nevertheless."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            alias: {
                "BACKEND": "django_cqrs.channels.OnCommitChannel",
                "OPTIONS": {"QUEUE": 1},
            }
            for alias in ("mail", "post")
        }
    }

    @command_handler("ticket.mail", channel="mail")
    def mail() -> None: ...

    @command_handler("ticket.remind", channel="mail")
    def remind() -> None: ...

    @command_handler("ticket.post", channel="post")
    def post() -> None: ...

    @command_handler("ticket.typo", channel="pots")
    def typo() -> None: ...

    @command_handler("ticket.again", channel="pots")
    def again() -> None: ...

    registry = registry_of(mail, remind, post, typo, again)
    found = check_registry(registry)

    assert [each.id for each in found] == ["django_cqrs.E016"] * 4
    assert [each.obj for each in found] == [mail, post, typo, again]
    for key in ("ticket.mail", "ticket.remind"):
        with pytest.raises(InvalidHandler, match="no option 'QUEUE'"):
            registry.command_bus.dispatch(route=key)


def test_E016_of_an_alias_that_the_settings_do_not_have(settings):
    """Then the name is what to fix, not the settings of a channel."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {"mail": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}}
    }

    @command_handler("ticket.mail", channel="mial")
    def mail() -> None: ...

    assert only(checks_of(mail)).hint == "Name a channel in DJANGO_CQRS['CHANNELS']."


@pytest.mark.parametrize("channel", [["memory"], 5, b"memory"])
def test_E016_a_channel_is_an_alias(channel):
    """What is neither a string nor a boolean names no channel."""

    @command_handler("ticket.mail", channel=channel)
    def mail() -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E016"
    assert found.msg.endswith(f".mail has channel={channel!r}.")
    assert found.hint == "Give the alias of one channel, or True for 'default'."


def test_E016_an_empty_alias_is_one_that_nobody_described():
    """channel="" is no way to say that a handler is called at once."""

    @command_handler("ticket.mail", channel="")
    def mail() -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E016"
    assert found.msg.endswith("Channel '' is not in DJANGO_CQRS['CHANNELS'].")


def checks_of_the_settings():
    """What is wrong with the settings; a handler misses its channel besides."""
    return [each for each in run_checks(tags=["django_cqrs"]) if each.obj is None]


def test_E016_a_channel_that_no_handler_uses(settings):
    """What is in the settings is checked, used or not."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            "mail": {"BACKEND": "django_cqrs.channels.OnCommitChannel", "OPTIONS": {}},
            "post": {
                "BACKEND": "django_cqrs.channels.OnCommitChannel",
                "OPTIONS": {"QUEUE": 1},
            },
        }
    }

    [found] = checks_of_the_settings()

    assert found.id == "django_cqrs.E016"
    assert found.msg == "The channel 'post' (OnCommitChannel) has no option 'QUEUE'."
    assert found.hint == "Fix it, or remove it: no handler uses it."


class Complaining(Channel):
    """A channel that lacks something."""

    def check(self) -> list[Error]:
        return [Error(f"{self.alias} has no table.", id="tests.E001")]


def test_a_channel_is_asked_what_it_lacks(settings):
    """check() of every configured channel is part of the checks."""
    backend = f"{__name__}.Complaining"
    settings.DJANGO_CQRS = {"CHANNELS": {"mail": {"BACKEND": backend}}}

    [found] = checks_of_the_settings()

    assert found.id == "tests.E001"
    assert found.msg == "mail has no table."


def test_E013_channels_are_a_dictionary(settings):
    """CHANNELS is a dictionary, as CACHES is."""
    settings.DJANGO_CQRS = {"CHANNELS": ["mail"]}

    [found] = checks_of_the_settings()

    assert found.id == "django_cqrs.E013"
    assert found.msg == "DJANGO_CQRS['CHANNELS'] = ['mail'] is not a dictionary."
    assert found.hint == (
        "Write it like CACHES: map an alias to a BACKEND and, optionally, OPTIONS."
    )


def class_at(module, name, *bases):
    """Make a class that stands in a module under a name."""
    namespace = {"__module__": module, "__qualname__": name}
    return dataclass(type(name.rpartition(".")[2], bases, namespace))


@pytest.mark.parametrize(
    ("cls", "path", "reason"),
    [
        (Open, f"{__name__}.Open", "it does not belong to an installed app"),
        (
            class_at("tests.testapp.messages", "Outer.Inner"),
            "tests.testapp.messages.Outer.Inner",
            "it is not defined at the top of its module",
        ),
    ],
    ids=["no app", "nested"],
)
def test_E018_says_which_class_and_why(cls, path, reason):
    """The class is named, and @message is what names it on the wire."""

    @event_handler(channel="memory")
    def mail(event: cls) -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E018"
    assert found.obj is mail
    assert found.msg == (
        f"{__name__}.test_E018_says_which_class_and_why.<locals>.mail has "
        f"channel='memory', but {path} has no name on the wire: {reason}."
    )
    assert found.hint == f'Name {cls.__qualname__} with @message("app.name").'


def test_E018_two_classes_of_one_name():
    """Of two classes of an app with one name neither can be told from the other."""
    one = class_at("tests.testapp.messages", "Twin")
    two = class_at("tests.testapp.handlers", "Twin")

    @event_handler(channel="memory")
    def mail(event: one | two) -> None: ...

    found = checks_of(mail)

    assert [each.id for each in found] == ["django_cqrs.E018"] * 2
    assert all("another class is named 'testapp.Twin' as well" in f.msg for f in found)


def test_E018_a_named_member_beside_it_can_still_be_sent():
    """The check speaks of one class: the route of the other is not broken by it."""

    @event_handler(channel="memory")
    def mail(event: Open | OpenPromised) -> None: ...

    registry = Registry()
    registry.add(mail)

    assert only(check_registry(registry)).id == "django_cqrs.E018"
    assert registry.routes.subscribers_of(OpenPromised())


class AnAbstractBase(ABC):
    """What no message is an object of, only derived from."""

    @abstractmethod
    def number(self) -> int: ...


@message("checks.derived")
@dataclass(frozen=True)
class Derived(Mixin):
    """A named class of a base without a name."""


@pytest.mark.parametrize(
    "annotation",
    [
        OpenPromised,
        class_at("tests.testapp.messages", "OfAnApp"),
        object,
        Any,
        dict,
        dict[str, int],
        list[int],
        int | None,
        str,
        UUID,
        datetime,
        Decimal,
        Row,
        Sized,
        AnAbstractBase,
        Mixin,
    ],
    ids=str,
)
def test_E018_is_silent(annotation):
    """A class with a name, a value and a base of named classes can all be stored."""

    @event_handler("checks.silent", channel="memory")
    def mail(event: annotation) -> None: ...

    assert [each for each in checks_of(mail) if each.id == "django_cqrs.E018"] == []


def test_E018_is_silent_without_a_channel():
    """What is handled at once needs no name."""

    @event_handler
    def mail(event: Open) -> None: ...

    assert checks_of(mail) == []


@pytest.mark.parametrize(
    ("policies", "fault", "hint"),
    [
        (
            {"channel": "memory", "delay": -1},
            "has delay=-1. delay=-1 is negative.",
            "Give delay= seconds, or a timedelta, of 0 or more.",
        ),
        (
            {"channel": "memory", "expires": True},
            "has expires=True. expires= takes seconds or a timedelta, not True.",
            "Give expires= seconds, or a timedelta, of 0 or more.",
        ),
        (
            {"channel": "memory", "delay": "1h"},
            "has delay='1h'. delay= takes seconds or a timedelta, not '1h'.",
            "Give delay= seconds, or a timedelta, of 0 or more.",
        ),
        (
            {"channel": "memory", "delay": datetime(2026, 7, 1, tzinfo=UTC)},
            (
                f"has delay={datetime(2026, 7, 1, tzinfo=UTC)!r}. It is one point in "
                "time for all messages."
            ),
            "Give delay= a function of the message.",
        ),
        (
            {"channel": "commit", "expires": str},
            (
                "has expires=<class 'str'>. Channel 'commit' (OnCommitChannel) does not "
                "support expires=."
            ),
            "Remove expires=, or choose another channel.",
        ),
        (
            {"channel": "commit", "retry": Retry(attempts=9)},
            (
                f"has retry={Retry(attempts=9)!r}. The channel 'commit' "
                "(OnCommitChannel) never retries a message."
            ),
            "Remove retry=, or choose another channel.",
        ),
        (
            {"channel": "commit", "delay": 5},
            "has delay=5. Channel 'commit' (OnCommitChannel) does not support delay=.",
            "Remove delay=, or choose another channel.",
        ),
        (
            {"channel": "commit", "priority": 5},
            (
                "has priority=5. Channel 'commit' (OnCommitChannel) does not support "
                "priority=."
            ),
            "Remove priority=, or choose another channel.",
        ),
        (
            {"channel": "memory", "delay": 60, "expires": 60},
            "has delay=60 and expires=60: its messages expire before they are due.",
            "Both count from the sending: make expires= the longer one.",
        ),
        (
            {"using": "other"},
            "has using=, but is called immediately.",
            "Give it a channel=, or remove using=.",
        ),
        (
            {"atomic": True},
            "has atomic=, but is called immediately.",
            "Give it a channel=, or remove atomic=.",
        ),
    ],
    ids=str,
)
def test_E019_says_what_cannot_be_kept(settings, policies, fault, hint):
    """A value that is none, a channel that knows no such thing, an event at once."""
    backends = {"memory": "InMemoryChannel", "commit": "OnCommitChannel"}
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            alias: {"BACKEND": f"django_cqrs.channels.{name}"}
            for alias, name in backends.items()
        }
    }

    @event_handler("ticket.mail", **policies)
    def mail() -> None: ...

    found = only(checks_of(mail))

    assert found.id == "django_cqrs.E019"
    assert found.obj is mail
    assert found.msg == (
        f"{__name__}.test_E019_says_what_cannot_be_kept.<locals>.mail {fault}"
    )
    assert found.hint == hint


def test_E019_is_silent_where_the_channel_can():
    """A delay, a life-time and a priority are what a channel may have."""

    @event_handler(
        "ticket.mail",
        channel="memory",
        delay=5,
        expires=6.5,
        priority=-1,
        using="other",
    )
    def mail() -> None: ...

    @event_handler("ticket.mail", priority=5)
    def at_once() -> None: ...

    assert checks_of(mail, at_once) == []


@runtime_checkable
class Titled(Protocol):
    """What only an object can tell that it has."""

    title: str


class RequiresDesk(Marker):
    """A marker that nothing here carries."""


EVERY = pointcut.handler("*")


def interceptors():
    """Return broken interceptors, each with what is wrong with it."""

    @around(EVERY)
    def no_proceed(command: Open): ...

    @before(EVERY)
    def proceeds(proceed: Proceed): ...

    @pre_send(EVERY)
    def sends(proceed: Proceed): ...

    @after(EVERY)
    def follows(proceed: Proceed): ...

    @around(EVERY)
    async def is_async(proceed: Proceed): ...

    @around(EVERY)
    def generates(proceed: Proceed):
        yield

    @before(EVERY)
    async def generates_async():
        yield

    @before(EVERY)
    def other_message(command: Base): ...

    @after(EVERY)
    def other_scalar(number: int, result): ...

    @before(EVERY)
    def wants_marker(desk: RequiresDesk): ...

    called, stand = "cannot be called", f"cannot stand at {__name__}.open_it"
    see = "See the reference of interceptors for what each kind takes."
    aim = (
        "Narrow its pointcut with pointcut.message(), or annotate its payload with "
        "object."
    )
    return {
        no_proceed: (
            (
                f"{called}: it has no parameter annotated with Proceed, so it cannot "
                "proceed"
            ),
            see,
        ),
        proceeds: (f"{called}: a Proceed is for @around, and it is @before", see),
        sends: (f"{called}: a Proceed is for @around, and it is @pre_send", see),
        follows: (f"{called}: a Proceed is for @around, and it is @after", see),
        is_async: (f"{called}: it is async, but it wraps a synchronous handler", see),
        generates: (
            f"{called}: it is a generator, so calling it would not execute its body",
            see,
        ),
        generates_async: (
            f"{called}: it is a generator, so calling it would not execute its body",
            see,
        ),
        other_message: (f"{stand}: it takes Base, but the message there is Open", aim),
        other_scalar: (f"{stand}: it takes int, but the message there is Open", aim),
        wants_marker: (
            (
                f"{stand}: its parameter 'desk' takes the marker RequiresDesk, which the "
                "endpoint does not have"
            ),
            "Narrow its pointcut with pointcut.marked(), or allow None.",
        ),
    }


@command_handler
def open_it(command: Open) -> None: ...


@pytest.mark.parametrize("name", [each.__name__ for each in interceptors()])
def test_E020_broken_interceptor(name):
    """What cannot be called, or not where its pointcut puts it, is reported."""
    interceptor, (fault, hint) = next(
        (each, expected)
        for each, expected in interceptors().items()
        if each.__name__ == name
    )

    found = only(checks_of(open_it, interceptor))

    assert found.id == "django_cqrs.E020"
    assert found.obj is interceptor
    assert (
        found.msg == f"The interceptor {__name__}.interceptors.<locals>.{name} {fault}."
    )
    assert found.hint == hint


def test_E020_is_silent_where_it_does_not_stand():
    """What an interceptor takes matters only at its handlers."""

    @before(pointcut.message(Base))
    def look(command: Base): ...

    @before(pointcut.marked(RequiresDesk))
    def ask(desk: RequiresDesk): ...

    @before(EVERY)
    def take(command: Open | Base, desk: RequiresDesk | None): ...

    @before(EVERY)
    def take_titled(command: Titled): ...

    assert checks_of(open_it, look, ask, take, take_titled) == []


def test_E020_at_a_bus_of_ones_own():
    """An interceptor that is aimed at one bus is checked there."""
    registry = Registry()
    registry.add(open_it)
    bus = CommandBus(registry=registry)

    @before(pointcut.bus(bus))
    def look(command: Base): ...

    registry.add(look)

    assert only(check_registry(registry)).id == "django_cqrs.E020"


def test_E005_unfillable_parameter_of_an_interceptor():
    """Its parameters are checked as a handler's are."""

    @before(EVERY)
    def look(command: Open, number: int): ...

    found = only(checks_of(open_it, look))

    assert found.id == "django_cqrs.E005"
    assert found.obj is look


def test_W001_unknown_setting(settings):
    """A key that means nothing is reported, with the one that was meant."""
    settings.DJANGO_CQRS = {"HANDLER_MODULE": "handlers"}

    found = check_settings()

    assert [each.id for each in found] == ["django_cqrs.W001"]
    assert found[0].msg == "DJANGO_CQRS has no key 'HANDLER_MODULE'."
    assert found[0].hint == "Did you mean 'HANDLERS_MODULE'?"


def test_W002_unrouted_handler(settings):
    """A decorated function outside the handlers modules is not routed, and reported."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.apps.strays"]

    found = [c for c in run_checks(tags=["django_cqrs"]) if c.id.endswith("W002")]

    assert only(found).obj is strays.aside.tidy
    assert found[0].hint == (
        "Move it to the app's handlers module, or import it there."
    )


class Formless:
    """Has no JSON form."""


@dataclass
class Keeper:
    text: str
    inner: Formless | None = None


@dataclass
class Outer:
    keepers: list[Keeper] = field(default_factory=list)


@dataclass
class Misspelt:
    other: NoSuchClass | None = None  # noqa: F821


class Arbitrary(pydantic.BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    inner: Formless


class Calling(pydantic.BaseModel):
    call: Callable[[], int]


class Making(pydantic.BaseModel):
    kind: type[Formless]


@dataclass
class Scaled:
    number: int
    scale: InitVar[int]

    def __post_init__(self, scale): ...


@dataclass
class ScaledByDefault:
    number: int
    scale: InitVar[int] = 1

    def __post_init__(self, scale): ...


class Perhaps(pydantic.BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    inner: Formless | None = None


FORMLESS = [
    (Formless, "Formless has no JSON form"),
    (Keeper, "inner: Formless has no JSON form"),
    (Outer, "keepers.inner: Formless has no JSON form"),
    (
        Misspelt,
        (
            "other: its annotation 'NoSuchClass | None' cannot be evaluated (name "
            "'NoSuchClass' is not defined)"
        ),
    ),
    (Arbitrary, "inner: Formless has no JSON form"),
    (Calling, "call: a callable has no JSON form"),
    (Making, "kind: Formless has no JSON form"),
    (Scaled, "scale: the object does not keep an InitVar; give it a default"),
]


def handling(cls, decorator):
    def handle(command): ...

    handle.__annotations__ = {"command": cls, "return": None}
    return decorator(handle)


@pytest.mark.parametrize("channel", ["memory", "outbox"])
@pytest.mark.parametrize(
    ("cls", "reason"), FORMLESS, ids=[cls.__name__ for cls, _ in FORMLESS]
)
def test_E045_formless_message(cls, reason, channel):
    """A message that no channel can ever store is known at the start, with its path."""
    message(f"formless.{cls.__name__}")(cls)

    for decorator in (command_handler, event_handler):
        found = only(checks_of(handling(cls, decorator(channel=channel))))

        assert found.id == "django_cqrs.E045"
        assert found.msg == (
            f"tests.test_checks.handling.<locals>.handle has channel={channel!r}, but "
            f"no channel can store {cls.__name__}: {reason}."
        )


@pytest.mark.parametrize("cls", [ScaledByDefault, Perhaps])
def test_E045_is_not_said_of_what_may_have_a_json_form(cls):
    """Some objects of such a class can be stored: the send decides."""
    message(f"formless.{cls.__name__}")(cls)

    assert checks_of(handling(cls, command_handler(channel="memory"))) == []


def test_E045_speaks_of_a_subclass_that_is_a_message_too():
    """A handler of a base class is sent objects of the subclasses as well."""

    class Base: ...

    @message("formless.longer")
    @dataclass
    class Longer(Base):
        inner: Formless

    registry = Registry()
    registry.add(handling(Base, event_handler(channel="memory")))
    registry.add(handling(Longer, event_handler))

    found = [each.msg for each in check_registry(registry) if each.id.endswith("E045")]

    assert len(found) == 1
    assert "can store test_E045_speaks" not in found[0]
    assert found[0].endswith("Longer: inner: Formless has no JSON form.")


@pytest.mark.parametrize("view", [CommandView, AsyncCommandView])
@pytest.mark.parametrize(
    ("cls", "reason"), FORMLESS, ids=[cls.__name__ for cls, _ in FORMLESS]
)
def test_E046_inconvertible_view(settings, view, cls, reason):
    """A view whose message no request can say is known at the start."""
    routes = types.ModuleType("routes")
    inner = view.as_view(message=cls)
    routes.urlpatterns = [
        path("api/", include([path("one/", inner), path("two/", csrf_exempt(inner))]))
    ]
    settings.ROOT_URLCONF = routes

    found = only(check_routes())

    assert found.id == "django_cqrs.E046"
    assert found.msg == (
        f"{view.__name__} with message= takes {cls.__name__}, which cannot be created "
        f"from a request: {reason}."
    )


def test_E046_speaks_of_the_class_that_a_route_leads_to(settings):
    """The same for ``route=``, of queries as of commands."""
    registry = Registry()
    registry.add(handling(Keeper, query_handler("keeper.ask")))
    routes = types.ModuleType("routes")
    view = QueryView.as_view(route="keeper.ask", bus=registry.query_bus)
    routes.urlpatterns = [path("ask/", view)]
    settings.ROOT_URLCONF = routes

    found = only(check_routes())

    assert found.msg == (
        "QueryView with route='keeper.ask' takes Keeper, which cannot be created "
        "from a request: inner: Formless has no JSON form."
    )


def hiding(function):
    """Wrap a function as somebody does who has not heard of functools.wraps."""

    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


def test_E047_hidden_handler():
    """A wrapper that hides what it wraps would be called with nothing."""

    @command_handler("hidden.do", name="hidden.do")
    @hiding
    def do(number: int) -> None: ...

    found = only(checks_of(do))

    assert found.id == "django_cqrs.E047"
    assert found.msg == (
        "tests.test_checks.hiding.<locals>.inner takes *args, so its parameters are "
        "unknown: it seems to be a wrapper."
    )
    assert found.hint == (
        "Use functools.wraps in the decorator that made it, or decorate the handler "
        "first."
    )


def test_E047_is_not_said_of_a_wrapper_that_says_what_it_wraps():
    """functools.wraps is enough, and so is a parameter of one's own."""

    def do(number: int) -> None: ...

    wrapped = command_handler("wrapped.do")(functools.wraps(do)(hiding(do)))

    @command_handler("own.do")
    def own(number: int, *args): ...

    assert checks_of(own) == []
    assert checks_of(wrapped) == []


@pytest.fixture
def upcasters(monkeypatch):
    monkeypatch.setattr(upcasting, "_upcasters", {})


def test_E048_useless_upcaster(upcasters):
    """Of a version that the class has, of one to come, and of a name nobody has."""

    def change(payload):
        return payload

    change.__module__ = "tests.testapp.handlers"
    change.__qualname__ = "change"
    assert message_name_of(OpenTicket) is None
    upcaster("testapp.OpenTicket", version=1)(change)
    upcaster("testapp.OpenTickets", version=1)(change)

    def messages():
        found = [each for each in check_routes() if each.id == "django_cqrs.E048"]
        return [(each.msg, each.hint) for each in found]

    place = "tests.testapp.handlers.change"
    assert messages() == [
        (
            (
                f"{place} is the upcaster of 'testapp.OpenTicket' from version 1, but "
                "tests.testapp.messages.OpenTicket has version 1, so nothing needs "
                "it."
            ),
            "Give the class version=2, or name the previous version.",
        ),
        (
            (
                f"{place} is the upcaster of 'testapp.OpenTickets', but no class has "
                "that name or alias."
            ),
            "Did you mean 'testapp.OpenTicket'?",
        ),
    ]


def test_E048_is_not_said_of_documents(upcasters):
    """Their classes have names and versions as well."""

    @document("checks.cart", version=2)
    class Cart: ...

    def change(payload):
        return payload

    change.__module__ = "tests.testapp.handlers"
    upcaster("checks.cart", version=1)(change)

    assert [each for each in check_routes() if each.id == "django_cqrs.E048"] == []
    assert Cart.__name__ == "Cart"


def test_W003_inconvertible_payload():
    """A payload type that cannot be created from JSON is reported for a keyed handler."""

    class Legacy:
        pass

    @command_handler("legacy.load")
    def load(payload: Legacy) -> None: ...

    found = only(checks_of(load))

    assert found.id == "django_cqrs.W003"
    assert "takes test_W003_inconvertible_payload.<locals>.Legacy" not in found.msg
    assert found.msg.endswith(
        "takes Legacy, which cannot be created from JSON or a dict: Legacy has no "
        "JSON form."
    )


def test_a_service_is_checked_through_its_init():
    """What a service's __init__ needs is known at the start, and checked."""

    @service
    class Mailer:
        def __init__(self, host: str) -> None: ...

        @command_handler
        def send(self, command: Open) -> None: ...

    found = only(checks_of(Mailer))

    assert found.id == "django_cqrs.E005"
    assert "the parameter 'host' of " in found.msg


def problem_of_interface(interface):
    registry = Registry()
    implement(interface, registry=registry)
    return only(check_registry(registry))


def test_E040_a_method_without_a_route():
    """A method of a business interface whose key nothing has is reported."""

    @business_interface
    class Api(Protocol):
        @business_method("ticket.open")
        def open(self, command: Open) -> None: ...

    found = problem_of_interface(Api)

    assert found.id == "django_cqrs.E040"
    assert found.msg == (
        f"{__name__}.{Api.__qualname__}.open has no route: no handler has the key "
        "'ticket.open'."
    )


def test_E041_a_method_that_does_not_fit():
    """A method that promises what rows cannot be is reported."""

    @business_interface
    class Api(Protocol):
        @sql_query("SELECT 1")
        def one(self) -> None: ...

    found = problem_of_interface(Api)

    assert found.id == "django_cqrs.E041"
    assert found.msg == (
        f"{__name__}.{Api.__qualname__}.one is annotated to return None, but a query "
        "returns rows."
    )


def test_E042_sql_parameters():
    """A placeholder that is no parameter is reported."""

    @business_interface
    class Api(Protocol):
        @sql_query("SELECT %(number)s")
        def one(self) -> int: ...

    found = problem_of_interface(Api)

    assert found.id == "django_cqrs.E042"
    assert found.msg == (
        f"The SQL of {__name__}.{Api.__qualname__}.one has %(number)s, but the method "
        "has no parameter 'number'."
    )


@pytest.mark.parametrize("view", [CommandView, AsyncCommandView])
def test_E049_unknown_outcome_view(settings, view):
    """The name that a view gives for the address of outcomes is not that of a URL."""
    urls = types.ModuleType("urls")
    given = {"route": "checks.anything", "outcome_view": "nowhere"}
    urls.urlpatterns = [path("", view.as_view(**given))]
    settings.ROOT_URLCONF = urls

    found = [each for each in check_routes() if each.id == "django_cqrs.E049"]

    assert len(found) == 1
    assert found[0].msg.startswith(
        f"{view.__name__} has outcome_view='nowhere', which is not the name of a URL"
    )


@pytest.mark.parametrize("view", [CommandView, AsyncCommandView])
@pytest.mark.parametrize(
    ("channel", "said"),
    [("memory", "is handled later, and"), (None, "is for no object with a version")],
)
def test_E052_if_match_that_nothing_compares(view, channel, said):
    """A view that demands a version can compare it, or no request would succeed."""

    @command_handler("ticket.mail", channel=channel)
    def mail() -> None: ...

    given = {"route": "ticket.mail", "bus": registry_of(mail).command_bus}
    [problem] = view.cqrs_problems({**given, "requires_if_match": True})

    assert problem.rule.id == "django_cqrs.E052"
    assert problem.message.startswith(
        f"{view.__name__} with route='ticket.mail' has requires_if_match=True, but its "
        f"message {said}"
    )
    assert list(view.cqrs_problems(given)) == []


def test_E052_is_only_for_commands():
    """The version of an answer is compared, wherever it comes from."""

    @query_handler("ticket.row")
    def row() -> int: ...

    given = {"route": "ticket.row", "bus": registry_of(row).query_bus}

    assert list(QueryView.cqrs_problems({**given, "requires_if_match": True})) == []


def test_every_rule_has_a_test_of_its_name():
    """Each id of a check stands in the name of a test here, or of the model's."""
    tests = [*globals(), *vars(of_the_model), *vars(test_shapes.TestChecks)]
    tests += [*vars(test_given_up), *vars(of_tenants), *vars(test_graph_problems)]
    tests += [*vars(of_schemas.TestSystemCheck), *vars(of_schedules)]
    names = "".join(each for each in tests if each.startswith("test_"))

    missing = [
        rule.id
        for rule in Rule
        if f"_{rule.id.removeprefix('django_cqrs.')}_" not in names
    ]

    assert missing == []


@pytest.mark.django_db(databases="__all__")
def test_a_check_can_be_silenced(settings):
    """SILENCED_SYSTEM_CHECKS works as for Django's own."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.apps.strays"]
    settings.SILENCED_SYSTEM_CHECKS = ["django_cqrs.E003", "django_cqrs.W002"]

    call_command("check")


@pytest.mark.django_db(databases="__all__")
@pytest.mark.parametrize("named", [None, ["default"], ["default", "other"]], ids=str)
def test_a_check_says_the_same_whatever_databases_it_is_given(settings, named):
    """From 6.1 on every check is given some; before, only those of databases are."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.apps.strays"]
    ours = [each for each in run_checks() if each.id.startswith("django_cqrs.")]

    found = run_checks(databases=named, app_configs=None)

    assert ours
    assert [each for each in found if each.id.startswith("django_cqrs.")] == ours


@pytest.mark.parametrize("label", ["django_cqrs_outbox", "django_cqrs_documents"])
def test_keys_are_of_the_same_type_whatever_the_project_says(label):
    """Django's own default differs between its releases; our tables do not."""
    config = apps.get_app_config(label)
    migrated = MigrationLoader(None).project_state().apps.get_models()

    assert config.default_auto_field == "django.db.models.BigAutoField"
    for each in (*config.get_models(), *migrated):
        if each._meta.app_label == label and each._meta.pk.auto_created:
            assert type(each._meta.pk) is models.BigAutoField
    assert any(each._meta.app_label == label for each in migrated)
