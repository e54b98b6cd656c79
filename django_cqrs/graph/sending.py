"""The messages that a function sends, as far as its text shows them."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from types import FunctionType, ModuleType
from typing import Annotated, Any, Final, Literal

from django_cqrs.buses.bus import BaseBus
from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.sources import (
    UNKNOWN,
    ClassDefinition,
    Elsewhere,
    FunctionNode,
    FunctionSource,
    Sources,
    imported,
    member,
)
from django_cqrs.modelling.interfaces.decorators import is_business_interface
from django_cqrs.modelling.interfaces.implementing import implement
from django_cqrs.sends import Send


class Way(enum.StrEnum):
    """How a message is sent."""

    CODE = "code"
    """The code makes an object of its class, or passes one on."""
    ROUTE = "route"
    """The code names its routing key."""
    OUTPUT = "output"
    """The handler's ``output=`` names it."""
    ON_DEAD = "on_dead"
    """The handler's ``on_dead=`` names it."""
    INTERFACE = "interface"
    """A method of a business interface leads to it."""
    VIEW = "view"
    """A view of messages makes it from a request."""
    SCHEDULE = "schedule"
    """A clock sends it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outgoing:
    """One message that a function sends."""

    target: type | str
    """Its class, or its routing key."""
    way: Way
    kind: Kind | None = None
    """Its kind, if the way of sending tells it."""
    is_certain: bool = True
    """Whether it is a message even if nothing else says so."""


VERBS: Final = {
    "dispatch": Kind.COMMAND,
    "adispatch": Kind.COMMAND,
    "send": Kind.COMMAND,
    "asend": Kind.COMMAND,
    "dispatch_for": Kind.COMMAND,
    "adispatch_for": Kind.COMMAND,
    "ask": Kind.QUERY,
    "aask": Kind.QUERY,
    "ask_for": Kind.QUERY,
    "aask_for": Kind.QUERY,
    "publish": Kind.EVENT,
    "apublish": Kind.EVENT,
    "record": Kind.EVENT,
}
"""The methods and functions that take a message first, or after a request."""

_PAYLOADS: Final = frozenset({"payload", "command", "event", "query", "message"})
"""The keywords that such a method takes the message by."""


@dataclasses.dataclass(frozen=True, slots=True)
class Typed:
    """The class of a value, with the arguments of a generic one."""

    cls: type | ClassDefinition
    arguments: tuple[type | ClassDefinition, ...] = ()


@dataclasses.dataclass(eq=False, slots=True)
class FunctionSends:
    """The messages that one function sends itself, and the functions it calls."""

    sends: list[Outgoing] = dataclasses.field(default_factory=list)
    calls: list[FunctionSource] = dataclasses.field(default_factory=list)


MethodOf = Callable[[type, str], Iterable[Outgoing]]
"""Returns the messages of a method of a business interface."""


class Sending:
    """Reads functions, each once, and those of the project that they call."""

    def __init__(
        self, sources: Sources, is_message: Callable[[type], bool], method_of: MethodOf
    ) -> None:
        """
        Begin without any function.

        Args:
            sources: reads the text of modules.
            is_message: whether objects of a class are messages.
            method_of: returns the messages of a method of a business interface.

        """
        self.sources = sources
        self.is_message = is_message
        self.method_of = method_of
        self._readings: dict[FunctionSource, FunctionSends] = {}
        self._attributes: dict[tuple[ClassDefinition, str], list[Typed]] = {}

    def reading(self, function: FunctionSource) -> FunctionSends:
        """Return the messages that a function sends itself, and its calls."""
        found = self._readings.get(function)
        if found is None:
            found = self._readings[function] = _FunctionReader(self, function).read()
        return found

    def all_sent(self, function: FunctionSource) -> dict[Outgoing, None]:
        """Return the messages that a function sends, itself or by its calls."""
        sent: dict[Outgoing, None] = {}
        for each in self.reached(function):
            sent |= dict.fromkeys(self.reading(each).sends)
        return sent

    def reached(self, function: FunctionSource) -> list[FunctionSource]:
        """Return a function and all that it calls, directly or not."""
        seen = {function: None}
        ahead = [function]
        while ahead:
            for each in self.reading(ahead.pop()).calls:
                if each not in seen:
                    seen[each] = None
                    ahead.append(each)
        return list(seen)

    def lineage(self, cls: type | ClassDefinition) -> list[ClassDefinition]:
        """Return a class of the project and its bases, as far as they are known."""
        found: dict[ClassDefinition, None] = {}
        ahead: list[type | ClassDefinition | None] = [cls]
        while ahead:
            each = ahead.pop(0)
            source = self.sources.class_of(each) if isinstance(each, type) else each
            if source is not None and source not in found:
                found[source] = None
                reader = _ClassReader(self, source)
                ahead += [reader.named(base) for base in source.node.bases]
        return list(found)

    def records(self, cls: type | ClassDefinition) -> bool:
        """Return whether objects of a class record messages to be sent."""
        live = [
            _ClassReader(self, each).named(base)
            for each in self.lineage(cls)
            for base in each.node.bases
        ]
        return any(hasattr(each, "pull_recorded_events") for each in (cls, *live))

    def attribute(self, cls: ClassDefinition, name: str) -> list[Typed]:
        """Return the possible classes of an attribute of a class's objects."""
        key = cls, name
        if key not in self._attributes:
            self._attributes[key] = []  # while it is looked for
            self._attributes[key] = _ClassReader(self, cls).attribute(name)
        return self._attributes[key]


class _FunctionReader:
    """Reads the body of one function."""

    def __init__(self, sending: Sending, function: FunctionSource) -> None:
        self._sending = sending
        self._sources = sending.sources
        self._function = function
        self._module = function.module
        self._reading = FunctionSends()
        self._annotations: dict[str, ast.expr | None] = {}
        self._assigned: dict[str, ast.expr | None] = {}
        self._imports: dict[str, Any] = {}
        self._typing: set[str] = set()
        self._self = ""

    def read(self) -> FunctionSends:
        node = self._function.node
        self._bind_parameters(node)
        arguments = [*node.args.posonlyargs, *node.args.args]
        if not self._function.is_static and arguments:
            self._self = arguments[0].arg
        body = [each for statement in node.body for each in _parts(statement)]
        for each in body:
            self._bind(each)
        for each in body:
            if isinstance(each, ast.Call):
                self._read_call(each)
        return self._reading

    # The names of the function ------------------------------------------------------

    def _bind_parameters(self, node: FunctionNode | ast.Lambda) -> None:
        given = node.args
        others = [each for each in (given.vararg, given.kwarg) if each is not None]
        for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, *others):
            self._annotations.setdefault(each.arg, each.annotation)

    def _bind(self, node: ast.AST) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self._bind_parameters(node)
            case ast.Import() | ast.ImportFrom():
                self._imports |= imported(node, self._module.name, self._module.file)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self._assigned.setdefault(name, value)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                self._annotations.setdefault(name, annotation)
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                self._assigned.setdefault(name, value)
            case ast.withitem(context_expr=value, optional_vars=ast.Name(id=name)):
                self._assigned.setdefault(name, value)
            case ast.Name(id=name, ctx=ast.Store()):
                self._assigned.setdefault(name, None)

    def _value(self, node: ast.AST | None) -> Any:
        """Return the value of an expression, if it is the same for each call."""
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._value_of(name)
            case ast.Attribute(value=holder, attr=name):
                outer = self._value(holder)
                if isinstance(outer, Elsewhere):
                    return Elsewhere(f"{outer.module}.{outer.name}", name)
                return member(outer, name)
            case ast.Subscript(value=holder):  # a generic class
                return self._value(holder)
        return UNKNOWN

    def _value_of(self, name: str) -> Any:
        if name in self._imports:
            return self._imports[name]
        if name in self._annotations or name in self._assigned:
            return UNKNOWN
        if name in self._function.names:
            return self._function.names[name]
        return self._module.value(name)

    def _class(self, node: ast.AST) -> type | ClassDefinition | None:
        """Return the class that an expression names."""
        value = self._value(node)
        if isinstance(value, type):
            return value
        if isinstance(value, Elsewhere):
            module = self._sources.module_named(value.module)
            return module.classes.get(value.name) if module else None
        if isinstance(node, ast.Name) and value is UNKNOWN:
            return self._module.classes.get(node.id)
        return None

    # The types of values ------------------------------------------------------------

    def _annotated(self, node: ast.AST | None) -> list[Typed]:
        """Return the classes that an annotation allows."""
        match node:
            case ast.Constant(value=str() as text):
                with suppress(SyntaxError):
                    return self._annotated(ast.parse(text, mode="eval").body)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return [*self._annotated(left), *self._annotated(right)]
            case ast.Subscript(value=outer, slice=inner):
                inside = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                origin = self._value(outer)
                if origin is Annotated:
                    return self._annotated(inside[0])
                if origin is Literal:
                    return []
                found = [each for one in inside for each in self._annotated(one)]
                cls = self._class(outer)
                if cls is None:  # a union, or Optional
                    return found
                return [Typed(cls, tuple(each.cls for each in found))]
            case ast.Name() | ast.Attribute():
                cls = self._class(node)
                return [] if cls is None else [Typed(cls)]
        return []

    def _types(self, node: ast.AST | None) -> list[Typed]:
        """Return the possible classes of an expression's value, none if unknown."""
        match node:
            case ast.Name(id=name):
                return self._types_of_name(node, name)
            case ast.Attribute(value=holder, attr=name):
                value = self._value(node)
                if value is not UNKNOWN:
                    return _typed(value)
                return [
                    found
                    for each in self._types(holder)
                    for found in self._attribute(each, name)
                ]
            case ast.Await(value=inner):
                return self._types(inner)
            case ast.Call():
                return self._types_of_call(node)
        return []

    def _types_of_name(self, node: ast.Name, name: str) -> list[Typed]:
        if name == self._self:
            owner = self._owner
            return [] if owner is None else [Typed(owner)]
        if name in self._typing:  # x = x.copy()
            return []
        self._typing.add(name)
        try:
            found = self._types(self._assigned.get(name))
            if not found and name in self._annotations:
                found = self._annotated(self._annotations[name])
        finally:
            self._typing.discard(name)
        if found or name in self._annotations or name in self._assigned:
            return found
        value = self._value(node)
        return [] if value is UNKNOWN else _typed(value)

    def _types_of_call(self, node: ast.Call) -> list[Typed]:
        if isinstance(node.func, ast.Name) and node.func.id == self._self:
            return self._types(node.func)
        cls = self._class(node.func)
        if cls is not None:
            return [Typed(cls)]
        if self._value(node.func) is implement and node.args:
            found = self._class(node.args[0])
            return [] if found is None else [Typed(found)]
        returned = [
            found
            for function in self._called(node.func)
            for found in _FunctionReader(self._sending, function)._annotated(
                function.node.returns
            )
        ]
        if returned or not isinstance(node.func, ast.Attribute):
            return returned
        # A Repository[Order] returns orders.
        return [
            Typed(argument)
            for each in self._types(node.func.value)
            for argument in each.arguments
        ]

    def _attribute(self, typed: Typed, name: str) -> Iterator[Typed]:
        """Yield the classes of an attribute of an object."""
        for cls in self._sending.lineage(typed.cls):
            found = self._sending.attribute(cls, name)
            if found:
                yield from found
                return

    @cached_property
    def _owner(self) -> ClassDefinition | None:
        return self._module.classes.get(self._function.owner)

    # The functions that it calls ----------------------------------------------------

    def _called(self, node: ast.AST) -> list[FunctionSource]:
        """Return the functions of the project that an expression names."""
        match node:
            case ast.Name(id=name):
                found = self._named(name)
                return [] if found is None else [found]
            case ast.Attribute(
                value=ast.Call(func=ast.Name(id="super")), attr=name
            ) if self._owner is not None:
                above = list(self._sending.lineage(self._owner))[1:]
                return _method_of(above, name)
            case ast.Attribute(value=holder, attr=name):
                value = self._value(node)
                is_method = isinstance(self._value(holder), type)
                if isinstance(value, (FunctionType, Elsewhere)) and not is_method:
                    return self._live(value)
                cls = self._class(holder)
                if cls is not None:
                    return _method_of(self._sending.lineage(cls), name)
                return [
                    found
                    for each in self._types(holder)
                    for found in _method_of(self._sending.lineage(each.cls), name)
                ]
        return []

    def _named(self, name: str) -> FunctionSource | None:
        """Return the function that a plain name means."""
        if name in self._annotations or name in self._imports:
            live = self._live(self._imports.get(name))
            return live[0] if live else None
        found = self._sources.beside(name, self._function)
        if found is None and name not in self._assigned:
            found = self._module.function(name)
        if found is not None or name in self._assigned:
            return found
        live = self._live(self._value_of(name))
        return live[0] if live else None

    def _live(self, value: Any) -> list[FunctionSource]:
        """Return the source of a function of the project."""
        if isinstance(value, Elsewhere):
            module = self._sources.module_named(value.module)
            found = module.function(value.name) if module else None
            return [] if found is None else [found]
        if isinstance(value, type) or not hasattr(value, "__code__"):
            value = inspect.unwrap(value) if hasattr(value, "__wrapped__") else None
        if not isinstance(value, FunctionType):
            return []
        if self._sources.module_of(value) is None:
            return []
        found = self._sources.function_of(value)
        return [] if found is None else [found]

    # The calls ----------------------------------------------------------------------

    def _read_call(self, node: ast.Call) -> None:
        verb = _verb(node.func)
        kind = VERBS.get(verb)
        cls = self._value(node.func)
        if cls is Send:
            kind = Kind.COMMAND
        elif kind is None and self._is_emitter(node.func):
            kind = Kind.EVENT
        given = _payload(node, verb) if kind is not None or cls is Send else None
        route = next((k.value for k in node.keywords if k.arg == "route"), None)
        if route is not None and not _is_none(route):
            self._read_route(node, route, kind, given)
        elif given is not None and kind is not None:
            self._read_payload(node, given, kind)
        self._read_made(node, cls)
        self._read_interface(node)
        self._follow(node)

    def _read_route(
        self, node: ast.Call, route: ast.expr, kind: Kind | None, given: ast.expr | None
    ) -> None:
        key = self._value(route)
        if isinstance(key, str):
            certain = kind is not None and self._is_bus(node.func)
            self._add(str.__str__(key), Way.ROUTE, kind, certain)
        if isinstance(given, ast.Call):
            self._leave_out(given)

    def _read_payload(self, node: ast.Call, given: ast.expr, kind: Kind) -> None:
        """Read the message that a bus, or an object that records, is given."""
        if isinstance(given, ast.Lambda):
            given = given.body
        if isinstance(given, ast.Call):
            cls = self._value(given.func)
            if isinstance(cls, type) and cls is not Send:
                is_known = self._sending.is_message(cls)
                if is_known or self._is_bus(node.func) or self._is_own(node.func):
                    self._add(cls, Way.CODE, kind, is_certain=True)
                    self._leave_out(given)
        elif isinstance(given, ast.Name) and self._assigned.get(given.id) is None:
            for each in self._annotated(self._annotations.get(given.id)):
                if isinstance(each.cls, type) and self._sending.is_message(each.cls):
                    self._add(each.cls, Way.CODE, kind)

    def _read_made(self, node: ast.Call, cls: Any) -> None:
        """Read a call that makes a message."""
        if id(node) in self._left_out:
            return
        if isinstance(cls, type):
            if self._sending.is_message(cls):
                self._add(cls, Way.CODE)
        elif isinstance(node.func, ast.Attribute):
            holder = self._value(node.func.value)
            maker = member(holder, node.func.attr)
            if isinstance(maker, classmethod) and self._sending.is_message(holder):
                self._add(holder, Way.CODE)
        if node.args and any(cls is each for each in _MAKERS):  # map(OrderPlaced, ids)
            made = self._value(node.args[0])
            if isinstance(made, type) and self._sending.is_message(made):
                self._add(made, Way.CODE)

    def _read_interface(self, node: ast.Call) -> None:
        """Read a call of a method of a business interface."""
        if isinstance(node.func, ast.Attribute):
            for each in self._types(node.func.value):
                for base in getattr(each.cls, "__mro__", ()):
                    if is_business_interface(base):
                        for sent in self._sending.method_of(base, node.func.attr):
                            self._reading.sends.append(sent)

    def _follow(self, node: ast.Call) -> None:
        """Add the functions that a call may run: its own, and given ones."""
        named: list[ast.AST] = [node.func, *node.args]
        named += [each.value for each in node.keywords]
        for each in named:
            if isinstance(each, (ast.Name, ast.Attribute)):
                self._reading.calls += self._called(each)
        cls = self._class(node.func)
        if cls is not None:
            self._reading.calls += _method_of(self._sending.lineage(cls), "__init__")

    def _is_bus(self, node: ast.AST) -> bool:
        """Return whether a method is one of a bus."""
        if not isinstance(node, ast.Attribute):
            return False
        classes = [each.cls for each in self._types(node.value)]
        return any(isinstance(c, type) and issubclass(c, BaseBus) for c in classes)

    def _is_emitter(self, node: ast.AST) -> bool:
        """Return whether a projection's handler calls its emitter."""
        return isinstance(node, ast.Name) and any(
            isinstance(each.cls, type)
            and each.cls.__name__ == "Emitter"
            and each.cls.__module__.startswith("django_cqrs.")
            for each in self._types(node)
        )

    def _is_own(self, node: ast.AST) -> bool:
        """Return whether it is `record` or `send` of an object that records."""
        if not isinstance(node, ast.Attribute):
            return False
        return any(self._sending.records(each.cls) for each in self._types(node.value))

    @cached_property
    def _left_out(self) -> set[int]:
        """The calls whose message is counted already, or goes by its key."""
        return set()

    def _leave_out(self, node: ast.Call) -> None:
        self._left_out.add(id(node))

    def _add(
        self,
        target: type | str,
        way: Way,
        kind: Kind | None = None,
        is_certain: bool = False,
    ) -> None:
        self._reading.sends.append(Outgoing(target, way, kind, is_certain))


class _ClassReader(_FunctionReader):
    """Reads the bases and attributes of a class."""

    def __init__(self, sending: Sending, cls: ClassDefinition) -> None:
        super().__init__(sending, FunctionSource(cls.module, _EMPTY, cls.name, ""))
        self._cls = cls

    def named(self, node: ast.AST) -> type | ClassDefinition | None:
        """Return the class that an expression names."""
        return self._class(node)

    def attribute(self, name: str) -> list[Typed]:
        """Return the classes of an attribute, by its annotation or in the code."""
        annotation = self._cls.attributes().get(name)
        if annotation is not None:
            return self._annotated(annotation)
        init = self._module.function(f"{self._cls.name}.__init__")
        if init is None:
            return []
        reader = _FunctionReader(self._sending, init)
        reader._bind_parameters(init.node)
        return [
            found
            for each in ast.walk(init.node)
            if isinstance(each, ast.Assign)
            and any(_is_attribute(target, name) for target in each.targets)
            for found in reader._types(each.value)
        ]


_EMPTY: Final[Any] = ast.parse("def body(): ...").body[0]

_MAKERS: Final = (map, partial)
"""The callables that call their first argument."""


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a statement that are run, annotations and decorators apart."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "decorator_list", "returns", "args") and not (
            name == "args" and isinstance(node, ast.Call)
        ):
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                yield from _parts(each)


def _verb(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _payload(node: ast.Call, verb: str) -> ast.expr | None:
    """Return the argument that is the message."""
    place = 1 if verb.endswith("_for") else 0
    if len(node.args) > place:
        return node.args[place]
    return next((k.value for k in node.keywords if k.arg in _PAYLOADS), None)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_attribute(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == name


def _method_of(lineage: Iterable[ClassDefinition], name: str) -> list[FunctionSource]:
    """Return the method that an object of a class has, or none."""
    for cls in lineage:
        found = cls.module.function(f"{cls.name}.{name}")
        if found is not None:
            return [found]
    return []


def _typed(value: Any) -> list[Typed]:
    """Return the class of a value of a module."""
    if isinstance(value, (type, ModuleType, Elsewhere)):
        return []
    return [Typed(type(value))]
