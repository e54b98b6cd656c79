"""
Snapshots: the state of an object at a version, so that loading reads fewer events.

A snapshot is a cache. One that was made by other code, or that cannot be read, is
passed over, and the next one replaces it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import textwrap
from functools import cached_property
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from django_cqrs.annotations import name_of_type
from django_cqrs.conversion.limits import ensure_kept
from django_cqrs.events.appliers import Appliers
from django_cqrs.events.models import Snapshot
from django_cqrs.events.streams import StreamOptions
from django_cqrs.exceptions import MessageConversionError, UnknownMessage
from django_cqrs.messages import MessageName
from django_cqrs.shapes import Shape, ShapeFault, shape_of

logger = logging.getLogger("django_cqrs.events")


class Snapshots:
    """The snapshots of one class."""

    def __init__(self, appliers: Appliers, options: StreamOptions) -> None:
        """Take the appliers of the class, and the declaration of its streams."""
        self._appliers = appliers
        self._options = options

    @property
    def every(self) -> int | None:
        """The number of events after which one is taken; None without any."""
        return self._options.snapshot_every

    @cached_property
    def shape(self) -> Shape:
        """The shape of the state."""
        return shape_of(self._appliers.cls)

    @property
    def faults(self) -> list[ShapeFault]:
        """The reasons why the state cannot be stored."""
        return list(self.shape.faults())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that the state depends on, beside the events."""
        cls = self._appliers.cls
        parts = [name_of_type(cls), str(self._options.snapshot_version)]
        parts += [
            f"{name}: {name_of_type(hint)}"
            for name, hint in self.shape.attributes().items()
        ]
        parts += [_code_of(each.function) for each in self._appliers.own]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def is_due(self, first: int, last: int) -> bool:
        """
        Return whether an append reaches or passes a multiple of the number.

        Args:
            first: the version of its first event.
            last: the version of its last event.

        """
        every = self.every
        return every is not None and last // every > (first - 1) // every

    def read(
        self, stream: str, version: int | None, fingerprint: str, state: Any
    ) -> tuple[Any, int] | None:
        """
        Return the object in a snapshot, and its version; None if it is not usable.

        Args:
            stream: the name of the stream, for the log.
            version: the version of the snapshot; None if there is none.
            fingerprint: that of the code that took it.
            state: its JSON, as the database returns it.

        """
        if version is None:
            return None
        if fingerprint != self.fingerprint:
            logger.warning(
                "The snapshot of %s at version %d was taken by other code. It is "
                "passed over.",
                stream,
                version,
            )
            return None
        name = MessageName(self._options.category)
        try:
            content = json.loads(state)
            return self.shape.load(content, name, name.name, name.version), version
        except (MessageConversionError, UnknownMessage, ValueError) as error:
            logger.warning(
                "The snapshot of %s at version %d cannot be read. It is passed over: "
                "%s",
                stream,
                version,
                error,
            )
            return None

    def write(
        self,
        connection: BaseDatabaseWrapper,
        stream_id: int,
        stream: str,
        version: int,
        instance: Any,
    ) -> bool:
        """
        Store the state of an object, over an older one.

        An object whose state has no JSON form has no snapshot: this is logged.

        Args:
            connection: of the database, in the transaction of the append.
            stream_id: the key of its stream.
            stream: the name of its stream, for the log.
            version: its version.
            instance: the object.

        Returns:
            Whether it was stored.

        """
        try:
            state = self.shape.dump(instance)
            ensure_kept(state, connection, name_of_type(self._appliers.cls))
        except MessageConversionError as error:
            logger.warning(
                "No snapshot of %s at version %d was taken: %s", stream, version, error
            )
            return False
        row = Snapshot(
            stream_id=stream_id,
            version=version,
            fingerprint=self.fingerprint,
            state=state,
            taken_at=timezone.now(),
        )
        names_keys = connection.features.supports_update_conflicts_with_target
        Snapshot.objects.using(connection.alias).bulk_create(
            [row],
            update_conflicts=True,
            update_fields=["version", "fingerprint", "state", "taken_at"],
            unique_fields=["stream_id"] if names_keys else None,
        )
        return True


def _code_of(function: Any) -> str:
    """Return the code of a function without its comments, layout and docstring."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source is there
        code = function.__code__
        return f"{function.__qualname__} {code.co_code.hex()} {code.co_names}"
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and isinstance(body, list)
            and ast.get_docstring(node, clean=False) is not None
        ):
            del body[0]
    return ast.dump(tree)
