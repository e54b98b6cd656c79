"""What type checkers, editors and help() read of the buses' keywords is what they take."""

import inspect
import pydoc
from typing import get_overloads

import pytest

from django_cqrs import CommandBus, EventBus, QueryBus
from django_cqrs.buses.keywords import (
    AnyAskKeywords,
    AnyDispatchKeywords,
    PublishKeywords,
)
from django_cqrs.exceptions import InvalidOption

TYPED = [
    (CommandBus.dispatch, CommandBus.adispatch, AnyDispatchKeywords),
    (QueryBus.ask, QueryBus.aask, AnyAskKeywords),
    (EventBus.publish, EventBus.apublish, PublishKeywords),
]
METHODS = [method for *both, _keywords in TYPED for method in both]


def taken_by(method):
    """Return the type of each keyword that a method names, as it is written."""
    return {
        each.name: each.annotation
        for each in inspect.signature(method).parameters.values()
        if each.kind is each.KEYWORD_ONLY
    }


@pytest.mark.parametrize(
    ("method", "_twin", "keywords"), TYPED, ids=lambda each: each.__name__
)
def test_the_keywords_for_type_checkers_are_those_that_the_method_names(
    method, _twin, keywords
):
    """A keyword is added at both places, with one type. [B15.1]"""
    typed = {
        name: each.__forward_arg__ for name, each in keywords.__annotations__.items()
    }
    taken = taken_by(method)
    taken.pop("returns", None)  # what an answer is converted to decides its type

    assert typed == taken


@pytest.mark.parametrize("method", METHODS, ids=lambda each: each.__name__)
def test_help_shows_each_keyword_with_its_type_and_default(method):
    """help() has no dict of keywords. [B15.1]"""
    # Python shows annotations that are strings with quotes, from 3.14 on without.
    text = pydoc.render_doc(method, renderer=pydoc.plaintext).replace("'", "")

    for name, annotation in taken_by(method).items():
        assert f"{name}: {annotation} = None" in text
    assert "**" not in text.partition(") -> ")[0]


@pytest.mark.parametrize("method", METHODS[:4], ids=lambda each: each.__name__)
def test_each_overload_takes_all_keywords(method):
    """What a call returns depends on its type, never on what else it may say."""
    for overload in get_overloads(method):
        keywords = inspect.signature(overload, eval_str=True).parameters["keywords"]
        named = set(inspect.signature(overload).parameters)
        [typed] = keywords.annotation.__args__
        every = {*taken_by(method)} - {"returns"}

        assert every <= named | set(typed.__annotations__)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (CommandBus().dispatch, "CommandBus.dispatch()"),
        (QueryBus().ask, "QueryBus.ask()"),
        (EventBus().publish, "EventBus.publish()"),
    ],
)
def test_a_method_refuses_an_unknown_keyword_by_its_own_name(method, name):
    """Whichever of its forms takes the call, the error names the method that was called."""
    with pytest.raises(TypeError) as caught:
        method(object(), headres=None)

    assert str(caught.value).startswith(
        f"{name} got an unexpected keyword argument 'headres'"
    )


@pytest.mark.parametrize("route", [["a"], {}, 7, b"a"], ids=repr)
@pytest.mark.parametrize(
    "method", [CommandBus().dispatch, QueryBus().ask, EventBus().publish]
)
def test_a_routing_key_of_a_wrong_type_is_said_also_if_it_cannot_be_looked_up(
    method, route
):
    """A list has no hash, and still the error is ours."""
    with pytest.raises(InvalidOption, match="route= must be a routing key"):
        method(object(), route=route)


@pytest.mark.parametrize(
    ("bus", "method", "twin"),
    [
        (CommandBus(), "adispatch", "CommandBus.dispatch()"),
        (QueryBus(), "aask", "QueryBus.ask()"),
        (EventBus(), "apublish", "EventBus.publish()"),
    ],
)
async def test_an_async_twin_refuses_an_unknown_keyword_also_without_a_value(
    bus, method, twin
):
    """A misspelt keyword is no keyword that was left out."""
    with pytest.raises(TypeError) as caught:
        await getattr(bus, method)(object(), headres=None)

    assert str(caught.value).startswith(
        f"{twin} got an unexpected keyword argument 'headres'"
    )
