"""How a handler's parameters are filled: its signature, read once, as a plan."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import sys
import threading
import types
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured

from django_cqrs import conf
from django_cqrs.conversion import (
    PayloadType,
    adapter_of,
    bare_type,
    field_names,
    is_plain_class,
    is_protocol,
    is_value_type,
    name_of_type,
    union_members,
)
from django_cqrs.declarations import LOCAL, NAMESPACE, is_service
from django_cqrs.exceptions import (
    FieldError,
    MessageConversionError,
    MissingHeader,
    ParameterError,
)
from django_cqrs.messages import (
    OWN_HEADERS,
    RESERVED_PREFIX,
    Headers,
    Message,
    aggregate_headers_of,
    message_name_of,
)
from django_cqrs.problems import Problem, Rule

Resolver = Callable[[Message], Any]

_EMPTY = inspect.Parameter.empty

READING = "reading"
"""The attribute by which a resolver that locks names its twin for queries."""
UNLOCKED = "unlocked"
"""The same, of the twin for handlers that write without a lock on what they read."""

Names = Mapping[str, Any]
_NOTHING: Names = {}
_UNSET: Any = object()
_LONGEST_PASS = 1.0
"""Seconds; a loop that is ending may never come to what it was given."""


# -------------------------------------------------------------------------- marks


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """``Annotated[int, Header("executor_id")]``: that header, converted."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Depends:
    """
    ``Annotated[Gateway, Depends(open_gateway)]``: what the factory returns.

    It is called once per message, its own parameters are filled like a handler's,
    and a generator is continued after the message, as ``contextlib`` does.
    """

    factory: Callable[..., Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """``Annotated[Mailer, Service()]``: an instance from the service resolver."""


# ------------------------------------------------------------------------- fillers


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same for every message."""

    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """What the caller itself gives, by a name: an interceptor's ``proceed``, say."""

    name: str


Filler = Callable[[Any, "Services"], "Constant | Resolver | None"]
"""From a bare annotation to what fills it, or None: not mine."""

_fillers: list[Filler] = []


def register_filler(filler: Filler) -> None:
    """Let a higher floor fill the parameters that its own types annotate."""
    _fillers.append(filler)


# -------------------------------------------------------------------- dependencies


class Dependencies:
    """What ``Depends`` made for one message, to be closed after it."""

    __slots__ = ("made", "stack")

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}
        self.stack: ExitStack = ExitStack()


def with_dependencies(run: Callable[[Message], Any]) -> Callable[[Message], Any]:
    """Return `run` followed by the closing of what was made for the message."""

    def run_then_close(message: Message) -> Any:
        around = getattr(message, "_dependencies", None)
        message._dependencies = dependencies = Dependencies()
        try:
            result = run(message)
        except BaseException as error:
            # A generator sees the failure but cannot make it go away.
            dependencies.stack.__exit__(type(error), error, error.__traceback__)
            raise
        finally:
            message._dependencies = around
        dependencies.stack.close()
        return result

    return run_then_close


class Services:
    """The objects that handlers are given: one store for each registry."""

    def __init__(self, owner: Any = None) -> None:
        """Serve the registry `owner`, whose buses the fillers give."""
        self.owner = owner
        self.overrides: dict[Any, Callable[..., Any]] = {}
        self._instances: dict[type, Any] = {}
        self._hidden: list[dict[type, Any]] = []
        self._plans: dict[type, ArgumentPlan] = {}
        self._planning: list[Any] = []
        self._planning_lock = threading.RLock()
        self._building: list[type] = []
        self._lock = threading.RLock()

    def is_unbuildable(self, wanted: Any) -> bool:
        """Tell whether nothing gives a class but what a test puts in its place."""
        return (
            isinstance(wanted, type)
            and (is_protocol(wanted) or inspect.isabstract(wanted))
            and conf.resolve("SERVICE_RESOLVER") is None
        )

    @contextmanager
    def override(self, wanted: Any, replacement: Callable[..., Any]) -> Iterator[None]:
        """Have `replacement` called instead of a ``Depends`` factory or a class."""
        before = dict(self.overrides)
        self.overrides[wanted] = replacement
        self._plans.clear()
        # A service built now may hold a replacement, one built before does not.
        self._hidden.append(self._instances)
        self._instances = {}
        try:
            yield
        finally:
            self._instances = self._hidden.pop()
            self.overrides.clear()
            self.overrides.update(before)
            self._plans.clear()

    def reset(self) -> None:
        """Forget every instance."""
        with self._lock:
            for instances in (self._instances, *self._hidden):
                instances.clear()
            self._plans.clear()

    def plan_of_init(self, cls: type, names: Names = _NOTHING) -> ArgumentPlan:
        """Return the plan by which a service is built, once for all messages."""
        plan = self._plans.get(cls)
        if plan is None:
            plan = self.plan_of_need(cls, payload=None, once=True, names=names)
            self._plans[cls] = plan
        return plan

    def plan_of_need(
        self, need: Any, *, payload: Any, once: bool, names: Names
    ) -> ArgumentPlan:
        """
        Return the plan of a factory or of a class that something needs.

        Args:
            need: what is called.
            payload: as for :func:`plan_of`.
            once: whether it is called once for all messages.
            names: as for :func:`plan_of`.

        """
        function, owner = need, None
        if isinstance(need, type):
            function, owner = need.__init__, need  # type: ignore[misc]
            if function is object.__init__:
                return ArgumentPlan()
        with self._planning_lock:
            if need in self._planning:
                circle = self._planning[self._planning.index(need) :]
                return ArgumentPlan(problems=(_circle(*circle, need),))
            self._planning.append(need)
            try:
                return plan_of(
                    function,
                    self,
                    owner=owner,
                    payload=payload,
                    once=once,
                    names=names,
                )
            finally:
                self._planning.pop()

    def resolver_of(self, cls: type) -> Resolver:
        """Return what gives a message an instance of `cls`."""
        implementation = conf.implementation_of(cls)
        if implementation is not cls:
            return self._resolver_of_interface(cls, implementation)
        resolve = conf.resolve("SERVICE_RESOLVER")

        def get(_message: Message) -> Any:
            if cls in self.overrides:
                return self.overrides[cls]()
            try:
                return self._instances[cls]
            except KeyError:
                return self._build(cls)

        def get_resolved(message: Message) -> Any:
            if cls in self.overrides:
                return self.overrides[cls]()
            made, key = message._dependencies.made, (Service, cls)
            if key not in made:
                made[key] = resolve(cls)
            return made[key]

        return get if resolve is None else get_resolved

    def _resolver_of_interface(self, cls: type, implementation: type) -> Resolver:
        give = self.resolver_of(implementation)

        def get_implementation(message: Message) -> Any:
            if cls in self.overrides:
                return self.overrides[cls]()
            return give(message)

        return get_implementation

    def _build(self, cls: type) -> Any:
        with self._lock:
            if cls in self._instances:
                return self._instances[cls]
            if cls in self._building:
                circle = " -> ".join(c.__qualname__ for c in [*self._building, cls])
                msg = f"These services need each other and cannot be built: {circle}."
                raise ParameterError(msg)
            self._building.append(cls)
            try:
                self._instances[cls] = self._construct(cls)
            finally:
                self._building.pop()
            return self._instances[cls]

    def _construct(self, cls: type) -> Any:
        plan = self.plan_of_init(cls)
        if plan.problems:
            raise ParameterError(str(plan.problems[0]))
        return with_dependencies(plan.bind(cls))(Message())

    def dependency(self, factory: Callable[..., Any], plan: ArgumentPlan) -> Resolver:
        """Return what gives a message the product of a ``Depends`` factory."""
        call = plan.bind(_callable_of(factory))
        closes = inspect.isgeneratorfunction(factory)

        def get(message: Message) -> Any:
            dependencies: Dependencies = message._dependencies
            if factory in dependencies.made:
                return dependencies.made[factory]
            if factory in self.overrides:
                made = self.overrides[factory]()
            elif closes:
                made = dependencies.stack.enter_context(call(message))
            else:
                made = call(message)
            dependencies.made[factory] = made
            return made

        return get


def _circle(*needs: Any) -> Problem:
    return Problem(
        Rule.UNFILLABLE_PARAMETER,
        f"These need each other, so none can be made first: "
        f"{' -> '.join(place_of(each) for each in needs)}.",
        "Have one of them get the other when it is called, not when it is made.",
        needs[0],
    )


def _callable_of(factory: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(factory):
        return contextmanager(factory)
    return sync_callable(factory)


def sync_callable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that can be called in the synchronous frame of a bus."""
    call_of = type(function).__call__
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call_of):

        def call(*args: Any, **kwargs: Any) -> Any:
            return _wait_for(function, *args, **kwargs)

        return call
    if inspect.iscoroutinefunction(inspect.unwrap(function)):

        def call_wrapped(*args: Any, **kwargs: Any) -> Any:
            # A plain decorator around a coroutine function may hand on its coroutine.
            result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                return _wait_for(_finish, result)
            return result

        return call_wrapped
    return function


def method_callable(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """
    Return what calls a method as Python does: the object's own, overridden or not.

    A stand-in for a service that lacks the method is given to that of the class.

    Args:
        function: the method as its class has it.
        name: of the attribute.

    """
    run = sync_callable(function)

    def call_method(receiver: Any, *args: Any, **kwargs: Any) -> Any:
        __traceback_hide__ = True
        method = getattr(receiver, name, function)
        if getattr(method, "__func__", method) is function:
            return run(receiver, *args, **kwargs)
        return sync_callable(method)(*args, **kwargs)

    return call_method


_METHOD_CALL = method_callable(print, "").__code__


def method_called_in(frame: types.FrameType) -> tuple[type, str] | None:
    """Return which method of which class a frame calls, None for other frames."""
    if frame.f_code is not _METHOD_CALL:
        return None
    return type(frame.f_locals["receiver"]), frame.f_locals["name"]


def _wait_for(
    function: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
) -> Any:
    # In a context of its own: a request that is cancelled meanwhile takes over what
    # its thread has in the context, and would send its last signals to the executor
    # of this wait. What the function sets is taken over when the wait has ended.
    context = copy_context()
    loops: list[asyncio.AbstractEventLoop] = []

    async def noting_its_loop() -> Any:
        loops.append(asyncio.get_running_loop())
        return await function(*args, **kwargs)

    try:
        # Made anew for each call: it remembers the event loop around it.
        return context.run(async_to_sync(noting_its_loop))
    except asyncio.CancelledError:
        if loops:
            _let_pass(loops[0])
        raise
    finally:
        for variable, value in context.items():
            if variable.get(_UNSET) is not value:
                variable.set(value)


def _let_pass(loop: asyncio.AbstractEventLoop) -> None:
    # Who cancelled is told by the loop and looks whether this thread is done: only if
    # it is not will they take its error, which asyncio would log otherwise.
    passed = threading.Event()
    with suppress(RuntimeError):  # closed: a loop of this wait alone
        loop.call_soon_threadsafe(passed.set)
        passed.wait(_LONGEST_PASS)


async def _finish(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


# ---------------------------------------------------------------------------- plan


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """One parameter and what fills it."""

    name: str
    positional: bool
    source: Constant | Given | Resolver


@dataclasses.dataclass(frozen=True, slots=True)
class ArgumentPlan:
    """
    How one function is called with a message: compiled once, at start-up.

    `payload` is what the payload parameter takes and `payload_name` its name, None
    where there is no such parameter; `problems` what stands in the way of any call.
    """

    arguments: tuple[Argument, ...] = ()
    payload: PayloadType | None = None
    payload_name: str | None = None
    payload_default: Any = _EMPTY
    uses_dependencies: bool = False
    problems: tuple[Problem, ...] = ()
    returns: Any = _EMPTY

    @property
    def is_payload_only(self) -> bool:
        """Tell whether the call is simply ``function(payload)``."""
        return (
            self.payload is not None
            and len(self.arguments) == 1
            and self.arguments[0].positional
            and self.arguments[0].source is payload_of
        )

    @property
    def reading(self) -> ArgumentPlan:
        """The plan of who only reads: what would lock, does not."""
        return self._with_twins(READING)

    @property
    def unlocked(self) -> ArgumentPlan:
        """The plan of who may write, where what would lock does not."""
        return self._with_twins(UNLOCKED)

    def _with_twins(self, name: str) -> ArgumentPlan:
        arguments = tuple(
            dataclasses.replace(each, source=getattr(each.source, name, each.source))
            for each in self.arguments
        )
        return dataclasses.replace(self, arguments=arguments)

    def bind(self, function: Callable[..., Any]) -> Callable[[Message], Any]:
        """Return the function as a function of the message alone."""
        constants = {
            argument.name: argument.source.value
            for argument in self.arguments
            if isinstance(argument.source, Constant) and not argument.positional
        }
        positional = [_resolver(a.source) for a in self.arguments if a.positional]
        named = [
            (argument.name, _resolver(argument.source))
            for argument in self.arguments
            if not argument.positional and not isinstance(argument.source, Constant)
        ]
        if named:

            def call(message: Message) -> Any:
                given = {name: resolve(message) for name, resolve in named}
                args = [resolve(message) for resolve in positional]
                return function(*args, **constants, **given)

        elif len(positional) == 1 and not constants:
            (only,) = positional

            def call(message: Message) -> Any:
                return function(only(message))

        elif len(positional) == 1:
            (only,) = positional

            def call(message: Message) -> Any:
                return function(only(message), **constants)

        else:

            def call(message: Message) -> Any:
                return function(
                    *[resolve(message) for resolve in positional], **constants
                )

        return call

    @property
    def given(self) -> frozenset[str]:
        """The names of what the caller has to give beside the message."""
        sources = (argument.source for argument in self.arguments)
        return frozenset(each.name for each in sources if isinstance(each, Given))

    def bind_given(
        self, function: Callable[..., Any]
    ) -> Callable[[Message, Mapping[str, Any]], Any]:
        """Return the function as one of the message and of what the caller gives."""
        positional = [
            _given_resolver(each.source) for each in self.arguments if each.positional
        ]
        named = [
            (each.name, _given_resolver(each.source))
            for each in self.arguments
            if not each.positional
        ]

        def call(message: Message, given: Mapping[str, Any]) -> Any:
            return function(
                *[resolve(message, given) for resolve in positional],
                **{name: resolve(message, given) for name, resolve in named},
            )

        return call


def payload_of(message: Message) -> Any:
    """Return the payload of a message."""
    return message._payload


def _resolver(source: Constant | Given | Resolver) -> Resolver:
    if isinstance(source, Constant):
        value = source.value
        return lambda _message: value
    assert not isinstance(source, Given)  # noqa: S101 - bind_given() takes those
    return source


def _given_resolver(
    source: Constant | Given | Resolver,
) -> Callable[[Message, Mapping[str, Any]], Any]:
    if isinstance(source, Given):
        name = source.name
        return lambda _message, given: given[name]
    resolve = _resolver(source)
    return lambda message, _given: resolve(message)


class Unfillable(Exception):
    """What a filler raises where the annotation is its own and cannot be filled."""

    def __init__(self, reason: str, rule: Rule = Rule.UNFILLABLE_PARAMETER) -> None:
        """Say why, and which kind of mistake that is."""
        super().__init__(reason)
        self.rule = rule


def plan_of(
    function: Callable[..., Any],
    services: Services,
    *,
    owner: type | None = None,
    has_receiver: bool = True,
    payload: Any = None,
    once: bool = False,
    given: Callable[[inspect.Parameter], Given | None] | None = None,
    names: Names = _NOTHING,
) -> ArgumentPlan:
    """
    Compile the plan of a function.

    Args:
        function: a plain function, or one of a class's.
        services: where services come from.
        owner: the class that holds it.
        has_receiver: whether the first parameter of an owned function is its
            instance or class, which the caller binds.
        payload: what the payload may be: ``TAKES_PAYLOAD`` for a handler, whose
            own parameter decides; an annotation, for what helps a handler of that
            payload; None for what sees no payload, such as an ``__init__``.
        once: whether it is called once for all messages, so that nothing of one
            message may be given to it.
        given: tells which parameters the caller itself gives.
        names: what is visible to who needs it, for the annotations of a function
            or class that is local as well.

    Returns:
        A plan. What is wrong stands in its `problems`; nothing is raised.

    """
    where = place_of(function)
    names = _names_seen_by(function, owner, names)
    try:
        parameters, returns = _read_signature(function, names)
    except Exception as error:  # noqa: BLE001 - an annotation may run any code
        problem = Problem(
            Rule.UNREADABLE_SIGNATURE,
            f"The annotations of {where} cannot be evaluated: {error}.",
            "Import the names they use at the top of the module, "
            "not under TYPE_CHECKING.",
            function,
        )
        return ArgumentPlan(problems=(problem,))
    if owner is not None and has_receiver:
        parameters = parameters[1:]
    if payload is TAKES_PAYLOAD and not parameters and _hides_its_signature(function):
        problem = Problem(
            Rule.HIDDEN_HANDLER,
            f"{where} takes *args, which says nothing of what it is called with: it "
            f"seems to be a wrapper.",
            "Have the decorator that made it use functools.wraps, or decorate the "
            "handler first.",
            function,
        )
        return ArgumentPlan(problems=(problem,), returns=returns)
    for parameter in parameters:
        if not _is_type(parameter.annotation):
            problem = Problem(
                Rule.UNREADABLE_SIGNATURE,
                f"The parameter {parameter.name!r} of {where} is annotated with "
                f"{parameter.annotation!r}, which is an object and no type.",
                "Annotate it with a class, or with what typing offers.",
                function,
            )
            return ArgumentPlan(problems=(problem,))
    planner = _Planner(
        function, services, where, payload, once=once, given=given, names=names
    )
    return planner.plan(parameters, returns)


def _is_type(annotation: Any) -> bool:
    """Tell whether something is a class or one of the forms of ``typing``."""
    return isinstance(annotation, type) or type(annotation).__module__ in _TYPING


_TYPING = frozenset({"types", "typing", "typing_extensions"})


def _hides_its_signature(function: Callable[..., Any]) -> bool:
    kinds = [each.kind for each in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def on_service(plan: ArgumentPlan, owner: type, services: Services) -> ArgumentPlan:
    """Return the plan of a method, called on the service that `owner` is."""
    annotation: Any = typing.Annotated[owner, Service()]
    kind = inspect.Parameter.POSITIONAL_ONLY
    parameter = inspect.Parameter("self", kind, annotation=annotation)
    where = place_of(owner)
    planner = _Planner(
        owner, services, where, None, once=False, given=None, names=_NOTHING
    )
    receiver = planner.plan([parameter], _EMPTY)
    return dataclasses.replace(
        plan,
        arguments=(*receiver.arguments, *plan.arguments),
        uses_dependencies=receiver.uses_dependencies or plan.uses_dependencies,
        problems=(*receiver.problems, *plan.problems),
    )


def on_object(plan: ArgumentPlan, find: Resolver) -> ArgumentPlan:
    """Return the plan of a method, called on what is found for the message."""
    receiver = Argument("self", positional=True, source=find)
    return dataclasses.replace(plan, arguments=(receiver, *plan.arguments))


def _names_seen_by(
    function: Callable[..., Any], owner: type | None, around: Names
) -> Names:
    is_local = LOCAL in getattr(owner or function, "__qualname__", "")
    names = {
        **(around if is_local else _NOTHING),
        **getattr(owner, NAMESPACE, _NOTHING),
        **getattr(function, NAMESPACE, _NOTHING),
    }
    if owner is not None:
        names.setdefault(owner.__name__, owner)
    return names


def signature_of(
    function: Callable[..., Any], owner: type, names: Names = _NOTHING
) -> tuple[list[inspect.Parameter], Any]:
    """
    Return the evaluated parameters of a class's function, and what it returns.

    Args:
        function: as it stands in the class.
        owner: the class.
        names: what is visible where the class is, if it is local.

    Raises:
        Exception: an annotation cannot be evaluated.

    """
    return _read_signature(function, _names_seen_by(function, owner, names))


def _read_signature(
    function: Callable[..., Any], names: Names
) -> tuple[list[inspect.Parameter], Any]:
    hinted: Any = function
    while isinstance(hinted, functools.partial):
        hinted = hinted.func
    if isinstance(hinted, type):
        hinted = hinted.__init__  # type: ignore[misc]
    elif not hasattr(hinted, "__code__") and not hasattr(hinted, "__wrapped__"):
        call = vars(type(hinted)).get("__call__")
        hinted = call if isinstance(call, types.FunctionType) else hinted
    hints = typing.get_type_hints(
        hinted, localns=dict(names) or None, include_extras=True
    )
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=hints.get(parameter.name, _EMPTY))
        for parameter in signature.parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return parameters, hints.get("return", _EMPTY)


TAKES_PAYLOAD = _EMPTY
"""The payload of a handler: whatever its first untaken parameter says."""


class _Planner:
    """Reads one signature."""

    def __init__(
        self,
        function: Callable[..., Any],
        services: Services,
        where: str,
        payload: Any,
        *,
        once: bool,
        given: Callable[[inspect.Parameter], Given | None] | None,
        names: Names,
    ) -> None:
        self.function = function
        self.services = services
        self.where = where
        self.payload = payload
        self.once = once
        self.given = given
        self.names = names
        self.problems: list[Problem] = []
        self.uses_dependencies = False
        self.taker: str | None = None

    def plan(self, parameters: list[inspect.Parameter], returns: Any) -> ArgumentPlan:
        taker = next((p for p in parameters if self._takes_payload(p)), None)
        if taker is not None and self.payload is TAKES_PAYLOAD:
            self.payload = taker.annotation
        self.taker = None if taker is None else taker.name
        arguments: list[Argument] = []
        in_a_row = True
        for parameter in parameters:
            if parameter is taker:
                source: Constant | Given | Resolver | None = _payload_or(
                    parameter.default
                )
            else:
                source = self._source_or_problem(parameter)
            if source is None and parameter.kind is parameter.POSITIONAL_ONLY:
                source = Constant(parameter.default)
            if source is None:  # its default does
                in_a_row = False
                continue
            positional = parameter.kind is parameter.POSITIONAL_ONLY or (
                in_a_row
                and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
                and not isinstance(source, Constant)
            )
            in_a_row = in_a_row and positional
            arguments.append(Argument(parameter.name, positional, source))
        return ArgumentPlan(
            tuple(arguments),
            None if taker is None else PayloadType(taker.annotation),
            None if taker is None else taker.name,
            _EMPTY if taker is None else taker.default,
            self.uses_dependencies,
            tuple(self.problems),
            returns,
        )

    def _takes_payload(self, parameter: inspect.Parameter) -> bool:
        """Tell whether no mark and no filler takes a parameter, and it may be it."""
        annotation = parameter.annotation
        bare = sole_type(annotation)
        if (
            self.payload is None
            or (self.given is not None and self.given(parameter) is not None)
            or any(map(_is_mark, marks_of(annotation)))
            or bare in (Headers, Message)
            or is_service(bare)
            or self._is_filled(annotation)
        ):
            return False
        return self.payload is TAKES_PAYLOAD or _may_be(self.payload, annotation)

    def _is_filled(self, annotation: Any) -> bool:
        try:
            return any(filler(annotation, self.services) for filler in _fillers)
        except Unfillable:  # it says so when it is asked in earnest
            return True

    def _source_or_problem(
        self, parameter: inspect.Parameter
    ) -> Constant | Given | Resolver | None:
        try:
            return self._source_of(parameter)
        except (Unfillable, ImproperlyConfigured) as reason:
            self.problems.append(
                Problem(
                    getattr(reason, "rule", Rule.UNFILLABLE_PARAMETER),
                    f"Nothing can fill the parameter {parameter.name!r} of "
                    f"{self.where}: {str(reason).rstrip('.')}.",
                    "Annotate it as the table of parameters says, "
                    "or give it a default.",
                    self.function,
                )
            )
            return None

    def _source_of(
        self, parameter: inspect.Parameter
    ) -> Constant | Given | Resolver | None:
        given = self.given(parameter) if self.given is not None else None
        if given is not None:
            return given
        annotation = parameter.annotation
        bare = bare_type(annotation)
        marks = list(filter(_is_mark, marks_of(annotation)))
        if any(mark != marks[0] for mark in marks):
            named = " and ".join(map(_shown, marks))
            msg = f"each of {named} would fill it; leave one"
            raise Unfillable(msg)
        for mark in marks:
            if isinstance(mark, Header):
                self._refuse_once(bare)
                return self._header(mark.name, bare, parameter)
            if isinstance(mark, Depends):
                return self._dependency(mark.factory)
            if isinstance(mark, Service) or mark is Service:
                filled = self._filled(bare)
                return self._service(sole_type(bare)) if filled is None else filled
            if mark in (Header, Depends):
                msg = f"{mark.__name__} needs an argument: {mark.__name__}(...)"
                raise Unfillable(msg)
        bare = sole_type(annotation)
        if bare in (Headers, Message):
            self._refuse_once(bare)
            if bare is Message:
                return lambda message: message
            return lambda message: message.headers
        source = self._filled(annotation)
        if source is not None:
            return source
        if is_service(bare):
            return self._service(bare)
        if parameter.default is not _EMPTY:
            return None
        bare = bare_type(annotation)
        if self._is_message(bare):
            msg = (
                f"another parameter is given the message already, and "
                f"{name_of_type(bare)} is what that takes, not a service to be built; "
                f"keep one of the two, or say with Depends(...) what this one gets"
            )
            raise Unfillable(msg)
        if _may_be_a_service(bare):
            return self._implied_service(bare)
        if annotation is _EMPTY:
            reason = "it has no annotation"
        elif hasattr(bare, "_meta"):
            reason = (
                f"{name_of_type(bare)} is a model, whose objects are read, not built"
            )
        else:
            reason = f"{name_of_type(bare)} is neither a mark nor a class to build"
        raise Unfillable(reason)

    def _filled(self, annotation: Any) -> Constant | Resolver | None:
        """Return what a higher floor fills an annotation with, None if it does not."""
        for filler in _fillers:
            source = filler(annotation, self.services)
            if source is not None:
                return source
        return None

    def _header(self, name: str, wanted: Any, parameter: inspect.Parameter) -> Resolver:
        fallback = parameter.default
        if fallback is _EMPTY and type(None) in union_members(wanted):
            fallback = None
        convert = header_converter(name, wanted)
        where = self.where
        if name in OWN_HEADERS:
            return lambda message: convert(getattr(message, name))
        of_aggregate = name.startswith(RESERVED_PREFIX)

        def get(message: Message) -> Any:
            held = aggregate_headers_of(message) if of_aggregate else message._user
            value = held.get(name, _EMPTY)
            if value is not _EMPTY:
                return convert(value)
            if fallback is not _EMPTY:
                return fallback
            msg = (
                f"{where} requires the header {name!r}, which its message does "
                f"not have. Give it with headers={{{name!r}: ...}}, or give the "
                f"parameter {parameter.name!r} a default."
            )
            raise MissingHeader(msg)

        return get

    def _is_message(self, annotation: Any) -> bool:
        """Tell whether a class is one that the payload is of."""
        if self.payload is None or self.payload is _EMPTY:
            return False
        return is_plain_class(annotation) and annotation in union_members(self.payload)

    def _refuse_once(self, annotation: Any) -> None:
        if self.once:
            msg = (
                f"{name_of_type(annotation)} is of one message, and a service is "
                f"built once for all"
            )
            raise Unfillable(msg)

    def _dependency(self, factory: Any) -> Resolver:
        if not callable(factory):
            msg = f"Depends({factory!r}) is given no callable"
            raise Unfillable(msg)
        if inspect.isasyncgenfunction(factory):
            msg = f"{place_of(factory)} is an async generator; make it a plain one"
            raise Unfillable(msg)
        if inspect.isgeneratorfunction(factory):
            self._refuse_once(factory)
        self.uses_dependencies = True
        plan = self.services.plan_of_need(
            factory, payload=self.payload, once=self.once, names=self.names
        )
        self.problems.extend(plan.problems)
        return self.services.dependency(factory, plan)

    def _service(self, cls: Any) -> Resolver:
        if not isinstance(cls, type):
            msg = f"{name_of_type(cls)} is no class"
            raise Unfillable(msg)
        made = conf.implementation_of(cls)
        if made is not cls and conf.implementation_of(made) is not made:
            msg = (
                f"SERVICES gives {name_of_type(made)} for {name_of_type(cls)}, and "
                f"another class for that"
            )
            raise Unfillable(msg)
        if conf.resolve("SERVICE_RESOLVER") is not None:
            self.uses_dependencies = True  # it is asked once per message
        elif not self.services.overrides.keys() & {cls, made}:
            if is_protocol(made) or inspect.isabstract(made):
                msg = (
                    f"{made.__qualname__} is abstract, SERVICES names no class for it, "
                    f"and there is no SERVICE_RESOLVER"
                )
                raise Unfillable(msg)
            self.problems.extend(self.services.plan_of_init(made, self.names).problems)
        return self.services.resolver_of(cls)

    def _implied_service(self, cls: type) -> Resolver:
        """Return what gives a service by a class that nothing marks as one."""
        if conf.resolve("SERVICE_RESOLVER") is not None:
            return self._service(cls)
        if cls in self.services.overrides:
            return self._service(cls)
        what = _value_or_foreign(cls)
        if what is not None:
            msg = (
                f"{cls.__qualname__} is {what}. If it is to be built without "
                f"arguments, write Annotated[{cls.__name__}, Service()]"
            )
            raise Unfillable(msg)
        known = len(self.problems)
        resolver = self._service(cls)
        if field_names(cls):
            self._refuse_second_message(cls, self.problems[known:])
        return resolver

    def _refuse_second_message(self, cls: type, inner: list[Problem]) -> None:
        """Refuse a class of values where only a service could stand."""
        if not inner:
            return
        del self.problems[-len(inner) :]
        reason = str(inner[0].message).rstrip(".")
        taker = "" if self.taker is None else f": the payload is {self.taker!r} already"
        msg = (
            f"{cls.__qualname__} is not taken for a message here{taker}. It is no "
            f"service either ({reason}). A handler takes one message; @service says "
            f"that a class is a service"
        )
        raise Unfillable(msg)


_MARKS = (Header, Depends, Service)


def _is_mark(mark: Any) -> bool:
    return isinstance(mark, _MARKS) or mark in _MARKS


def _shown(mark: Any) -> str:
    """Return a mark as it is written."""
    if isinstance(mark, Header):
        return f"Header({mark.name!r})"
    if isinstance(mark, Depends):
        return f"Depends({place_of(mark.factory)})"
    return "Service()" if isinstance(mark, Service) else mark.__name__


def _may_be_a_service(annotation: Any) -> bool:
    return (
        (is_plain_class(annotation) or is_protocol(annotation))
        and annotation not in _NO_SERVICES
        and not issubclass(annotation, Enum)
        and not hasattr(annotation, "_meta")  # a model
    )


def _value_or_foreign(cls: type) -> str | None:
    """Return why nobody means a service by a class, None where one may."""
    if message_name_of(cls) is not None:
        return "a message, and a handler takes one"
    if issubclass(cls, BaseException):
        return "an exception, not a service"
    if is_value_type(cls) or hasattr(cls, "_fields"):
        return "a value, not a service"
    root = (cls.__module__ or "").partition(".")[0]
    if root == "django":
        return "a class of Django's, not a service"
    if root in sys.stdlib_module_names:
        return "a class of Python's, not a service"
    return None


# Classes of values: nobody means a service by one of these.
_NO_SERVICES = frozenset(
    {bool, bytes, date, datetime, Decimal, dict, float, frozenset, int, list, object}
    | {set, str, time, timedelta, tuple, type(None), UUID, Any, _EMPTY}
)


def marks_of(annotation: Any) -> tuple[Any, ...]:
    """Return the marks of an annotation, those inside an alias or a union too."""
    if hasattr(annotation, "__value__"):
        return marks_of(annotation.__value__)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return (*annotation.__metadata__, *marks_of(inner[0]))
    if origin in (typing.Union, types.UnionType):
        return tuple(mark for member in inner for mark in marks_of(member))
    return ()


def sole_type(annotation: Any) -> Any:
    """Return an annotation without what is around it, ``| None`` included."""
    members = [each for each in union_members(annotation) if each is not type(None)]
    return members[0] if len(members) == 1 else bare_type(annotation)


def _may_be(payload: Any, annotation: Any) -> bool:
    """Tell whether a payload of one annotation may be given to the other."""
    if payload is _EMPTY or annotation is _EMPTY:
        return True
    theirs = [m for m in union_members(payload) if isinstance(m, type)]
    ours = [m for m in union_members(annotation) if isinstance(m, type)]
    return any(
        issubclass(one, other) or issubclass(other, one)
        for one in theirs
        for other in ours
        if is_plain_class(one) and is_plain_class(other)
    )


def _payload_or(default: Any) -> Resolver:
    if default is _EMPTY or default is None:
        return payload_of
    return lambda message: default if message._payload is None else message._payload


def header_converter(name: str, wanted: Any) -> Callable[[Any], Any]:
    """Return what makes a header's value one of the type that is wanted."""
    wanted = bare_type(wanted)
    if wanted in (_EMPTY, Any, object):
        return lambda value: value
    exact = wanted if isinstance(wanted, type) else None

    def convert(value: Any) -> Any:
        if type(value) is exact:
            return value
        if exact is str and isinstance(value, _TEXTUAL):
            return text_of_header(value)
        try:
            return adapter_of(wanted).from_python(value)
        except MessageConversionError as error:
            path = f"headers.{name}"
            errors = [
                FieldError(f"{path}.{e.path}" if e.path else path, e.message, e.code)
                for e in error.errors
            ]
            fault = MessageConversionError(error.target, errors)
            fault.what = "header"
            raise fault from error

    return convert


_TEXTUAL = (int, float, UUID, Decimal, datetime, Enum)


def text_of_header(value: Any) -> str:
    """Return a header's value as the text that a channel would carry."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def place_of(function: Any) -> str:
    """Return the dotted path of a function or class, or of what an object is."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None) or "builtins"
    return f"{module}.{named.__qualname__}"
