"""Conditions that the first message of a chain sets for the version of its object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django_cqrs.messages import Message, Origin, current, scope_of


class ConditionalOrigin(Origin):
    """
    The start of a chain whose first message knows the version of its object.

    Attributes:
        versions: the versions at which the object may be; None for any.
        version: the version of the object after its handler, None if it has none.

    """

    __slots__ = ("must_exist", "version", "versions")

    def __init__(
        self,
        versions: frozenset[int] | None,
        *,
        must_exist: bool,
        cause: Message | Origin,
    ) -> None:
        """
        Inherit the headers of the present origin.

        Args:
            versions: as the attribute.
            must_exist: whether no handler may create the object.
            cause: the message being handled, or the origin.

        """
        super().__init__(
            cause._user, cause.correlation_id, cause.message_id, scope_of(cause)
        )
        self.versions = versions
        self.must_exist = must_exist
        self.version: int | None = None


@contextmanager
def conditional(
    versions: frozenset[int] | None, *, must_exist: bool
) -> Iterator[ConditionalOrigin]:
    """
    Set the condition of the message that is sent inside the block.

    Its handler is not called, and ConcurrencyError is raised, if the object is at
    another version. Messages that the handler sends have no such condition.

    Args:
        versions: the versions at which the object may be; None for any.
        must_exist: whether no handler may create the object.

    """
    origin = ConditionalOrigin(versions, must_exist=must_exist, cause=current.get())
    token = current.set(origin)
    try:
        yield origin
    finally:
        current.reset(token)
