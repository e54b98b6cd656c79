"""Interceptors: compiled once, then wrapped around the runs that they apply to."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django_cqrs.annotations import (
    EMPTY,
    bare_type,
    is_plain_class,
    name_of_type,
    place_of,
    union_members,
)
from django_cqrs.conversion.adapters import is_subclass
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.exceptions import (
    InvalidHandler,
    MessageConversionError,
    MessageStopped,
)
from django_cqrs.interception import (
    STOP,
    Interception,
    Marker,
    Proceed,
    When,
    interception_of,
    marker_at,
)
from django_cqrs.messages import Message, current, drop, result_type_of
from django_cqrs.parameters.plan import ArgumentPlan, Constant, Given, Resolver
from django_cqrs.parameters.planner import TAKES_PAYLOAD, plan_of
from django_cqrs.parameters.services import Services
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import JoinPoint, Run, subject_of
from django_cqrs.sync import sync_callable

_set_current = current.set
_reset_current = current.reset


@dataclasses.dataclass(frozen=True, slots=True)
class MarkerParameter:
    """A parameter for a marker, with its value if there is none."""

    marker: type[Marker]
    otherwise: Any

    def at(self, point: JoinPoint) -> Any:
        """Return the parameter's value, ``Parameter.empty`` if it has none."""
        for view in point.views:
            found = marker_at(view, self.marker)
            if found is not None:
                return found
        return self.otherwise


@dataclasses.dataclass(frozen=True, slots=True)
class Interceptor:
    """A declared interceptor with its compiled parameters."""

    interception: Interception
    function: Callable[..., Any]
    plan: ArgumentPlan
    markers: Mapping[str, MarkerParameter]
    """The parameters for markers, by name."""
    problems: tuple[Problem, ...]

    @property
    def name(self) -> str:
        """The dotted path of the function."""
        return place_of(self.function)

    def is_at(self, point: JoinPoint) -> bool:
        """Return whether it applies to a join point."""
        return any(map(self.interception.pointcut.matches, point.views))

    def problem_at(self, point: JoinPoint) -> Problem | None:
        """Return the problem of using it where its pointcut applies, if any."""
        if self.problems:
            return self.problems[0]
        place = point.endpoint.place
        for name, wanted in self.markers.items():
            if wanted.at(point) is EMPTY:
                return _broken(
                    self.function,
                    f"cannot stand at {place}: its parameter {name!r} takes the "
                    f"marker {name_of_type(wanted.marker)}, which the endpoint does "
                    "not have",
                    "Narrow its pointcut with pointcut.marked(), or allow None.",
                )
        payload, cls = self.plan.payload, point.payload_type
        if payload is not None and cls is not None and not _may_take(payload, cls):
            return _broken(
                self.function,
                f"cannot stand at {place}: it takes "
                f"{name_of_type(bare_type(payload.annotation))}, but the message "
                f"there is {name_of_type(cls)}",
                "Narrow its pointcut with pointcut.message(), or annotate its "
                "payload with object.",
            )
        return None

    def bound_at(self, point: JoinPoint) -> ArgumentPlan:
        """Return its plan with the join point's markers, and the payload converted."""
        sources: dict[str | None, Constant | Resolver] = {
            name: Constant(wanted.at(point)) for name, wanted in self.markers.items()
        }
        payload, cls = self.plan.payload, point.payload_type
        if payload is not None and cls is not None and not takes_class(payload, cls):
            convert = payload.from_python
            sources[self.plan.payload_name] = lambda message: convert(message._payload)
        arguments = tuple(
            dataclasses.replace(each, source=sources.get(each.name, each.source))
            for each in self.plan.arguments
        )
        return dataclasses.replace(self.plan, arguments=arguments)


def interceptors_of(functions: Iterable[Any], services: Services) -> list[Interceptor]:
    """Return declared interceptors, compiled, outermost first."""
    found = []
    for function in dict.fromkeys(functions):
        interception = interception_of(function)
        if interception is not None:
            found.append(_interceptor(function, interception, services))
    return sorted(found, key=lambda each: each.interception.precedence)


def _interceptor(
    function: Any, interception: Interception, services: Services
) -> Interceptor:
    when = interception.when
    markers: dict[str, MarkerParameter] = {}

    def given(parameter: inspect.Parameter) -> Given | None:
        if parameter.annotation is Proceed:
            return Given("proceed")
        if parameter.name == "target" and when is When.AROUND:
            return Given("target")
        if parameter.name == "result" and when is When.AFTER:
            return Given("result")
        wanted = _marker_parameter(parameter)
        if wanted is None:
            return None
        markers[parameter.name] = wanted
        return Given("marker")

    plan = plan_of(function, services, payload=TAKES_PAYLOAD, given=given)
    problems = list(plan.problems)
    fault = _fault(function, when, takes_proceed="proceed" in plan.given)
    if fault is not None and not problems:
        problems.append(
            _broken(
                function,
                f"cannot be called: {fault}",
                "See the reference of interceptors for what each kind takes.",
            )
        )
    return Interceptor(interception, function, plan, markers, tuple(problems))


def _fault(function: Any, when: When, *, takes_proceed: bool) -> str | None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "it is a generator, so calling it would not execute its body"
    if when is not When.AROUND:
        return f"a Proceed is for @around, and it is @{when}" if takes_proceed else None
    if inspect.iscoroutinefunction(function):
        return "it is async, but it wraps a synchronous handler"
    if not takes_proceed:
        return "it has no parameter annotated with Proceed, so it cannot proceed"
    return None


def _broken(function: Any, fault: str, hint: str) -> Problem:
    text = f"The interceptor {place_of(function)} {fault}."
    return Problem(Rule.BROKEN_INTERCEPTOR, text, hint, function)


def _marker_parameter(parameter: inspect.Parameter) -> MarkerParameter | None:
    members = union_members(parameter.annotation)
    for member in members:
        if isinstance(member, type) and issubclass(member, Marker):
            otherwise = parameter.default
            if otherwise is EMPTY and type(None) in members:
                otherwise = None
            return MarkerParameter(member, otherwise)
    return None


def takes_class(wanted: PayloadType, cls: type) -> bool:
    """Return whether objects of a class are accepted without conversion."""
    return wanted.takes_anything or any(
        is_plain_class(member) and is_subclass(cls, member) for member in wanted.members
    )


def _may_take(wanted: PayloadType, cls: type) -> bool:
    """Return whether objects of a class are accepted, or can be converted."""
    return takes_class(wanted, cls) or not all(
        is_plain_class(member) and not issubclass(member, dict)
        for member in wanted.members
    )


def nobody(_message: Message) -> None:
    """Return the target of handlers without an object: None."""


def target_of(point: JoinPoint) -> Run:
    """Return a function that finds the object whose method the handler is."""
    if point.endpoint.subject is not None:
        return subject_of
    owner, arguments = point.endpoint.owner, point.endpoint.plan.arguments
    source = arguments[0].source if owner and arguments else None
    return source if callable(source) and arguments[0].name == "self" else nobody


def intercepted(
    run: Run,
    interceptors: Sequence[Interceptor],
    point: JoinPoint,
    target: Run = nobody,
    stage: Callable[[Run], Run] | None = None,
) -> Run:
    """
    Return `run` with interceptors around it: before, around, `run`, after.

    Args:
        run: the inner run.
        interceptors: the interceptors, outermost first.
        point: the join point.
        target: finds the object whose method the handler is.
        stage: a stage between ``before`` and ``around``, and between ``around`` and
            ``after``.

    Raises:
        InvalidHandler: an interceptor is broken, or cannot apply here.

    """
    kinds: dict[When, list[Interceptor]] = {when: [] for when in When}
    for each in interceptors:
        problem = each.problem_at(point)
        if problem is not None:
            raise InvalidHandler(str(problem))
        kinds[each.interception.when].append(each)
    for each in reversed(kinds[When.AROUND]):
        run = _around(run, each, point, target)
    if stage is not None:
        run = stage(run)
    for each in reversed(kinds[When.AFTER]):
        run = _then(run, each, point)
    for each in reversed([*kinds[When.PRE_SEND], *kinds[When.BEFORE]]):
        run = _first(run, each, point)
    return run


def _first(run: Run, interceptor: Interceptor, point: JoinPoint) -> Run:
    plan = interceptor.bound_at(point)
    call = plan.bind(sync_callable(interceptor.function))

    def run_first(message: Message) -> Any:
        outcome = call(message)
        if outcome is None:
            return run(message)
        if outcome is STOP:
            drop(message)
            return _stopped(interceptor, point)
        replaced = _replaced(message, outcome, interceptor, point)
        token = _set_current(replaced)
        try:
            return run(replaced)
        finally:
            _reset_current(token)

    return run_first


def _around(run: Run, interceptor: Interceptor, point: JoinPoint, target: Run) -> Run:
    plan = interceptor.bound_at(point)
    call = plan.bind_given(sync_callable(interceptor.function))
    find = target if "target" in plan.given else nobody

    def run_around(message: Message) -> Any:
        has_proceeded = False

        def proceed() -> Any:
            nonlocal has_proceeded
            has_proceeded = True
            return run(message)

        outcome = call(message, {"proceed": proceed, "target": find(message)})
        if outcome is not STOP:
            return outcome
        if not has_proceeded:
            drop(message)
        return _stopped(interceptor, point)

    return run_around


def _then(run: Run, interceptor: Interceptor, point: JoinPoint) -> Run:
    plan = interceptor.bound_at(point)
    call = plan.bind_given(sync_callable(interceptor.function))

    def run_then(message: Message) -> Any:
        result = run(message)
        outcome = call(message, {"result": result})
        return result if outcome is None else outcome

    return run_then


def _replaced(
    message: Message, outcome: Any, interceptor: Interceptor, point: JoinPoint
) -> Message:
    """Return the message to continue with, its payload in the handler's type."""
    wanted = point.endpoint.plan.payload
    replaced: Message = outcome
    if not isinstance(outcome, Message):
        replaced = message.replace(payload=outcome)
    elif outcome.message_id != message.message_id:  # constructed, not from replace()
        replaced = message.replace(payload=outcome.payload)
    if wanted is None or replaced.payload is message.payload:
        return replaced
    try:
        payload = wanted.from_python(replaced.payload)
    except MessageConversionError as error:
        error.add_note(f"The payload was returned by {interceptor.name}.")
        raise
    return (
        replaced if payload is replaced.payload else replaced.replace(payload=payload)
    )


def _stopped(interceptor: Interceptor, point: JoinPoint) -> None:
    """Stop a message; raise if its sender was promised a result."""
    cls = point.payload_type
    promised = Any if cls is None else result_type_of(cls)
    if cls is not None and promised not in (Any, None, type(None)):
        msg = (
            f"{interceptor.name} stopped {name_of_type(cls)}, whose sender was "
            "promised a result. Raise an exception there, or promise no result: "
            "Command[None]."
        )
        raise MessageStopped(msg)
