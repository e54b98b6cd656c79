"""SERVICE_RESOLVER with svcs and dishka, as the how-to about containers has it."""

from collections.abc import Iterator
from typing import Annotated, Protocol, runtime_checkable

import dishka
import pytest
import svcs
from django.test import override_settings

from django_cqrs import Depends, Registry, Service, command_bus, command_handler
from django_cqrs.buses import registry as projects_registry
from django_cqrs.testing import override


@runtime_checkable
class Mailer(Protocol):
    def send(self, text: str) -> str: ...


class SmtpMailer:
    def __init__(self, host: str) -> None:
        self.host = host

    def send(self, text: str) -> str:
        return f"{text} by {self.host}"


class FakeMailer:
    def send(self, text: str) -> str:
        return f"{text} by nobody"


@command_handler("mail.send")
def send_mail(text: str, mailer: Annotated[Mailer, Service()]) -> str:
    return mailer.send(text)


def smtp_mailer() -> SmtpMailer:
    return SmtpMailer("smtp.example.com")


def svcs_resolver():
    factories = svcs.Registry()
    factories.register_factory(Mailer, smtp_mailer)

    def resolve(cls: type) -> object:
        return svcs.Container(factories).get_abstract(cls)

    return resolve


def dishka_resolver():
    provider = dishka.Provider(scope=dishka.Scope.APP)
    provider.provide(smtp_mailer, provides=Mailer)
    return dishka.make_container(provider).get


@pytest.fixture(params=[svcs_resolver, dishka_resolver], ids=["svcs", "dishka"])
def registry(request) -> Iterator[Registry]:
    with override_settings(DJANGO_CQRS={"SERVICE_RESOLVER": request.param()}):
        registry = Registry()
        registry.add(send_mail)
        yield registry


def send(registry: Registry) -> str:
    return registry.command_bus.dispatch("Hello", route="mail.send")


@pytest.mark.django_db
def test_a_container_gives_services_to_handlers(registry):
    """A container's `get` is a resolver, for Protocols as for classes."""
    assert registry.routes.problems == ()
    assert send(registry) == "Hello by smtp.example.com"


@pytest.mark.django_db
def test_override_stands_before_the_container(registry):
    """One line replaces what a container would give, as long as its block lasts."""
    with registry.override(Mailer, FakeMailer):
        assert send(registry) == "Hello by nobody"

    assert send(registry) == "Hello by smtp.example.com"


class Session:
    is_open = True


def dishka_sessions(closed: list[Session]) -> dishka.Container:
    def open_session() -> Iterator[Session]:
        session = Session()
        yield session
        session.is_open = False
        closed.append(session)

    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    provider.provide(open_session)
    return dishka.make_container(provider)


@pytest.mark.django_db
def test_a_scope_of_dishka_lasts_as_long_as_a_message():
    """A generator given to Depends closes what the container made for one message."""
    closed = []
    container = dishka_sessions(closed)

    def session() -> Iterator[Session]:
        with container() as scope:
            yield scope.get(Session)

    @command_handler("session.is_open")
    def is_open(session: Annotated[Session, Depends(session)]) -> bool:
        assert not closed
        return session.is_open

    registry = Registry()
    registry.add(is_open)

    assert registry.command_bus.dispatch(route="session.is_open") is True
    assert [each.is_open for each in closed] == [False]


@pytest.mark.django_db
def test_a_container_of_svcs_lasts_as_long_as_a_message():
    """So does a container of svcs, which is closed with what it made."""
    closed = []
    factories = svcs.Registry()
    factories.register_factory(Session, Session)

    def container() -> Iterator[svcs.Container]:
        with svcs.Container(factories) as container:
            yield container
            closed.append(container.get(Session))

    @command_handler("session.is_open")
    def is_open(container: Annotated[svcs.Container, Depends(container)]) -> bool:
        assert not closed
        return container.get(Session).is_open

    registry = Registry()
    registry.add(is_open)

    assert registry.command_bus.dispatch(route="session.is_open") is True
    assert len(closed) == 1


# The project's registry -----------------------------------------------------------


def today() -> str:
    return "Monday"


@pytest.mark.django_db
def test_override_of_the_test_kit_is_that_of_the_projects_registry(monkeypatch):
    """`django_cqrs.testing.override` replaces for the three global buses."""

    @command_handler("day.tell")
    def tell(day: Annotated[str, Depends(today)]) -> str:
        return day

    monkeypatch.setattr(projects_registry, "_added", [])
    projects_registry.add(tell)
    try:
        with override(today, lambda: "Sunday"):
            assert command_bus.dispatch(route="day.tell") == "Sunday"
        assert command_bus.dispatch(route="day.tell") == "Monday"
    finally:
        monkeypatch.undo()
        projects_registry.reset()
