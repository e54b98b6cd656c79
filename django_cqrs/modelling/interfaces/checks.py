"""Checks of business interfaces against the handlers of their routes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from django_cqrs.annotations import EMPTY, name_of_type
from django_cqrs.conversion.compatibility import may_become
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.declaration.declarations import Kind
from django_cqrs.messages import RESERVED_HEADERS, RESERVED_PREFIXES
from django_cqrs.modelling.interfaces.decorators import interface_options
from django_cqrs.modelling.interfaces.methods import (
    NONE,
    MethodDescription,
    Parts,
    Route,
)
from django_cqrs.modelling.sql.checks import StatementFault
from django_cqrs.modelling.sql.checks import problems_of as sql_problems_of
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.table import RouteTable
from django_cqrs.sends import without_sends


class CheckedMethod(MethodDescription):
    """A method that finds its own faults."""

    def problems(self, table: RouteTable) -> Iterator[Problem]:
        """Yield its faults."""
        try:
            signature = self.signature
        except Exception as error:  # noqa: BLE001 - an annotation may run any code
            yield Problem(
                Rule.UNREADABLE_SIGNATURE,
                f"The annotations of {self.place} cannot be evaluated: {error}.",
                "Import the names they use at the top of the module, "
                "not under TYPE_CHECKING.",
                self.function,
            )
            return
        if self.statement is not None:
            yield from sql_problems_of(
                self.statement,
                self.place,
                self.function,
                signature.annotations,
                signature.returns,
                is_async=self.is_async,
            )
        elif self.declaration is None:
            yield self._problem(
                Rule.INTERFACE_ROUTE,
                f"{self.place} has no route: it is not decorated.",
                "Decorate it with @business_method, @sql_query or @sql_write.",
            )
        else:
            yield from self._route_problems(table, self.declaration.key)

    def _problem(self, rule: Rule, message: str, hint: str) -> Problem:
        return Problem(rule, message, hint, self.function)

    def _route_problems(self, table: RouteTable, key: str | None) -> Iterator[Problem]:
        parts = Parts.of(self.signature)
        if parts.excess:
            names = " and ".join(repr(name) for name in parts.excess)
            yield self._problem(
                Rule.INTERFACE_TYPE,
                f"{self.place} has more than one payload: {names}.",
                "Keep one parameter as the payload and mark the others with "
                'Annotated[..., Header("name")] or Annotated[..., Identifier()].',
            )
            return
        for name, _index, _default in parts.headers:
            if name in RESERVED_HEADERS or name.startswith(RESERVED_PREFIXES):
                yield self._problem(
                    Rule.INTERFACE_TYPE,
                    f"{self.place} sends the header {name!r}, which is reserved: every "
                    f"message has its own.",
                    "Give the header another name.",
                )
        routes = self.routes(table)
        if not routes:
            yield self._nowhere(table, key, parts)
        elif len(routes) > 1:
            kinds = " and ".join(f"a {each.kind}" for each in routes)
            yield self._problem(
                Rule.INTERFACE_ROUTE,
                f"{self.place} leads to {kinds} alike: {routes[0].said} is the key of "
                "both.",
                "Give one of them another key.",
            )
        else:
            yield from self._misfits(routes[0], parts)

    def _nowhere(self, table: RouteTable, key: str | None, parts: Parts) -> Problem:
        if key is not None:
            known = sorted({each for e in table.endpoints for each in e.keys})
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
            reason = f"no handler has the key {key!r}"
            hint = (
                f"Did you mean {near[0]!r}?"
                if near
                else (
                    "Check that its handler is decorated and in the handlers module "
                    "of an installed app."
                )
            )
        elif parts.payload is None:
            reason = "it has neither a key nor a payload"
            hint = 'Give it a key, @business_method("ticket.close"), or a payload.'
        else:
            name = self.signature.names[parts.payload]
            annotation = self.signature.annotations[name]
            said = "anything" if annotation is EMPTY else name_of_type(annotation)
            reason = f"no handler takes {said}"
            hint = (
                "Write the handler, or give the method a key: "
                '@business_method("ticket.close").'
            )
        return self._problem(
            Rule.INTERFACE_ROUTE, f"{self.place} has no route: {reason}.", hint
        )

    def _misfits(self, route: Route, parts: Parts) -> Iterator[Problem]:
        sound = [each for each in route.endpoints if not each.problems]
        faults = [
            list(self._faults(endpoint, parts, route.key is not None))
            for endpoint in sound
        ]
        # An event has several handlers, and an aggregate may have a factory and an
        # action for one command.
        if faults and all(faults):
            reason, hint = faults[0][0]
            yield self._problem(
                Rule.INTERFACE_TYPE, f"{self.place} does not fit: {reason}.", hint
            )

    def _faults(
        self, endpoint: Endpoint, parts: Parts, by_key: bool
    ) -> Iterator[StatementFault]:
        signature = self.signature
        plan = endpoint.plan
        given = None
        if parts.payload is not None:
            given = signature.annotations[signature.names[parts.payload]]
        if given is not None and plan.payload is None:
            name = signature.names[parts.payload or 0]
            yield StatementFault(
                f"it has the payload {name!r}, but {endpoint.place} takes no payload",
                "Remove the parameter, or mark it with Header or Identifier.",
            )
        elif given is None and plan.payload is not None:
            if plan.payload_default is EMPTY and not plan.payload.takes_none:
                wanted = name_of_type(plan.payload.annotation)
                yield StatementFault(
                    f"it has no payload, but {endpoint.place} takes {wanted}",
                    f"Give it a parameter of the type {wanted}.",
                )
        elif by_key and given is not None and plan.payload is not None:
            wanted = plan.payload.annotation
            if not may_become(given, wanted):
                yield StatementFault(
                    f"its payload is {name_of_type(given)}, but {endpoint.place} "
                    f"takes {name_of_type(wanted)}",
                    "Make both the same.",
                )
        yield from self._identifier_faults(endpoint, parts)
        yield from self._result_faults(endpoint)

    def _identifier_faults(
        self, endpoint: Endpoint, parts: Parts
    ) -> Iterator[StatementFault]:
        if parts.identifiers and getattr(endpoint, "subject", None) is None:
            name = parts.identifiers[0][0]
            yield StatementFault(
                f"{name!r} is an Identifier, but {endpoint.place} is not a handler of "
                "an aggregate",
                "Send it as a header or in the payload.",
            )

    def _result_faults(self, endpoint: Endpoint) -> Iterator[StatementFault]:
        if endpoint.channel is not None and interface_options[self.owner].is_direct:
            yield StatementFault(
                f"it is direct, but {endpoint.place} has the channel "
                f"{endpoint.channel!r}",
                "Remove direct=True.",
            )
        wanted = self.signature.returns
        if wanted in (EMPTY, Any, object, *NONE):
            return
        takes_none = PayloadType(wanted).takes_none
        said = name_of_type(wanted)
        if endpoint.kind is Kind.EVENT:
            yield StatementFault(
                f"it returns {said}, but a published event has no answer",
                "Annotate it with None.",
            )
            return
        if endpoint.channel is not None:
            if not takes_none:
                yield StatementFault(
                    f"it returns {said}, but {endpoint.place} has the channel "
                    f"{endpoint.channel!r}, so it is handled later and returns no "
                    "answer",
                    "Annotate it with None.",
                )
            return
        returned = _returned_by(endpoint)
        if returned in NONE:
            if not takes_none:
                yield StatementFault(
                    f"it returns {said}, but {endpoint.place} returns None",
                    "Annotate it with None.",
                )
        elif not may_become(returned, wanted, of_result=True):
            yield StatementFault(
                f"it returns {said}, but {endpoint.place} returns "
                f"{name_of_type(returned)}",
                "Make both the same.",
            )


def _returned_by(endpoint: Endpoint) -> Any:
    """Return the type of an endpoint's result, Any if it is not annotated."""
    subject: Any = getattr(endpoint, "subject", None)
    returned = without_sends(endpoint.plan.returns)
    if subject is not None:
        returned = subject.result_of(endpoint)
    return Any if returned is EMPTY else returned
