# No `from __future__ import annotations`: mediatr routes by the annotation itself.
"""What else a project could use, each set up as leanly as its documentation allows."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from tests.benchmarks.measuring import Contestant, awaiting, statement


def python_cqrs(loop: asyncio.AbstractEventLoop) -> Iterator[Contestant]:
    """Asynchronous: timed in a loop that is running, and with a handler class."""
    import cqrs
    import di
    from cqrs.bootstrap import events, requests

    class Sum(cqrs.Response):
        value: int

    class AddOne(cqrs.Request[Sum]):
        to: int

    class Added(cqrs.DomainEvent):
        to: int

    class AddOneHandler(cqrs.RequestHandler[AddOne]):
        async def handle(self, request: AddOne) -> Sum:
            return Sum(request.to + 1)

    class AddedHandler(cqrs.EventHandler[Added]):
        async def handle(self, event: Added) -> None:
            pass

    # As the documentation shows it: the `di` container, the logging middleware. The
    # package sets its logger to DEBUG; records that nobody reads are not made here.
    logging.getLogger("cqrs").setLevel(logging.WARNING)
    mediator = requests.bootstrap(
        di_container=di.Container(),
        commands_mapper=lambda mapper: mapper.bind(AddOne, AddOneHandler),
    )
    yield awaiting("python-cqrs: send()", loop, mediator.send, AddOne(1))

    class Instances:
        """A container that holds one instance of each handler."""

        def __init__(self) -> None:
            self.made = {AddOneHandler: AddOneHandler(), AddedHandler: AddedHandler()}

        async def resolve(self, type_: type) -> object:
            return self.made[type_]

    requests_map = cqrs.RequestMap()
    requests_map.bind(AddOne, AddOneHandler)
    lean = cqrs.RequestMediator(requests_map, Instances())
    yield awaiting("python-cqrs: send(), no di, no logging", loop, lean.send, AddOne(1))

    event_mediator = events.bootstrap(
        di_container=di.Container(),
        events_mapper=lambda mapper: mapper.bind(Added, AddedHandler),
    )
    yield awaiting("python-cqrs: an event", loop, event_mediator.send, Added(1))


def mediatr(_loop: asyncio.AbstractEventLoop) -> Iterator[Contestant]:
    """Synchronous, a function as the handler, no behaviours."""
    from mediatr import Mediator

    class AddOne:
        def __init__(self, to: int) -> None:
            self.to = to

    @Mediator.handler
    def add_one(request: AddOne) -> int:
        return request.to + 1

    yield statement(
        "mediatr: send()",
        "mediator.send(request)",
        mediator=Mediator(),
        request=AddOne(1),
    )


def lato(_loop: asyncio.AbstractEventLoop) -> Iterator[Contestant]:
    """Synchronous, no middleware; its messages are pydantic models."""
    from lato import Application, Command, Event

    class AddOne(Command):
        to: int

    class Added(Event):
        to: int

    app = Application("benchmarks")

    @app.handler(AddOne)
    def add_one(command: AddOne) -> int:
        return command.to + 1

    @app.handler(Added)
    def note(event: Added) -> None:
        pass

    yield statement(
        "lato: execute()", "app.execute(command)", app=app, command=AddOne(to=1)
    )
    yield statement("lato: publish()", "app.publish(event)", app=app, event=Added(to=1))


def queuebie(_loop: asyncio.AbstractEventLoop) -> Iterator[Contestant]:
    """
    Synchronous; it opens a transaction for every message, here on SQLite in memory.

    Its cache of handlers is in local memory, which is the fastest it can be.
    """
    from queuebie.runner import handle_message

    from tests.benchmarks.queuebie_shop.messages.numbers import Added, AddOne

    for name, message in (("a command", AddOne(to=1)), ("an event", Added(to=1))):
        yield statement(
            f"django-queuebie: {name}, in a transaction",
            "handle_message(message)",
            handle_message=handle_message,
            message=message,
        )


PEERS: dict[str, tuple[str, Callable[..., Iterator[Contestant]]]] = {
    "python-cqrs": ("cqrs", python_cqrs),
    "mediatr": ("mediatr", mediatr),
    "lato": ("lato", lato),
    "django-queuebie": ("queuebie", queuebie),
}


def installed(loop: asyncio.AbstractEventLoop) -> tuple[list[Contestant], list[str]]:
    """Return the peers that are installed here, and the names of those that are not."""
    found: list[Contestant] = []
    missing: list[str] = []
    for package, (module, contestants) in PEERS.items():
        if find_spec(module) is None:
            missing.append(package)
        else:
            found.extend(contestants(loop))
    return found, missing
