"""The headers that a handler of a recorded event got, and what becomes of them."""

from __future__ import annotations

from typing import Protocol

import pytest

from django_cqrs import CommandBus, Headers, Registry, command_handler, event_handler
from django_cqrs.modelling import business_interface, business_method
from tests.modelling.boxes import MODELS, Back, Outer, put

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("way", ["interface", "bus"])
def test_headers_of_a_recorded_event_can_be_handed_on(way):
    """The user's are sent on; the message's own, aggregate_id among them, are not."""

    @business_interface
    class Api(Protocol):
        @business_method("echo")
        def echo(self, text: str, headers: Headers) -> dict: ...

    heard = []

    @command_handler("echo")
    def echo(text: str, headers: Headers) -> dict:
        heard.append(dict(headers))
        return {}

    @event_handler
    def hear(event: Back, headers: Headers, api: Api, commands: CommandBus) -> None:
        assert headers["aggregate_id"] == 7
        if way == "interface":
            api.echo("x", headers)
        else:
            commands.dispatch("x", route="echo", headers=headers)

    registry = Registry()
    for each in (MODELS["Box"], echo, hear):
        registry.add(each)
    put("Box", 7)
    registry.command_bus.dispatch(Outer(7, "after the save"), headers={"user": "ada"})

    (found,) = heard
    assert found["user"] == "ada"
    assert not [name for name in found if name.startswith("aggregate_")]
