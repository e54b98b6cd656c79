"""Who sends what, as the code shows it."""

from __future__ import annotations

import dataclasses
import functools
import linecache
import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Protocol

import pytest
from django.db import transaction

from django_cqrs import (
    CommandBus,
    EventBus,
    Fetch,
    QueryBus,
    Registry,
    Send,
    command_bus,
    command_handler,
    event_bus,
    event_handler,
    message,
    query_bus,
    query_handler,
    service,
)
from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.building import graph_of
from django_cqrs.graph.offers import Offer, offer_senders, offers
from django_cqrs.modelling import (
    Repository,
    aggregate,
    business_interface,
    business_method,
    implement,
)
from django_cqrs.models import RecordsEvents
from tests.support import registry_of


@dataclass(frozen=True)
class Begin:
    number: int = 0


@dataclass(frozen=True)
class Finish:
    number: int = 0

    @classmethod
    def of(cls, number):
        return cls(number)


@message("work.begun")
@dataclass(frozen=True)
class Begun:
    number: int = 0


@dataclass(frozen=True)
class Special(Begun):
    pass


@dataclass(frozen=True)
class Count:
    number: int = 0


@dataclass(frozen=True)
class Unknown:
    """No handler takes it, and it has no name."""


@command_handler
@command_handler("work.finish")
def finish(command: Finish) -> None: ...


@event_handler
def note(event: Begun) -> None: ...


@query_handler
def count(query: Count) -> int: ...


@command_handler("work.log")
def log(text: str) -> None: ...


RECEIVERS = finish, note, count, log


def sent_by(handler, *others):
    """Return what a handler sends: the kind, the name and the ways of each message."""
    registry = registry_of(handler, *RECEIVERS, *others)
    graph = graph_of(registry)
    (first, *_) = registry.routes.endpoints
    return {
        (str(edge.message.kind), edge.message.name, ",".join(edge.ways))
        for edge in graph.edges
        if edge.sender == first.name
    }


FINISH = ("command", "Finish", "code")
BEGUN = ("event", "Begun", "code")
COUNT = ("query", "Count", "code")


class Steps(RecordsEvents):
    def announce(self):
        self.record(Begun(1))


class Work(Steps):
    def begin(self):
        self.announce()

    def end(self) -> None:
        self.send(Finish(1))


def ask_and_finish(number):
    if query_bus.ask(Count(number)):
        end(number)


def end(number):
    command_bus.dispatch(Finish(number))
    if number:
        ask_and_finish(number - 1)


def found(number) -> Work:
    return number


def with_a_wrapper(function):
    @functools.wraps(function)
    def wrapped(*args):
        return function(*args)

    return wrapped


@with_a_wrapper
def end_wrapped():
    end(1)


FINISH_KEY = "work.finish"


class Keys:
    LOG = "work.log"


def publish_it(begin: Begin, events: EventBus):
    events.publish(Begun(begin.number))


def pass_a_parameter_on(begin: Begin, other: Begun | None = None):
    event_bus.publish(other)


def name_a_key(begin: Begin):
    command_bus.dispatch({"number": 1}, route="work.finish")


def name_a_key_by_a_constant(begin: Begin):
    command_bus.dispatch(begin.number, route=FINISH_KEY)
    command_bus.dispatch(begin.number, route=Keys.LOG)


def name_a_key_for_an_object(begin: Begin):
    command_bus.dispatch(Finish(1), route="work.log")


def name_a_message(begin: Begin):
    event_bus.publish({"number": 1}, route="work.begun")


def return_a_send(begin: Begin) -> Send:
    return Send(Finish(1), delay=3)


def return_a_send_by_key(begin: Begin) -> Send:
    return Send("hello", route="work.log")


def call_helpers(begin: Begin):
    ask_and_finish(begin.number)


def call_a_wrapped_helper(begin: Begin):
    end_wrapped()


def call_later(begin: Begin):
    transaction.on_commit(partial(end, begin.number))
    transaction.on_commit(call_back)


def call_back():
    event_bus.publish(Begun(1))


def use_a_lambda(begin: Begin):
    transaction.on_commit(lambda: command_bus.dispatch(Finish(1)))


def use_a_function_inside(begin: Begin):
    def later():
        command_bus.dispatch(Finish(1))

    later()


def map_a_class(begin: Begin):
    for command in map(Finish, [1, 2]):
        command_bus.dispatch(command)


def make_by_a_class_method(begin: Begin):
    command_bus.dispatch(Finish.of(1))


def import_inside(begin: Begin):
    from tests.graph.test_sending import Finish as Renamed

    command_bus.dispatch(Renamed(1))


def call_a_method_of_a_parameter(begin: Begin, work: Annotated[Work, Fetch()]):
    work.begin()


def call_a_method_of_a_repository(begin: Begin, works: Repository[Work]):
    work = works.get(1)
    work.end()


def call_a_method_of_what_is_returned(begin: Begin):
    found(1).end()


def call_a_method_of_a_variable(begin: Begin):
    with Work() as unknown:
        unknown.end()
    if work := Work():
        work.begin()


async def wait_for_it(begin: Begin):
    await command_bus.adispatch(Finish(1))


def publish_a_subclass(begin: Begin):
    event_bus.publish(Special(1))


def publish_what_nobody_handles(begin: Begin, events: EventBus):
    events.publish(Unknown())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (publish_it, {BEGUN}),
        (pass_a_parameter_on, {BEGUN}),
        (name_a_key, {("command", "Finish", "route")}),
        (
            name_a_key_by_a_constant,
            {("command", "Finish", "route"), ("command", "work.log", "route")},
        ),
        (name_a_key_for_an_object, {("command", "work.log", "route")}),
        (name_a_message, {("event", "Begun", "route")}),
        (return_a_send, {FINISH}),
        (return_a_send_by_key, {("command", "work.log", "route")}),
        (call_helpers, {FINISH, COUNT}),
        (call_a_wrapped_helper, {FINISH, COUNT}),
        (call_later, {FINISH, COUNT, BEGUN}),
        (use_a_lambda, {FINISH}),
        (use_a_function_inside, {FINISH}),
        (map_a_class, {FINISH}),
        (make_by_a_class_method, {FINISH}),
        (import_inside, {FINISH}),
        (call_a_method_of_a_parameter, {BEGUN}),
        (call_a_method_of_a_repository, {FINISH}),
        (call_a_method_of_what_is_returned, {FINISH}),
        (call_a_method_of_a_variable, {FINISH, BEGUN}),
        (wait_for_it, {FINISH}),
        (publish_a_subclass, {("event", "Special", "code")}),
        (publish_what_nobody_handles, {("event", "Unknown", "code")}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_g03_2_code_shows_what_a_handler_sends(function, expected):
    """A handler sends what it makes or names, itself or by what it calls. [G03.2]"""
    assert sent_by(command_handler(function)) == expected


def test_g03_2_output_and_on_dead_are_ways_of_sending():
    """The keywords of a handler name messages as well. [G03.2]"""

    @command_handler(output="work.finish", on_dead="work.log", channel="memory")
    def begin(command: Begin) -> Finish:
        return Finish(command.number)

    assert sent_by(begin) == {
        ("command", "Finish", "code,output"),
        ("command", "work.log", "on_dead"),
    }


class Clerk:
    works: Repository[Work]

    def __init__(self, events: EventBus, queries: QueryBus) -> None:
        self.events = events
        self.queries = queries

    def tell(self):
        self.events.publish(Unknown())


def test_g03_2_services_and_local_handlers_send():
    """A method sends by its object's buses, helpers and services. [G03.2]"""

    @dataclass(frozen=True)
    class Local:
        number: int = 0

    @event_handler
    def hear(event: Local) -> None: ...

    def helper(number):
        event_bus.publish(Local(number))
        if number:
            helper(number - 1)

    @service
    class Desk:
        def __init__(self, clerk: Clerk, commands: CommandBus) -> None:
            self.clerk = clerk
            self.commands = commands

        @command_handler
        def begin(self, command: Begin) -> None:
            self.clerk.tell()
            self._end()
            helper(command.number)
            self.clerk.works.get(1).begin()

        def _end(self):
            self.commands.dispatch(Finish(1))

    assert sent_by(Desk, hear) == {
        FINISH,
        BEGUN,
        ("event", "Unknown", "code"),
        ("event", "Local", "code"),
    }


def test_g03_2_an_aggregate_records_and_sends():
    """Recorded events and commands belong to the method that records them. [G03.2]"""

    @aggregate
    @dataclass
    class Job(Steps):
        number: int

        @command_handler
        @classmethod
        def begin(cls, command: Begin) -> Job:
            job = cls(command.number)
            job.start()
            return job

        def start(self):
            self.record(lambda: Begun(self.number))
            super().announce()
            self.send(route="work.log", command="begun")

        @command_handler
        def end(self, command: Count) -> None:
            self.record(Unknown())

    graph = graph_of(registry_of(Job, note, log))

    assert {
        (edge.sender.rpartition(".")[2], edge.message.name) for edge in graph.edges
    } == {("begin", "Begun"), ("begin", "work.log"), ("end", "Unknown")}


@business_interface
class Api(Protocol):
    @business_method("work.log")
    def log(self, text: str) -> None: ...

    @business_method
    def finish(self, command: Finish) -> None: ...

    @business_method
    def count(self, query: Count) -> int: ...


def test_g03_2_business_interfaces_lead_to_their_messages():
    """A call of an interface's method is a way of sending, wherever it comes from. [G03.2]"""
    registry = Registry()
    api = implement(Api, registry=registry)

    @command_handler
    def begin(command: Begin, injected: Api) -> None:
        injected.log("begun")
        api.count(Count(1))

    @service
    class Ending:
        def __init__(self, api: Api) -> None:
            self.api = api

        @command_handler("work.end")
        def end(self, command: Finish) -> None:
            self.api.finish(command)

    for each in (begin, Ending, *RECEIVERS):
        registry.add(each)

    assert {
        (edge.sender.rpartition(".")[2], edge.message.name, edge.ways)
        for edge in graph_of(registry).edges
    } == {
        ("begin", "work.log", ("interface",)),
        ("begin", "Count", ("code", "interface")),
        ("end", "Finish", ("interface",)),
    }


def test_g03_2_apps_offer_senders_that_no_code_shows():
    """A clock, for example, sends without a line of code. [G03.2]"""

    def ticks(_registry):
        yield Offer("every hour", "work.log", Kind.COMMAND, "schedule")
        yield Offer("every day", Finish, Kind.COMMAND, "schedule")

    offer_senders(ticks)
    offer_senders(ticks)
    try:
        graph = graph_of(registry_of(*RECEIVERS))
    finally:
        offers.remove(ticks)

    assert [(e.sender, e.message.name, *e.ways) for e in graph.edges] == [
        ("every day", "Finish", "schedule"),
        ("every hour", "work.log", "schedule"),
    ]


def test_g03_2_a_name_and_a_class_of_one_message_are_one():
    """A key that leads where a class leads is not another message. [G03.2]"""
    graph = graph_of(registry_of(*RECEIVERS))

    assert [(each.name, each.keys) for each in graph.messages] == [
        ("Finish", ("work.finish",)),
        ("work.log", ("work.log",)),
        ("Begun", ()),
        ("Count", ()),
    ]


def only_mention(begin: Begin, other: Finish | None = None) -> Begun | None:
    known: Begun | None = None
    for each in (begin, other):
        if isinstance(each, Finish) or issubclass(type(each), Begun):
            known = each
        match each:
            case Begun(number=1):
                known = None
    try:
        known = dataclasses.replace(known)
    except* LookupError:
        known = {Begun: Finish}.get(type(known))
    return known


def shadow(begin: Begin, Finish=print):
    Begun = str
    Finish(Begun(begin))


@pytest.mark.parametrize("function", [only_mention, shadow])
def test_g03_3_what_is_only_mentioned_is_not_sent(function):
    """An annotation, a test of a type and a name that hides a class send nothing. [G03.3]"""
    assert sent_by(command_handler(function)) == set()


TYPED = """
from django_cqrs import command_handler
from tests.graph.test_sending import Begin, Finish

@command_handler
def begin(command: Begin) -> None:
    Finish(command.number)
"""


def test_g03_4_a_handler_without_its_source_is_unknown():
    """One that was typed into a shell is shown as unknown, and is no error. [G03.4]"""
    names = {"__name__": "__main__"}
    exec(compile(TYPED, "<stdin>", "exec"), names)

    graph = graph_of(registry_of(names["begin"], *RECEIVERS))

    assert [each.place for each in graph.unknown] == ["__main__.begin"]
    assert graph.edges == ()


def test_g03_4_the_text_of_a_module_may_be_in_an_archive():
    """What Python itself can show of a function is read. [G03.4]"""
    names = {"__name__": "__main__"}
    lines = TYPED.splitlines(keepends=True)
    linecache.cache["<typed>"] = len(TYPED), None, lines, "<typed>"
    try:
        exec(compile(TYPED, "<typed>", "exec"), names)
        graph = graph_of(registry_of(names["begin"], *RECEIVERS))
    finally:
        del linecache.cache["<typed>"]

    assert graph.unknown == []
    assert [edge.message.name for edge in graph.edges] == ["Finish"]


@pytest.mark.parametrize("text", ["def unfinished(:", "", "other = 1"])
def test_g03_4_a_file_that_has_changed_is_unknown(text, tmp_path, monkeypatch):
    """A text that does not have the function any more tells nothing of it. [G03.4]"""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "changed_handlers.py"
    file.write_text(TYPED)
    try:
        import changed_handlers

        file.write_text(text)
        graph = graph_of(registry_of(changed_handlers.begin, *RECEIVERS))
    finally:
        sys.modules.pop("changed_handlers", None)

    assert [each.place for each in graph.unknown] == ["changed_handlers.begin"]


def test_g03_5_each_module_is_read_once(monkeypatch):
    """Many handlers of one module take one reading of its text. [G03.5]"""
    registry = registry_of(*RECEIVERS)
    for number in range(50):
        registry.add(
            command_handler(f"work.{number}")(
                publish_it.__class__(
                    publish_it.__code__, publish_it.__globals__, f"begin_{number}"
                )
            )
        )
    read = []
    parse = sys.modules["ast"].parse
    monkeypatch.setattr(
        "django_cqrs.graph.sources.ast.parse",
        lambda text: read.append(1) or parse(text),
    )

    graph_of(registry)

    assert len(read) == 1
