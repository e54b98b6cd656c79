"""The objects passed to handlers: services, and results of ``Depends``."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django_cqrs import conf
from django_cqrs.annotations import NO_NAMES, Names, is_protocol, place_of
from django_cqrs.declaration.marks import Service
from django_cqrs.exceptions import ParameterError
from django_cqrs.messages import Message
from django_cqrs.parameters.plan import ArgumentPlan, Resolver
from django_cqrs.parameters.planner import plan_of
from django_cqrs.problems import Problem, Rule
from django_cqrs.sync import sync_callable


class Dependencies:
    """The results of ``Depends`` for one message, to be closed after it."""

    __slots__ = ("made", "stack")

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}
        self.stack: ExitStack = ExitStack()


def with_dependencies(run: Callable[[Message], Any]) -> Callable[[Message], Any]:
    """Return `run`, after which the message's dependencies are closed."""

    def run_then_close(message: Message) -> Any:
        around = getattr(message, "_dependencies", None)
        message._dependencies = dependencies = Dependencies()
        try:
            result = run(message)
        except BaseException as error:
            # A generator sees the failure but cannot suppress it.
            dependencies.stack.__exit__(type(error), error, error.__traceback__)
            raise
        finally:
            message._dependencies = around
        dependencies.stack.close()
        return result

    return run_then_close


class Services:
    """The objects passed to handlers: one store for each registry."""

    def __init__(self, owner: Any = None) -> None:
        """Serve the registry `owner`, whose buses the fillers provide."""
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
        """Return whether a class can only come from a test's replacement."""
        return (
            isinstance(wanted, type)
            and (is_protocol(wanted) or inspect.isabstract(wanted))
            and conf.resolve("SERVICE_RESOLVER") is None
        )

    @contextmanager
    def override(self, wanted: Any, replacement: Callable[..., Any]) -> Iterator[None]:
        """Call `replacement` instead of a ``Depends`` factory or a class."""
        before = dict(self.overrides)
        self.overrides[wanted] = replacement
        self._plans.clear()
        # A service built now may hold a replacement; one built before does not.
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

    def plan_of_init(self, cls: type, names: Names = NO_NAMES) -> ArgumentPlan:
        """Return the plan that builds a service, once for all messages."""
        plan = self._plans.get(cls)
        if plan is None:
            plan = self.plan_of_need(cls, payload=None, once=True, names=names)
            self._plans[cls] = plan
        return plan

    def plan_of_need(
        self, need: Any, *, payload: Any, once: bool, names: Names
    ) -> ArgumentPlan:
        """
        Return the plan of a factory or a class that is a dependency.

        Args:
            need: the factory or the class.
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
        """Return the resolver of an instance of `cls`."""
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
                msg = f"Circular dependency between services: {circle}."
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
        """Return the resolver of a ``Depends`` factory's result."""
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
        f"Circular dependency: {' -> '.join(place_of(each) for each in needs)}.",
        "Let one of them get the other when it is called, not when it is made.",
        needs[0],
    )


def _callable_of(factory: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(factory):
        return contextmanager(factory)
    return sync_callable(factory)
