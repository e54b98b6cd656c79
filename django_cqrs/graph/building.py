"""Build the message graph of a registry from its routes and its code."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

from django_cqrs.annotations import (
    LOCAL,
    is_plain_class,
    is_protocol,
    is_value_type,
    name_of_type,
    path_of,
    union_members,
)
from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import Kind, role_of
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.graph.graph import (
    LIBRARY,
    Edge,
    Graph,
    HandlerNode,
    MessageNode,
    Sender,
)
from django_cqrs.graph.offers import offers
from django_cqrs.graph.sending import Outgoing, Sending, Way
from django_cqrs.graph.sources import FunctionSource, Sources
from django_cqrs.graph.views import views_of_project
from django_cqrs.messages import Command, Query, message_name_of
from django_cqrs.modelling.interfaces.implementing import (
    Method,
    implement,
    interfaces_of,
    methods_of,
)
from django_cqrs.modelling.interfaces.methods import Parts
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.endpoints import PATTERN_SIGNS


def graph_of(registry: Registry) -> Graph:
    """
    Return the message graph of a registry.

    Code is read, not run. For the project's registry the modules of all installed apps
    are read; for another one its handlers, and what they call.

    Args:
        registry: the registry with the handlers.

    """
    return _Builder(registry).build()


@dataclasses.dataclass(eq=False, slots=True)
class _Draft:
    """A message whose keys are not all known yet."""

    kind: Kind | None
    name: str
    cls: type | None
    labels: set[str]
    handlers: list[Endpoint]
    keys: dict[str, None] = dataclasses.field(default_factory=dict)


class _Builder:
    """Builds one graph."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._table = registry.routes
        self._drafts: dict[tuple[Kind | None, str], _Draft] = {}
        self._ways: defaultdict[tuple[str, _Draft], set[Way]] = defaultdict(set)
        self._senders: dict[str, Sender] = {}
        self._handlers: dict[str, HandlerNode] = {}
        self._is_message: dict[type, bool] = {}
        self._methods: dict[type, dict[str, list[Outgoing]]] = {}
        self._sources = Sources()
        self._sending = Sending(self._sources, self.is_message, self.sent_by_method)
        self._routed = {
            cls
            for endpoint in self._table.endpoints
            for cls in endpoint.classes
            if cls is not object and not is_protocol(cls)
        }
        # The events that event-sourced objects apply to themselves.
        self._applied = {
            cls
            for subject in {endpoint.subject for endpoint in self._table.endpoints}
            for cls in (() if subject is None else subject.messages())
            if is_plain_class(cls) and cls is not object
        }

    def build(self) -> Graph:
        # First: what they import is then known, such as business interfaces.
        views = views_of_project() if self._table.is_of_apps else []
        for endpoint in self._table.endpoints:
            for cls in endpoint.classes:
                if cls in self._routed:
                    self._of_class(cls, endpoint.kind)
            for key in endpoint.keys:
                if endpoint.kind is not Kind.EVENT or not PATTERN_SIGNS & set(key):
                    self._of_key(key, endpoint.kind)
        self._add_handlers()
        self._add_views(views)
        self._add_offers()
        self._add_interfaces()
        return self._frozen()

    # Messages -----------------------------------------------------------------------

    def is_message(self, cls: type) -> bool:
        """Return whether the objects of a class are messages."""
        known = self._is_message.get(cls)
        if known is None:
            known = is_plain_class(cls) and not is_value_type(cls)
            known = known and (
                message_name_of(cls) is not None
                or self._is_applied(cls)
                or not self._routed.isdisjoint(cls.__mro__)
            )
            self._is_message[cls] = known
        return known

    def _is_applied(self, cls: type) -> bool:
        """Return whether an event-sourced object applies events of a class."""
        return not self._applied.isdisjoint(cls.__mro__)

    def _of_class(self, cls: type, kind: Kind | None) -> list[_Draft]:
        """Return the messages that the objects of a class are."""
        takers = {each: self._table.takers_of_class(each, cls) for each in Kind}
        kinds: list[Kind | None] = [each for each in Kind if takers[each]]
        if kind in kinds or not kinds:
            if kind is None and issubclass(cls, Command):
                kind = Kind.COMMAND
            elif kind is None and issubclass(cls, Query):
                kind = Kind.QUERY
            elif kind is None and self._is_applied(cls):
                kind = Kind.EVENT
            kinds = [kind]
        name = message_name_of(cls)
        labels = {name_of_type(cls)}
        if name is not None:
            labels |= {name.name, *name.aliases}
        if self._table.types.why_nameless(cls) is None:
            labels.add(self._table.types.name_of(cls).name)
        found = []
        for each in kinds:
            handlers = takers[each] if each is not None else []
            place = each, path_of(cls)
            if place not in self._drafts:
                self._drafts[place] = _Draft(
                    each, name_of_type(cls), cls, labels, handlers
                )
            found.append(self._drafts[place])
        return found

    def _of_key(
        self, key: str, kind: Kind | None, *, is_certain: bool = True
    ) -> list[_Draft]:
        """Return the messages that a routing key means."""
        named = self._table.types.named(key)
        if named is not None:
            return self._of_class(named, kind)
        takers = {each: self._table.takers_of_key(each, key) for each in Kind}
        kinds: list[Kind | None] = [each for each in Kind if takers[each]]
        if kind in kinds or (not kinds and is_certain):
            kinds = [kind]
        found = []
        for each in kinds:
            handlers = takers[each] if each is not None else []
            draft = self._same_as_class(each, handlers)
            if draft is None:
                place = each, key
                if place not in self._drafts:
                    self._drafts[place] = _Draft(each, key, None, {key}, handlers)
                draft = self._drafts[place]
            draft.keys[key] = None
            draft.labels.add(key)
            found.append(draft)
        return found

    def _same_as_class(
        self, kind: Kind | None, handlers: list[Endpoint]
    ) -> _Draft | None:
        """Return the message of the only class that the same handlers take."""
        classes = {cls for each in handlers for cls in each.classes}
        if kind is None or len(classes) != 1 or not classes <= self._routed:
            return None
        (cls,) = classes
        if set(self._table.takers_of_class(kind, cls)) != set(handlers):
            return None
        return self._of_class(cls, kind)[0]

    def sent_by_method(self, cls: type, name: str) -> Iterable[Outgoing]:
        """Return the messages of a method of a business interface."""
        if cls not in self._methods:
            implementation = implement(cls, registry=self._registry)
            self._methods[cls] = {
                each.name: list(self._sent_by(each))
                for each in methods_of(implementation)
            }
        return self._methods[cls].get(name, ())

    def _sent_by(self, method: Method) -> Iterator[Outgoing]:
        try:
            route = None if method.statement else method.route(self._table)
            payload = Parts.of(method.signature).payload if route else None
        except Exception:  # noqa: BLE001 - of an annotation; a check reports it
            return
        if route is None:
            return
        if route.key is not None:
            yield Outgoing(route.key, Way.INTERFACE, route.kind)
        elif payload is not None:
            annotation = method.signature.annotations[method.signature.names[payload]]
            for each in union_members(annotation):
                if isinstance(each, type) and self.is_message(each):
                    yield Outgoing(each, Way.INTERFACE, route.kind)

    # Senders ------------------------------------------------------------------------

    def _add(self, sender: Sender, sent: Iterable[Outgoing]) -> None:
        for each in sent:
            if isinstance(each.target, type):
                drafts = self._of_class(each.target, each.kind)
            else:
                drafts = self._of_key(
                    each.target, each.kind, is_certain=each.is_certain
                )
            for draft in drafts:
                self._senders.setdefault(sender.name, sender)
                self._ways[sender.name, draft].add(each.way)

    def _add_handlers(self) -> None:
        """Add the handlers of the registry, and the other functions of its apps."""
        found: list[FunctionSource] = []
        for endpoint in self._table.endpoints:
            source = self._sources.function_of(endpoint.function, endpoint.owner)
            sent: dict[Outgoing, None] = {}
            if source is not None:
                found.append(source)
                sent = self._sending.all_sent(source)
            file, line = endpoint.source
            self._handlers[endpoint.name] = HandlerNode(
                name=endpoint.name,
                place=endpoint.place,
                file=file,
                line=line,
                kind=endpoint.kind,
                channel=_channel_of(endpoint),
                aliases=tuple(endpoint.policies.aliases),
                is_readable=source is not None,
                function=endpoint.function,
            )
            sender = Sender(name=endpoint.name, is_handler=True, file=file, line=line)
            self._add(sender, [*sent, *_declared(endpoint)])
        if self._table.is_of_apps:
            self._add_functions(found)

    def _add_functions(self, handlers: list[FunctionSource]) -> None:
        """Add the functions of the apps that send, and that no other one calls."""
        functions: list[FunctionSource] = []
        for module in self._sources.all_of_project():
            for named in module.functions.values():
                functions += [each for each in named if LOCAL not in each.name]
        called = {
            each
            for function in (*functions, *handlers)
            for each in self._sending.reading(function).calls
            if each is not function
        }
        covered = {each for one in handlers for each in self._sending.reached(one)}
        roots = [each for each in functions if each not in called]
        # Those that only call each other come last: one of them stands for all.
        for function in (*roots, *functions):
            if function in covered:
                continue
            reached = self._sending.reached(function)
            sent = self._sending.all_sent(function)
            covered.update(reached)
            sender = Sender(
                name=function.place,
                is_handler=False,
                file=function.module.file,
                line=function.line,
            )
            self._add(sender, sent)

    def _add_views(self, views: Iterable[tuple[str, Any]]) -> None:
        for path, view in views:
            cls: Any = getattr(view, "view_class", None)
            if not hasattr(cls, "cqrs_problems"):
                continue
            given = view.view_initkwargs
            bus = given.get("bus", cls.bus)
            target = given.get("route", cls.route) or given.get("message", cls.message)
            if bus.registry is self._registry and isinstance(target, (str, type)):
                sender = Sender(name=f"/{path}", is_handler=False)
                self._add(sender, [Outgoing(target, Way.VIEW, bus.kind)])

    def _add_offers(self) -> None:
        for offer in offers:
            for each in offer(self._registry):
                sender = Sender(name=each.sender, is_handler=False)
                self._add(sender, [Outgoing(each.target, Way(each.way), each.kind)])
        for draft in self._drafts.values():
            if draft.cls is MessageGaveUp:
                self._senders[LIBRARY] = Sender(name=LIBRARY, is_handler=False)
                self._ways[LIBRARY, draft].add(Way.ON_DEAD)

    def _add_interfaces(self) -> None:
        """Add the methods of business interfaces that no readable code calls."""
        known = {draft for _, draft in self._ways}
        for cls in interfaces_of(self._registry):
            for method in methods_of(implement(cls, registry=self._registry)):
                for sent in self.sent_by_method(cls, method.name):
                    drafts = (
                        self._of_class(sent.target, sent.kind)
                        if isinstance(sent.target, type)
                        else self._of_key(sent.target, sent.kind)
                    )
                    if known.isdisjoint(drafts):
                        code = method.function.__code__
                        sender = Sender(
                            name=method.place,
                            is_handler=False,
                            file=code.co_filename,
                            line=code.co_firstlineno,
                        )
                        self._add(sender, [sent])

    # The result ---------------------------------------------------------------------

    def _frozen(self) -> Graph:
        sent = {draft for _, draft in self._ways}
        drafts = [
            each for each in self._drafts.values() if each in sent or each.handlers
        ]
        names = Counter((each.kind, each.name) for each in drafts)
        nodes = {
            draft: MessageNode(
                name=_name(draft, is_sole=names[draft.kind, draft.name] == 1),
                kind=draft.kind,
                cls=draft.cls,
                keys=tuple(draft.keys),
                labels=frozenset(draft.labels),
                handlers=tuple(each.name for each in draft.handlers),
                is_applied=draft.cls is not None and self._is_applied(draft.cls),
            )
            for draft in drafts
        }
        edges = [
            Edge(
                sender=sender, message=nodes[draft], ways=tuple(sorted(ways, key=_turn))
            )
            for (sender, draft), ways in self._ways.items()
        ]
        return Graph(
            tuple(sorted(nodes.values(), key=_place)),
            self._handlers,
            self._senders,
            tuple(sorted(edges, key=lambda each: (_place(each.message), each.sender))),
        )


_KINDS: Final = (Kind.COMMAND, Kind.EVENT, Kind.QUERY, None)


def _place(node: MessageNode) -> tuple[int, str, str]:
    """Return the sort key of a message: commands, events, queries, each by name."""
    return _KINDS.index(node.kind), node.name.lower(), node.id


def _name(draft: _Draft, *, is_sole: bool) -> str:
    """Return the name of a message; its path if another class has the same one."""
    return draft.name if is_sole or draft.cls is None else path_of(draft.cls)


def _turn(way: Way) -> int:
    return list(Way).index(way)


def _channel_of(endpoint: Endpoint) -> str | None:
    """Return the channel of a handler; of a projection the one that it follows."""
    options = getattr(role_of(endpoint.owner), "options", None)
    followed: str | None = getattr(options, "channel", None)
    return followed if endpoint.is_fed else endpoint.channel


def _declared(endpoint: Endpoint) -> Iterator[Outgoing]:
    """Yield the messages that a handler's keywords name."""
    for key in endpoint.policies.outputs:
        yield Outgoing(key, Way.OUTPUT, Kind.COMMAND)
    if endpoint.policies.on_dead is not None:
        yield Outgoing(endpoint.policies.on_dead, Way.ON_DEAD)
