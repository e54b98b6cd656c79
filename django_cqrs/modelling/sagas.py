"""
Sagas: stored objects that drive a business process from events to commands.

A saga is found, called and saved like an aggregate. A completed one stays as a
tombstone: no message starts it again, and a late timeout finds it over.
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
    """A process that can be over: ``completed_at`` is its end."""

    completed_at: Any

    def complete(self) -> None:
        """End the process now: late messages are ignored or refused."""
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
    Make a class a saga: class-method handlers start it, other methods advance it.

    Args:
        cls: a Django model, such as one derived from ``django_cqrs.models.SagaModel``,
            or a class whose objects a storage or a repository keeps.
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
        """Return the subject that finds and saves the sagas of a class."""
        return SagaSubject(owner, self, services)


class SagaSubject(AggregateSubject):
    """Finds and saves sagas, and knows when one is over."""

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
        Return the answering function for messages to a saga that is over.

        A timeout, sent with a delay, has nothing left to do. Any other message is for a
        missing object: ``on_missing`` decides.
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
        """Cancel the timers of a saga that was just completed, or deleted."""
        if not self.is_over(instance) and not self.storage.is_deleted(instance):
            return
        key = self.key_of(values)
        for name, endpoints in self.timers.items():
            channels[name].cancel(connections[alias], key, endpoints=endpoints)

    @property
    def timers(self) -> dict[str, set[str]]:
        """The endpoints of its timers, by the channels in which those wait."""
        found: dict[str, set[str]] = {}
        for endpoint in self._services.owner.routes.endpoints:
            if endpoint.subject is self and endpoint.channel and _is_timer(endpoint):
                names = (endpoint.name, *endpoint.policies.aliases)
                found.setdefault(endpoint.channel, set()).update(names)
        return found


def _is_timer(endpoint: Endpoint) -> bool:
    """Return whether an endpoint's handler declares a delay for its messages."""
    both = (endpoint, endpoint.action)
    return any(each is not None and each.policies.delay is not None for each in both)
