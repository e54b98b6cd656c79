"""Compile runs: the stages from a bus, or from a channel, to a handler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS

from django_cqrs.active_tenant import active
from django_cqrs.annotations import is_plain_class
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import InvalidOption
from django_cqrs.interception import RETRY, TRANSACTION, When
from django_cqrs.messages import Message, handling_of, scope_of
from django_cqrs.parameters.plan import ArgumentPlan
from django_cqrs.parameters.planner import method_callable
from django_cqrs.parameters.services import with_dependencies
from django_cqrs.pipeline.idempotency import (
    BusKey,
    idempotency_key_of,
    once,
    once_on_bus,
)
from django_cqrs.pipeline.interceptors import (
    Interceptor,
    intercepted,
    nobody,
    target_of,
)
from django_cqrs.pipeline.observation import Step, observed, observed_in_transaction
from django_cqrs.pipeline.stages import (
    handle_payload,
    handle_payload_and_message,
    in_transaction,
    inside_transaction,
    on_alias,
    retried,
    while_current,
)
from django_cqrs.pipeline.tenancy import have_databases, tenancy
from django_cqrs.problems import Problem
from django_cqrs.retries import InstantRetry
from django_cqrs.routing.endpoint import Endpoint, JoinPoint, Run, Subject
from django_cqrs.sends import MAY_SEND, says_send, send_on, split_sends
from django_cqrs.sync import sync_callable


class Pipelines:
    """Compiles the runs of messages, with the interceptors of one registry."""

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        """Take compiled interceptors, outermost first."""
        self.interceptors: tuple[Interceptor, ...] = tuple(interceptors)

    def handling(
        self,
        point: JoinPoint,
        *,
        using: str | None = None,
        retry: InstantRetry | None = None,
        key: BusKey | None = None,
        is_direct: bool = False,
    ) -> Run:
        """
        Return the whole run of a command or a query, from message to result.

        Args:
            point: a valid endpoint, the bus and the payload's type.
            using: the caller's alias, which overrides the endpoint's own.
            retry: the bus's policy.
            key: the bus's key for duplicates.
            is_direct: whether the bus is bypassed: without the interceptors that look
                at it, and without its transaction.

        Raises:
            InvalidHandler: an interceptor at this point is broken.
            InvalidOption: the bus has a key, and no installed app can remember it.

        """
        found = self._at(point, *_HANDLING)
        endpoint = point.endpoint
        if key is not None and not endpoint.is_atomic:
            raise InvalidOption(_unremembered(endpoint))
        is_atomic = endpoint.is_atomic
        if is_direct:
            found = [e for e in found if not e.interception.pointcut.looks_at_bus]
            # A key is remembered in a transaction, or it might outlive a failure.
            is_atomic = idempotency_key_of(endpoint) is not None
        mode = Mode(is_atomic=is_atomic, answers=True)
        run = self._staged(point, found, mode, using=using, retry=retry, key=key)
        opens = endpoint.is_atomic and is_atomic
        sends = bool(endpoint.policies.outputs)
        plain = not (found or retry or opens or sends or endpoint.subject)
        whole = observed(run, point, Step.HANDLE)
        if plain and whole is run:
            if endpoint.plan.is_payload_only:
                run = handle_payload(sync_callable(endpoint.function))
                return for_tenants(run, endpoint)
            if endpoint.plan.is_payload_and_message:
                run = handle_payload_and_message(sync_callable(endpoint.function))
                return for_tenants(run, endpoint)
        return for_tenants(while_current(whole), endpoint)

    def subscription(self, point: JoinPoint) -> Run:
        """
        Return the run of an event's direct handler, while the event is current.

        The handlers of one event share their ``Depends`` results, which the publisher
        manages.

        Raises:
            InvalidHandler: an interceptor at this point is broken.

        """
        found = self._at(point, *_HANDLING)
        mode = Mode(is_atomic=point.endpoint.is_atomic, makes_dependencies=False)
        run = self._staged(point, found, mode)
        return for_tenants(observed(run, point, Step.HANDLE), point.endpoint)

    def consumption(
        self,
        point: JoinPoint,
        *,
        opens_transaction: bool = True,
        using: str | None = None,
    ) -> Run:
        """
        Return the run of a message from a channel.

        Args:
            point: a valid endpoint, the bus of its kind and the payload's type.
            opens_transaction: False if the caller's savepoint is the endpoint's
                transaction.
            using: the alias for an endpoint that does not name one.

        Raises:
            InvalidHandler: an interceptor at this point is broken.

        """
        found = [
            each
            for each in self._at(point, *_HANDLING)
            if not each.interception.pointcut.looks_at_bus
        ]
        otherwise = using
        if point.endpoint.subject is not None or have_databases():
            using = None  # its objects decide, or the tenant of the message
        if point.endpoint.is_declared:
            otherwise = None
        mode = Mode(
            # Messages may still wait for an event handler that no longer has a channel.
            is_atomic=point.endpoint.policies.atomic is not False,
            opens_transaction=opens_transaction,
        )
        alias = point.endpoint.policies.using or using
        run = self._staged(point, found, mode, using=alias, otherwise=otherwise)
        run = observed(run, point, Step.CONSUME)
        return for_tenants(while_current(run, takes_time=False), point.endpoint)

    def sending(
        self,
        point: JoinPoint,
        put: Run,
        *,
        alias_of: Callable[[Message], str],
        retry: InstantRetry | None = None,
        key: BusKey | None = None,
    ) -> Run:
        """
        Return the run that sends a message to a channel: interceptors, then `put`.

        Interceptors that look at the bus run here, since only the sender has one.

        Args:
            point: the receiving endpoint, the bus and the payload's type.
            put: sends the message.
            alias_of: returns the database that a message is stored in.
            retry: the bus's policy, for the transaction that its key needs.
            key: the bus's key for duplicates.

        Raises:
            InvalidHandler: an interceptor at this point is broken.
            InvalidOption: the bus has a key, and no installed app can remember it.

        """
        before_channel = self._at(point, When.PRE_SEND)
        at_bus = [
            each
            for each in self._at(point, *_HANDLING)
            if each.interception.pointcut.looks_at_bus
        ]
        put = observed(put, point, Step.SEND)
        if key is None and not before_channel and not at_bus:
            return for_tenants(put, point.endpoint)
        run = intercepted(put, before_channel, point)
        if key is not None:
            if retry is not None and _use_dependencies(_plans_of(before_channel)):
                run = with_dependencies(run)  # each attempt has its own
            run = on_alias(partial(_sent_once, run, point, key, retry), alias_of)
        run = intercepted(run, at_bus, point)
        if _use_dependencies(_plans_of([*before_channel, *at_bus])):
            run = with_dependencies(run)
        return for_tenants(while_current(run, takes_time=False), point.endpoint)

    def alone(self, point: JoinPoint) -> Run:
        """
        Return the run of a handler on an object that no database holds: for tests.

        No transaction is opened, and no interceptor is called.

        Args:
            point: a valid endpoint of an object, and the bus of its kind.

        """
        mode = Mode(is_atomic=False)
        context = StageContext(point, DEFAULT_DB_ALIAS, mode, None, None, (), (), ())
        run = with_output(with_inner_interceptors(_call_of(point), context), context)
        return while_current(with_dependencies(run))

    def around(
        self, endpoint: Endpoint, buses: Sequence[Any], known: MessageTypes
    ) -> list[Interceptor]:
        """
        Return the interceptors that may apply to an endpoint, outermost first.

        Args:
            endpoint: the handler.
            buses: the buses that may be used.
            known: the message classes, since the handler may accept more of them than
                it names.

        """
        if not self.interceptors:
            return []
        points = list(_points(endpoint, buses, known))
        kinds = When if endpoint.channel is not None else _HANDLING
        return [
            each
            for each in self.interceptors
            if each.interception.when in kinds and any(map(each.is_at, points))
        ]

    def problems_of(
        self, endpoints: Iterable[Endpoint], buses: Sequence[Any]
    ) -> Iterator[Problem]:
        """Yield the problems of interceptors, alone and at their join points."""
        for each in self.interceptors:
            yield from each.problems
        sound = [each for each in self.interceptors if not each.problems]
        for endpoint in endpoints:
            for point in () if endpoint.problems else _points(endpoint, buses):
                for each in sound:
                    problem = each.problem_at(point) if each.is_at(point) else None
                    if problem is not None:
                        yield problem

    def plans_at(
        self, endpoints: Sequence[Endpoint], bus: Any, types: Sequence[type]
    ) -> list[ArgumentPlan]:
        """Return the plans of directly called endpoints, and of their interceptors."""
        plans = []
        for endpoint, cls in zip(endpoints, types, strict=True):
            if endpoint.channel is None:
                point = JoinPoint(endpoint, bus, cls)
                found = self._at(point, *_HANDLING)
                plans += [*endpoint.plans, *(each.plan for each in found)]
        return plans

    def _at(self, point: JoinPoint, *kinds: When) -> list[Interceptor]:
        if not point.endpoint.is_declared:
            return []
        return [
            each
            for each in self.interceptors
            if each.interception.when in kinds and each.is_at(point)
        ]

    def _staged(
        self,
        point: JoinPoint,
        interceptors: Sequence[Interceptor],
        mode: Mode,
        *,
        using: str | None = None,
        otherwise: str | None = None,
        retry: InstantRetry | None = None,
        key: BusKey | None = None,
    ) -> Run:
        """
        Combine the stages: once, or once per database if objects or tenants decide.

        Args:
            point: the join point.
            interceptors: the interceptors, outermost first.
            mode: the demands of this way of handling.
            using: the alias of the database, if it is decided.
            otherwise: the alias for messages without a tenant.
            retry: the bus's policy.
            key: the bus's key for duplicates.

        """
        endpoint = point.endpoint
        zones = _zones(interceptors)

        def compile_for(alias: str) -> Run:
            context = StageContext(point, alias, mode, retry, key, *zones)
            run = _call_of(point)
            for stage in reversed(STAGES):
                run = stage(run, context)
            return run

        alias = using or endpoint.policies.using
        if alias is None and endpoint.subject is not None:
            return on_alias(compile_for, partial(_alias_of, endpoint, endpoint.subject))
        if alias is None and have_databases():
            return on_alias(compile_for, partial(_alias_of_tenant, otherwise))
        return compile_for(alias or DEFAULT_DB_ALIAS)


def for_tenants(run: Run, endpoint: Endpoint) -> Run:
    """
    Return `run` with the tenant of its message active; itself without ``TENANCY``.

    Raises:
        ImproperlyConfigured: the setting cannot be used.

    """
    policy = tenancy()
    return run if policy is None else policy.around(run, endpoint)


# ---------------------------------------------------------------------------- stages


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """The demands on the stages of one way of handling a message."""

    is_atomic: bool
    """Whether the handler runs in a transaction."""
    opens_transaction: bool = True
    """Whether that is opened here; the caller's savepoint may replace it."""
    makes_dependencies: bool = True
    """Whether ``Depends`` results are closed here; the publisher may do it."""
    answers: bool = False
    """Whether the sender gets the result, so that a repeated command gets it too."""


@dataclasses.dataclass(frozen=True, slots=True)
class StageContext:
    """The context in which stages are combined: the endpoint and its settings."""

    point: JoinPoint
    alias: str
    """The database of the transaction and of the objects."""
    mode: Mode
    retry: InstantRetry | None
    key: BusKey | None
    outer: Sequence[Interceptor]
    """The interceptors outside the retry."""
    middle: Sequence[Interceptor]
    """The interceptors between the retry and the transaction."""
    inner: Sequence[Interceptor]
    """The interceptors inside the transaction."""

    @property
    def endpoint(self) -> Endpoint:
        """The handler."""
        return self.point.endpoint

    @property
    def attempted(self) -> list[ArgumentPlan]:
        """The plans of everything that a retry would call again."""
        return [*self.endpoint.plans, *_plans_of((*self.middle, *self.inner))]


Stage = Callable[[Run, StageContext], Run]
"""Returns a run with a stage around it, or the run itself without need for it."""


def with_dependencies_of_message(run: Run, context: StageContext) -> Run:
    """Close the message's ``Depends`` results after it."""
    plans = _plans_of(context.outer)
    if context.retry is None:
        plans += context.attempted
    is_ours = context.mode.makes_dependencies and _use_dependencies(plans)
    return with_dependencies(run) if is_ours else run


def with_outer_interceptors(run: Run, context: StageContext) -> Run:
    """Call the interceptors that see a message once, not once for each attempt."""
    return intercepted(run, context.outer, context.point)


def with_retry(run: Run, context: StageContext) -> Run:
    """Retry failures, as the bus is configured."""
    if context.retry is None:
        return run
    return retried(run, context.retry, context.alias, context.endpoint.name)


def with_dependencies_of_attempt(run: Run, context: StageContext) -> Run:
    """Close the attempt's ``Depends`` results after it."""
    is_needed = context.retry is not None and _use_dependencies(context.attempted)
    return with_dependencies(run) if is_needed else run


def with_middle_interceptors(run: Run, context: StageContext) -> Run:
    """Call the interceptors outside the transaction."""
    # Outside the transaction there is no object yet, only a service.
    has_object = context.endpoint.subject is not None
    target = nobody if has_object else target_of(context.point)
    return intercepted(run, context.middle, context.point, target)


def with_transaction(run: Run, context: StageContext) -> Run:
    """Open the transaction, or run an object's event handler in the sender's."""
    endpoint = context.endpoint
    if context.mode.is_atomic:
        opens = context.mode.opens_transaction
        return in_transaction(run, context.alias, endpoint.name, opens=opens)
    if (
        endpoint.subject is not None
        and endpoint.kind is Kind.EVENT
        and endpoint.policies.atomic is not False
    ):
        return inside_transaction(run, context.alias, endpoint.name)
    return run


def with_transaction_observers(run: Run, context: StageContext) -> Run:
    """Call the observers that record, in the transaction, what happens in it."""
    return observed_in_transaction(run, context.point, context.alias)


def with_key_of_bus(run: Run, context: StageContext) -> Run:
    """Handle messages with the same key of the bus once."""
    if context.key is None:
        return run
    answers = context.mode.answers
    return once_on_bus(run, context.point, context.alias, context.key, answers=answers)


def with_key_of_endpoint(run: Run, context: StageContext) -> Run:
    """Handle messages with the same key of the handler once."""
    return once(run, context.point, context.alias, answers=context.mode.answers)


def with_output(run: Run, context: StageContext) -> Run:
    """Send the result to the command in ``output=``."""
    return _sent_on(run, context.point)


def with_inner_interceptors(run: Run, context: StageContext) -> Run:
    """Call the interceptors inside the transaction; find and save the object there."""
    point, subject = context.point, context.endpoint.subject
    stage = None
    if subject is not None:
        stage = partial(subject.surround, point=point, alias=context.alias)
    return intercepted(run, context.inner, point, target_of(point), stage)


STAGES: Final[tuple[Stage, ...]] = (
    with_dependencies_of_message,
    with_outer_interceptors,
    with_retry,
    with_dependencies_of_attempt,
    with_middle_interceptors,
    with_transaction,
    with_transaction_observers,
    with_key_of_bus,
    with_key_of_endpoint,
    with_output,
    with_inner_interceptors,
)
"""
The stages around a handler, outermost first.

Outside them a message becomes the current one, and observers see it begin and end.
Outermost, its tenant becomes active, if the project has tenants.
"""


_HANDLING = (When.BEFORE, When.AROUND, When.AFTER)


def _zones(
    interceptors: Sequence[Interceptor],
) -> tuple[list[Interceptor], list[Interceptor], list[Interceptor]]:
    """Divide interceptors by their place relative to the retry and the transaction."""
    outer: list[Interceptor] = []
    middle: list[Interceptor] = []
    inner: list[Interceptor] = []
    for each in interceptors:
        if each.interception.precedence < RETRY:
            outer.append(each)
        elif each.interception.precedence < TRANSACTION:
            middle.append(each)
        else:
            inner.append(each)
    return outer, middle, inner


def _sent_once(
    run: Run, point: JoinPoint, key: BusKey, retry: InstantRetry | None, alias: str
) -> Run:
    """Return `run`, which sends, limited to the first message of each bus key."""
    name = point.endpoint.name
    run = once_on_bus(run, point, alias, key, answers=False)
    run = in_transaction(run, alias, name)
    return run if retry is None else retried(run, retry, alias, name)


def _unremembered(endpoint: Endpoint) -> str:
    return (
        f"{endpoint.place} has atomic=False, and the bus has idempotency_key=: a "
        "failed command would still be recorded as handled. Send to it through "
        "another bus, or remove atomic=False."
    )


def _sent_on(run: Run, point: JoinPoint) -> Run:
    """
    Return `run`, with its result sent to the commands in ``output=``.

    The result is that of a dispatch: the identifier of a new object. A handler may
    return what to send instead: a factory beside its object, any handler as `Send`.
    """
    endpoint, registry = point.endpoint, point.bus.registry
    outputs = endpoint.policies.outputs
    if not outputs:
        return run
    has_object = endpoint.subject is not None  # which divides what is returned
    mentions_send = says_send(endpoint.plan.returns)

    def run_then_send(message: Message) -> Any:
        said: list[Any] = []
        if has_object:
            message.handling.output = said
        result = run(message)
        if type(result) in MAY_SEND and not has_object:
            split = split_sends(result, says_send=mentions_send)
            if split is not None:
                result, said = split
        for sent in said or (result,):
            if sent is not None:
                send_on(registry.command_bus, sent, *outputs)
        return result

    return run_then_send


def _alias_of(endpoint: Endpoint, subject: Subject, message: Message) -> str:
    """Return the database of a message for an object."""
    if message.using is not None:
        return message.using
    if endpoint.kind is Kind.QUERY and scope_of(message) is None:
        return subject.read_alias()
    return subject.write_alias()


def _alias_of_tenant(otherwise: str | None, _message: Message) -> str:
    """Return the database of the active tenant; of the shared part, another one."""
    state = active.get()
    if state is not None and state.using is not None:
        return state.using
    return otherwise or DEFAULT_DB_ALIAS


def _call_of(point: JoinPoint) -> Run:
    """Return the handler as a function of the message alone."""
    endpoint = point.endpoint
    make = _call_of_one(endpoint)
    if endpoint.action is None:
        return make
    act = _call_of_one(endpoint.action)
    making, acting = endpoint.name, endpoint.action.name

    def call(message: Message) -> Any:
        handling = handling_of(message)
        is_made = handling.subject is None
        if handling.ran is not None:
            handling.ran.name = making if is_made else acting
        return make(message) if is_made else act(message)

    return call


def _call_of_one(endpoint: Endpoint) -> Run:
    if endpoint.method is not None:
        function = method_callable(endpoint.function, endpoint.method)
    else:
        function = sync_callable(endpoint.function)
    if endpoint.plan.is_payload_only:
        return lambda message: function(message._payload)
    plan = endpoint.plan
    if endpoint.kind is Kind.QUERY:
        plan = plan.reading
    elif endpoint.kind is Kind.EVENT and endpoint.channel is not None:
        plan = plan.unlocked  # it may take long, and must not block commands
    return plan.bind(function)


def _plans_of(interceptors: Iterable[Interceptor]) -> list[ArgumentPlan]:
    return [each.plan for each in interceptors]


def _use_dependencies(plans: Iterable[ArgumentPlan]) -> bool:
    return any(plan.uses_dependencies for plan in plans)


def _points(
    endpoint: Endpoint, buses: Sequence[Any], known: MessageTypes | None = None
) -> Iterator[JoinPoint]:
    """Yield the join points of interceptors, by the bus and the payload's class."""
    payload = endpoint.plan.payload
    types: list[type | None] = [None]
    if payload is not None:
        named = [cls for cls in payload.members if is_plain_class(cls)]
        taken = _taken_by(payload, named, known) if known is not None else ()
        types = [*named, *taken] or [None]
    for bus in buses:
        for cls in types:
            point = JoinPoint(endpoint, bus, cls)
            yield point
            if endpoint.channel is not None:
                yield dataclasses.replace(point, is_consumed=True)


def _taken_by(
    payload: PayloadType, named: Sequence[type], known: MessageTypes
) -> Iterable[type]:
    """Return the known classes that a handler accepts without conversion."""
    if payload.takes_anything:
        return known
    return dict.fromkeys(cls for each in named for cls in known.subclasses_of(each))
