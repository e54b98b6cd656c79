"""
Sagas: stored objects that drive a business process from event to command.

A saga is found, called and kept as an aggregate is. One that is completed stays as a
tombstone: no message starts it again, and a timeout that comes late finds it over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar, overload

from django.db import connections
from django.utils import timezone

from django_cqrs.annotations import name_of_type
from django_cqrs.channels.aliases import channels
from django_cqrs.declaration.declarations import take_role
from django_cqrs.messages import Message, drop
from django_cqrs.modelling.aggregates import AggregateSubject, ModelRole, options_of
from django_cqrs.modelling.identifiers import Values
from django_cqrs.parameters.services import Services
from django_cqrs.routing.endpoint import Endpoint, JoinPoint

C = TypeVar("C", bound=type)

COMPLETED_AT = "completed_at"


class Completable:
    """What can be over: ``completed_at`` says since when."""

    completed_at: Any

    def complete(self) -> None:
        """End the process, from now on: what is late for it is ignored or refused."""
        self.completed_at = timezone.now()


@dataclasses.dataclass(kw_only=True)
class Saga(Completable):
    """The base of sagas that are dataclasses, with ``complete()``."""

    completed_at: datetime | None = None


@overload
def saga(cls: C, /) -> C: ...
@overload
def saga(
    *,
    identifier: str | tuple[str, ...] | None = None,
    version: str | None = None,
    events: str | None = None,
    repository: Any = None,
) -> Callable[[C], C]: ...
def saga(
    cls: Any = None,
    /,
    *,
    identifier: str | tuple[str, ...] | None = None,
    version: str | None = None,
    events: str | None = None,
    repository: Any = None,
) -> Any:
    """
    Make a class a saga: class-method handlers start it, its other methods move it.

    Args:
        cls: a Django model, such as one derived from ``django_cqrs.models.SagaModel``,
            or a class that a storage or a repository keeps.
        identifier: as for an aggregate.
        version: as for an aggregate.
        events: as for an aggregate.
        repository: as for an aggregate.

    Returns:
        The class itself.

    """
    role = SagaRole(options_of(identifier, version, events, repository), "@saga")
    if cls is not None:
        return take_role(cls, role)
    return lambda target: take_role(target, role)


@dataclasses.dataclass(frozen=True)
class SagaRole(ModelRole):
    """The declaration of ``@saga`` on a class."""

    def make_subject(self, owner: type, services: Services) -> SagaSubject:
        """Return what finds and keeps the sagas of a class."""
        return SagaSubject(owner, self, services)


class SagaSubject(AggregateSubject):
    """Finds and keeps sagas, and knows when one is over."""

    has_an_end = True

    def is_over(self, instance: Any) -> bool:
        """Return whether a saga is completed."""
        return getattr(instance, COMPLETED_AT, None) is not None

    def late(
        self,
        point: JoinPoint,
        missing: Callable[..., Exception],
    ) -> Callable[[Message, Values], Any]:
        """
        Return what answers a message for a saga that is over.

        A timeout, which was sent with a delay, no longer has anything to do. Another
        message is late for what is not there now: ``on_missing`` decides.
        """
        endpoint = point.endpoint
        policies = (endpoint.action or endpoint).policies
        ignores = _is_timer(endpoint) or policies.on_missing == "ignore"
        text = f"the {name_of_type(self.owner)} with {{}} is completed"

        def answer(message: Message, values: Values) -> Any:
            if ignores:
                drop(message)
                return None
            raise missing(message, values, text)

        return answer

    def ended(self, instance: Any, values: Values, alias: str) -> None:
        """Take back the timers of a saga that was just completed, or deleted."""
        if not self.is_over(instance) and not self.storage.is_deleted(instance):
            return
        key = self.key_of(values)
        for name, endpoints in self.timers.items():
            channels[name].cancel(connections[alias], key, endpoints=endpoints)

    @property
    def timers(self) -> dict[str, set[str]]:
        """The endpoints that its timers are for, by the channels that those wait in."""
        found: dict[str, set[str]] = {}
        for endpoint in self._services.owner.routes.endpoints:
            if endpoint.subject is self and endpoint.channel and _is_timer(endpoint):
                names = (endpoint.name, *endpoint.policies.aliases)
                found.setdefault(endpoint.channel, set()).update(names)
        return found


def _is_timer(endpoint: Endpoint) -> bool:
    """Return whether the handler of an endpoint says how its messages are delayed."""
    both = (endpoint, endpoint.action)
    return any(each is not None and each.policies.delay is not None for each in both)
