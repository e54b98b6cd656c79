"""A handler that is a method is called as Python calls it: the object's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from django_cqrs import Registry, command_handler, event_handler, query_handler, service
from tests.modelling.payments import PAYMENTS, Pay, Refunded

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@pytest.mark.parametrize("kind", PAYMENTS.values(), ids=PAYMENTS)
class TestObjects:
    """Rows that come back as objects of a subclass, which overrides the method."""

    @pytest.fixture
    def registry(self, kind):
        registry = Registry()
        registry.add(kind)
        kind.objects.create(payment_id=1, kind="other")
        kind.objects.create(payment_id=2, kind="card")
        return registry

    def test_a_command_runs_the_override(self, registry, kind):
        """Its result and its changes are those of the object's class."""
        assert registry.command_bus.dispatch(Pay(1)) == "anything"
        assert registry.command_bus.dispatch(Pay(2)) == "card"
        assert list(kind.objects.order_by("pk").values_list("paid_by", flat=True)) == [
            "anything",
            "card",
        ]

    def test_an_event_runs_the_override(self, registry, kind):
        """A handler of events is a method like any other."""
        registry.event_bus.publish(Refunded(1))
        registry.event_bus.publish(Refunded(2))
        assert list(kind.objects.order_by("pk").values_list("paid_by", flat=True)) == [
            "nobody",
            "bank",
        ]

    def test_a_query_runs_the_override(self, registry, kind):
        """So is one of queries."""
        registry.command_bus.dispatch(Pay(2))
        ask = registry.query_bus.ask
        assert ask(route="payment.by", aggregate_id=2) == "a card"

    def test_a_plain_override_of_an_async_method_is_called(self, registry, kind):
        """Whether it is waited for depends on what is called."""
        dispatch = registry.command_bus.dispatch
        assert dispatch(Pay(1), route="payment.wait") == "anything"
        assert dispatch(Pay(2), route="payment.wait") == "card"


@dataclass(frozen=True)
class Say:
    text: str


def test_a_service_that_is_replaced_by_a_subclass_runs_the_override():
    """Commands, queries and events, and an async override of a plain method."""

    @service
    class Speaker:
        heard: list[str] = []

        @command_handler
        def say(self, command: Say) -> str:
            return command.text

        @query_handler("speaker.ask")
        def ask(self, text: str) -> str:
            return text

        @event_handler("speaker.hear")
        def hear(self, text: str) -> None:
            self.heard.append(text)

    class Loud(Speaker):
        async def say(self, command: Say) -> str:
            return command.text.upper()

        def ask(self, text: str) -> str:
            return super().ask(text).upper()

        def hear(self, text: str) -> None:
            super().hear(text.upper())

    registry = Registry()
    registry.add(Speaker)
    assert registry.command_bus.dispatch(Say("a")) == "a"
    with registry.override(Speaker, Loud):
        assert registry.command_bus.dispatch(Say("a")) == "A"
        assert registry.query_bus.ask("b", route="speaker.ask") == "B"
        registry.event_bus.publish("c", route="speaker.hear")

    assert Speaker.heard == ["C"]
