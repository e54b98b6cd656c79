"""Checks of an endpoint's policies, and of its declared results."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings

from django_cqrs.annotations import is_plain_class, name_of_type, place_of
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import DEFAULT_CHANNEL_ALIAS, Channel, as_timedelta
from django_cqrs.conversion.compatibility import fits
from django_cqrs.declaration.declarations import Kind, Policies
from django_cqrs.declaration.key_sources import faults_of
from django_cqrs.declaration.keywords import KEYWORDS, HandlerRole
from django_cqrs.exceptions import InvalidChannel, InvalidOption
from django_cqrs.inbox import find_inbox, no_inbox
from django_cqrs.messages import result_type_of
from django_cqrs.problems import Problem, Rule
from django_cqrs.retries import Retry
from django_cqrs.sends import says_send, without_sends

if TYPE_CHECKING:
    from django_cqrs.routing.endpoint import Endpoint


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_keys(value: object) -> bool:
    several = value if isinstance(value, tuple) else (value,)
    return bool(several) and all(map(_is_text, several))


# The others are compared with databases, channels and attributes that exist.
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a name", _is_text),
    "aliases": ("names", lambda value: all(map(_is_text, value))),
    "using": ("the alias of a database", lambda value: isinstance(value, str)),
    "atomic": ("True or False", lambda value: isinstance(value, bool)),
    "priority": ("a whole number", _is_whole),
    "tenant": ("True or False", lambda value: isinstance(value, bool)),
    "retry": ("a Retry", lambda value: isinstance(value, Retry)),
    "output": ("a routing key, or a tuple of them", _are_keys),
    "on_dead": (
        "a routing key, or a subclass of MessageGaveUp",
        lambda value: _is_text(value) or isinstance(value, type),
    ),
}


def with_sound_values(
    policies: Policies, function: Callable[..., Any]
) -> tuple[Policies, list[Problem]]:
    """Return policies without invalid values, and a problem for each of those."""
    unsaid: dict[str, Any] = {}
    problems = []
    for field in dataclasses.fields(policies):
        value = getattr(policies, field.name)
        wanted, is_sound = _VALUES.get(field.name, ("", None))
        if is_sound is None or value == field.default or is_sound(value):
            continue
        unsaid[field.name] = field.default
        problems.append(
            Problem(
                Rule.BAD_POLICY,
                f"{place_of(function)} has {field.name}={value!r}: it takes {wanted}.",
                f"Give {wanted}, or remove {field.name}=.",
                function,
            )
        )
    return dataclasses.replace(policies, **unsaid), problems


def are_equal(name: str, one: Any, other: Any) -> bool:
    """Return whether two values of a keyword have the same meaning."""
    if name == "channel":
        one, other = (
            DEFAULT_CHANNEL_ALIAS if each is True else each for each in (one, other)
        )
    elif name in _SPANS and _is_span(one) and _is_span(other):
        one, other = as_timedelta(one, name), as_timedelta(other, name)
    return bool(one == other)


def problems_of(endpoint: Endpoint) -> Iterator[Problem]:
    """
    Yield the problems of an endpoint's policies and results.

    A problem shared by a factory and an action is reported where it is written.
    """
    yield from _database(endpoint)
    yield from _places(endpoint)
    yield from _channel(endpoint)
    yield from _object(endpoint)
    yield from _keys(endpoint)
    yield from _sends(endpoint)
    yield from _result(endpoint)


def _database(endpoint: Endpoint) -> Iterator[Problem]:
    using = endpoint.own.using
    if using is not None and using not in settings.DATABASES:
        yield Problem(
            Rule.UNKNOWN_DATABASE,
            f"{place_of(endpoint.function)} uses the database {using!r}, "
            f"which is not in DATABASES.",
            f"The aliases are {', '.join(sorted(settings.DATABASES))}.",
            endpoint.function,
        )


def _places(endpoint: Endpoint) -> Iterator[Problem]:
    """Yield the keywords that have no effect on this kind of handler."""
    where, is_waiting = place_of(endpoint.function), endpoint.channel is not None
    roles = [endpoint.role]
    if endpoint.role is HandlerRole.PAIR and endpoint.is_alone_somewhere:
        roles.append(HandlerRole.ACTION)
    for name in endpoint.own.given():
        if name == "channel":  # it has checks of its own
            continue
        may_stand = KEYWORDS[name].where(endpoint.kind)
        if any(may_stand.fits(role, is_waiting=is_waiting) for role in roles):
            continue
        if any(may_stand.fits(role, is_waiting=True) for role in roles):
            yield Problem(
                Rule.CHANNEL_POLICY,
                f"{where} has {name}=, but is called immediately.",
                f"Give it a channel=, or remove {name}=.",
                endpoint.function,
            )
        elif not (is_waiting and endpoint.kind is Kind.QUERY):
            yield Problem(
                Rule.MISPLACED_POLICY,
                f"{where} has {name}=, but {endpoint.role}.",
                f"Remove {name}=.",
                endpoint.function,
            )


def _channel(endpoint: Endpoint) -> Iterator[Problem]:
    where = place_of(endpoint.function)
    policies, own = endpoint.policies, endpoint.own
    alias = endpoint.channel
    if alias is None:
        return
    if endpoint.kind is Kind.QUERY:
        yield Problem(
            Rule.CHANNELLED_QUERY,
            f"{where} answers a query and has a channel, so the caller would get no "
            "answer.",
            "Remove channel=.",
            endpoint.function,
        )
        return
    try:
        channel = channels[alias] if isinstance(alias, str) else None
    except InvalidChannel as error:
        if own.channel is not None:
            yield Problem(
                Rule.UNKNOWN_CHANNEL,
                f"{where} has channel={alias!r}. {error}",
                _hint_of_channel(alias),
                endpoint.function,
                cause=str(error) if alias in channels else "",
            )
        return
    if channel is None:
        if own.channel is not None:
            yield Problem(
                Rule.UNKNOWN_CHANNEL,
                f"{where} has channel={alias!r}.",
                "Give the alias of one channel, or True for 'default'.",
                endpoint.function,
            )
        return
    faults = list(_option_faults(channel, own))
    for name, fault, hint in faults:
        yield Problem(
            Rule.CHANNEL_POLICY,
            f"{where} has {name}={getattr(own, name)!r}. {fault}",
            hint,
            endpoint.function,
        )
    if faults or (own.delay is None and own.expires is None):
        return
    if not (policies.delay and _is_span(policies.delay) and _is_span(policies.expires)):
        return
    if as_timedelta(policies.expires, "") <= as_timedelta(policies.delay, ""):
        yield Problem(
            Rule.CHANNEL_POLICY,
            f"{where} has delay={policies.delay!r} and expires={policies.expires!r}: "
            f"its messages expire before they are due.",
            "Both count from the sending: make expires= the longer one.",
            endpoint.function,
        )


def _option_faults(
    channel: Channel, policies: Policies
) -> Iterator[tuple[str, str, str]]:
    """Yield the policies that a channel does not support: the fault, and the fix."""
    for name in ("delay", "expires", "priority", "ordering_key"):
        value = getattr(policies, name)
        if value is None:
            continue
        if name in _SPANS and isinstance(value, datetime):
            fault = "It is one point in time for all messages."
            yield name, fault, f"Give {name}= a function of the message."
            continue
        if name in _SPANS and callable(value):
            value = timedelta(0)  # its results are checked when messages are sent
        try:
            if name in _SPANS:
                as_timedelta(value, name)
            channel.check_option(name, value)
        except InvalidOption as error:
            hint = f"Remove {name}=, or choose another channel."
            if name in _SPANS and not _is_span(value):
                hint = f"Give {name}= seconds, or a timedelta, of 0 or more."
            yield name, str(error), hint
    if channel.supports_redelivery or channel.is_immediate:  # the latter is for tests
        return
    if policies.retry is not None:
        kind = type(channel).__name__
        yield (
            "retry",
            f"The channel {channel.alias!r} ({kind}) never retries a message.",
            "Remove retry=, or choose another channel.",
        )
    if policies.on_dead is not None:
        kind = type(channel).__name__
        fault = f"The channel {channel.alias!r} ({kind}) keeps no message that failed."
        yield "on_dead", fault, "Remove on_dead=, or choose another channel."


def _hint_of_channel(alias: Any) -> str:
    """Return the fix of a broken channel: of its settings if any, or of its name."""
    if alias in tuple(channels):
        return f"Fix DJANGO_CQRS['CHANNELS'][{alias!r}]."
    return "Name a channel in DJANGO_CQRS['CHANNELS']."


_SPANS = ("delay", "expires")


def _is_span(value: object) -> bool:
    try:
        as_timedelta(value, "")
    except InvalidOption:
        return False
    return True


def _object(endpoint: Endpoint) -> Iterator[Problem]:
    where, policies = place_of(endpoint.function), endpoint.own
    if endpoint.owner is not None and endpoint.function.__name__ == "__init__":
        yield Problem(
            Rule.CONSTRUCTOR_HANDLER,
            f"{where} is decorated, but a constructor cannot be a handler.",
            "Decorate a class method that creates and returns an object.",
            endpoint.function,
        )
    for name in ("on_missing", "on_existing"):
        value = getattr(policies, name)
        fault = _fault_of_error(value)
        if fault is not None:
            yield Problem(
                Rule.MISPLACED_POLICY,
                f"{where} has {name}={value!r}{fault}.",
                f'Write {name}="raise", {name}="ignore", or give an exception.',
                endpoint.function,
            )


def _fault_of_error(value: object) -> str | None:
    """Return the fault of an ``on_missing=`` or ``on_existing=``, None without one."""
    if isinstance(value, Exception) or value in (None, "raise", "ignore"):
        return None
    if not (isinstance(value, type) and issubclass(value, Exception)):
        return ""
    try:
        inspect.signature(value).bind("")
    except ValueError:  # a class in C, which takes a text
        return None
    except TypeError:
        return ", a class that is not made from one text, so give an instance"
    return None


def _keys(endpoint: Endpoint) -> Iterator[Problem]:
    where, wanted = place_of(endpoint.function), endpoint.plan.payload
    members = None if wanted is None else wanted.members
    for name in ("ordering_key", "idempotency_key"):
        source = getattr(endpoint.own, name)
        if source is True and name == "ordering_key":
            if endpoint.role in (HandlerRole.PLAIN, HandlerRole.FACTORY):
                yield Problem(
                    Rule.BROKEN_KEY,
                    f"{where} has ordering_key=True, but {endpoint.role}.",
                    "Name an attribute of its messages, or give a Header or a "
                    "callable that takes the message.",
                    endpoint.function,
                )
            continue
        for fault in () if source is None else faults_of(source, members):
            yield Problem(
                Rule.BROKEN_KEY,
                f"{where} has {name}={source!r}. {fault}",
                "Name an attribute that every message it takes has, or give a "
                "Header, or a callable that takes the message.",
                endpoint.function,
            )
    if endpoint.own.idempotency_key is None:
        return
    if find_inbox() is None:
        yield no_inbox(where, endpoint.function)
    if endpoint.policies.atomic is False:
        yield Problem(
            Rule.UNREMEMBERED_KEY,
            f"{where} has idempotency_key= and atomic=False: a failed command would "
            "still be recorded as handled.",
            "Remove one of the two.",
            endpoint.function,
        )


def _sends(endpoint: Endpoint) -> Iterator[Problem]:
    is_method = endpoint.subject is not None and endpoint.kind is not Kind.QUERY
    if is_method or endpoint.policies.outputs or not says_send(endpoint.plan.returns):
        return
    where, reason = place_of(endpoint.function), "answers a query"
    if endpoint.kind is not Kind.QUERY:
        reason = "is neither a method of an aggregate or a saga nor has output="
    yield Problem(
        Rule.UNSENT_COMMAND,
        f"{where} returns a Send that nothing sends: it {reason}.",
        "Send the command with command_bus.dispatch(), or give the handler output=.",
        endpoint.function,
    )


def _result(endpoint: Endpoint) -> Iterator[Problem]:
    if endpoint.kind is Kind.EVENT or endpoint.plan.payload is None:
        return
    returns = own = without_sends(endpoint.plan.returns)
    if endpoint.subject is not None:
        returns = endpoint.subject.result_of(endpoint)
    for cls in endpoint.plan.payload.members:
        promised = result_type_of(cls) if is_plain_class(cls) else Any
        if promised is Any:
            continue
        name, where = name_of_type(cls), place_of(endpoint.function)
        promises = (
            f"{name} promises a result of type {_describe(promised)}, but {where}"
        )
        if endpoint.channel is not None and promised not in (None, type(None)):
            yield Problem(
                Rule.CHANNELLED_RESULT,
                f"{promises} handles it in the background.",
                f"Derive {name} from Command[None], or take channel= away.",
                endpoint.function,
            )
        elif endpoint.channel is None and not fits(returns, promised):
            gives = "makes an object identified by a"
            verb = "is annotated to return"
            yield Problem(
                Rule.RESULT_TYPE,
                f"{promises} {verb if returns is own else gives} {_describe(returns)}.",
                "Make both the same.",
                endpoint.function,
            )


def _describe(annotation: Any) -> str:
    return "None" if annotation in (None, type(None)) else name_of_type(annotation)
