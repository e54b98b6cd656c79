"""What grows with the number of handlers, counted in lines of code that run."""

from __future__ import annotations

import sys
from dataclasses import make_dataclass
from functools import partial

import pytest

from django_cqrs import Registry, command_handler, message
from django_cqrs.interception import Proceed, around, pointcut
from tests.modelling.messages import CountVisit
from tests.modelling.models import PageCount


def lines_of(function, *arguments):
    """Return how many lines of Python a call runs, in all functions that it calls."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return count


def registry_of(count, *more):
    """Return a registry with so many command handlers, each for its own class."""
    registry = Registry()
    for number in range(count):
        cls = message(f"many.{number}")(make_dataclass(f"Many{number}", ["text"]))

        def handle(command): ...

        handle.__annotations__ = {"command": cls, "return": None}
        registry.add(command_handler(name=f"handle.{number}")(handle))
    for each in more:
        registry.add(each)
    return registry


@around(pointcut.handler("*"))
def watched(proceed: Proceed):
    return proceed()


@pytest.mark.parametrize("more", [[], [watched]], ids=["plain", "with an interceptor"])
def test_the_interceptors_of_all_handlers_are_found_in_time_linear_in_their_number(
    more,
):
    """
    cqrs_routes asks of each handler which interceptors stand around it: ten times the
    handlers take ten times the work.
    """
    lines = {}
    for count in (20, 200):
        registry = registry_of(count, *more)
        endpoints = registry.routes.endpoints
        registry.interceptors_around(endpoints[0])  # what is made once is made

        around_each = partial(map, registry.interceptors_around)
        lines[count] = lines_of(list, around_each(endpoints))

    assert lines[200] <= 11 * lines[20]


def test_a_stored_message_of_a_factory_finds_its_action_whatever_the_number_of_handlers():
    """A factory's message is paired with the action at the same cost among any number
    of handlers."""
    lines = set()
    for count in (10, 500):
        routes = registry_of(count, PageCount).routes
        factory = routes.endpoint_named("modelling.PageCount.first")
        visit = CountVisit("/")
        assert routes.with_action(factory, visit).action is not None

        lines.add(lines_of(routes.with_action, factory, visit))

    assert len(lines) == 1
