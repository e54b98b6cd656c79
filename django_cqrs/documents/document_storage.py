"""Aggregates and sagas that are not models, stored as documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import connections, models

from django_cqrs.annotations import name_of_type, usual_name
from django_cqrs.buses.registries import Registry
from django_cqrs.documents.collections import remember
from django_cqrs.documents.names import fault_in_name, stored_name_of
from django_cqrs.documents.rows import Rows, Taken, key_of
from django_cqrs.documents.shapes import Mark, mark_of, put_mark
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    InvalidHandler,
    InvalidIdentifier,
)
from django_cqrs.modelling.aggregates import AggregateSubject
from django_cqrs.modelling.identifiers import (
    Part,
    Values,
    key_type_of,
    plain,
    typed,
)
from django_cqrs.modelling.storages import NoStorage, Options, Storage
from django_cqrs.modelling.watches import DocumentWatch, Watch
from django_cqrs.problems import Problem, Rule

if TYPE_CHECKING:
    from django_cqrs.documents.models import Document


class DocumentStorage(Storage[Any]):
    """Stores the objects of a dataclass, a pydantic model or a plain class."""

    def __init__(self, cls: type[Any], options: Options) -> None:
        """Take a class and its decorator's options."""
        super().__init__(cls, options)
        remember(cls)

    @cached_property
    def rows(self) -> Rows:
        """
        The collection.

        Raises:
            InvalidHandler: the class has no name for its collection.

        """
        name = stored_name_of(self.cls)
        if name is None:
            raise InvalidHandler(str(next(self._name_problems())))
        return Rows(self.cls, name)

    def write_alias(self) -> str:
        """Ask the database router, with the collection as a hint."""
        return self.rows.write_alias()

    def read_alias(self) -> str:
        """Ask the database router, with the collection as a hint."""
        return self.rows.read_alias()

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        try:
            return self.rows.shape.attributes()
        except Exception:  # noqa: BLE001 - an annotation may run any code; a check says so
            return {}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The attributes that identify an object."""
        usual = usual_name(self.cls)
        is_plain_id = "id" in self._annotations and usual not in self._annotations
        return self.options.identifier or ("id" if is_plain_id else usual,)

    def make_parts(self) -> tuple[Part, ...]:
        """Return the named attributes, by default the usual name of the class's id."""
        return tuple(self._part_of(name) for name in self._names)

    def _part_of(self, name: str) -> Part:
        is_plain_id = name == "id" and not self.options.identifier
        aliases = (usual_name(self.cls),) if is_plain_id else (name,)
        return Part(name, aliases, partial(self._converted, name))

    def _converted(self, name: str, value: Any) -> Any:
        return typed(self._annotations.get(name, Any), name, value)

    def _type_of(self, name: str) -> Any:
        """Return the type of an identifier's part; Any: texts are compared."""
        return key_type_of(self._annotations.get(name, Any))

    def values_of(self, instance: Any) -> Values:
        """Return the parts of an identifier in a form for headers."""
        values = super().values_of(instance)
        return tuple(None if value is None else plain(value) for value in values)

    def find(self, values: Values, *, using: str, lock: bool) -> Any:
        """Read the object, its row locked if asked to."""
        row = self.rows.row(key_of(*values), using, lock=lock)
        if row is None:
            return None
        found = self.rows.value(row)
        self._tell(found)
        return found

    def watch(
        self,
        instance: Any,
        registry: Registry,
        holder: str | None = None,
        *,
        using: str,
    ) -> Watch | None:
        """Return a watch of the statements that may write the object's row."""
        mark = self._mark_of(instance)
        documents = self.rows.table

        def image() -> dict[str, Any] | None:
            rows = documents._default_manager.using(using).filter(pk=mark.pk)
            version = rows.values_list("version", flat=True).first()
            return None if version is None else {"version": version}

        return DocumentWatch(
            self.said,
            registry,
            holder,
            instance=instance,
            connection=connections[using],
            tables=[documents._meta.db_table.lower()],
            image=image,
        )

    def is_new(self, instance: Any) -> bool:
        """Return whether it was never read nor written."""
        return self.rows.mark_of(instance) is None

    def insert(self, instance: Any, *, using: str) -> None:
        """Insert a row, never updating an existing one."""
        key = key_of(*self.values_of(instance))
        option = self.options.version
        version = 0 if option is None else getattr(instance, option, None) or 0
        if option is not None:
            object.__setattr__(instance, option, version)
        try:
            self.rows.insert(key, instance, using, version=version)
        except Taken as error:
            msg = f"{self.rows.said(key)} exists already."
            raise AggregateAlreadyExists(msg) from error

    def update(self, instance: Any, *, using: str) -> None:
        """Update the row, if it still has the version that was read."""
        if self.is_deleted(instance):
            return
        mark = self._mark_of(instance)
        if key_of(*self.values_of(instance)) != mark.key:
            names = ", ".join(self._names)
            msg = (
                f"{self.rows.said(mark.key)} was given another identifier: {names} "
                "identifies it and must not change."
            )
            raise InvalidIdentifier(msg)
        if self.options.version is not None:
            object.__setattr__(instance, self.options.version, mark.version + 1)
        self.rows.update(mark, instance, using)

    def delete(self, instance: Any, *, using: str) -> None:
        """Delete the row."""
        mark = self._mark_of(instance)
        self.rows.table._default_manager.using(using).filter(pk=mark.pk).delete()
        put_mark(instance, mark._replace(is_deleted=True))

    def is_deleted(self, instance: Any) -> bool:
        """Return whether its row was deleted through the object."""
        return self._mark_of(instance).is_deleted

    def _mark_of(self, instance: Any) -> Mark:
        mark = self.rows.mark_of(instance)
        if mark is None:
            raise self.rows.lost(key_of(*self.values_of(instance)))
        return mark

    def identifier_of(self, instance: Any) -> Any:
        """Return the one attribute, or a tuple of several."""
        values = self.values_of(instance)
        return values[0] if len(values) == 1 else values

    @property
    def identifier_type(self) -> Any:
        """The annotated type of the one attribute."""
        return self._type_of(self._names[0]) if len(self._names) == 1 else tuple

    def version_of(self, instance: Any) -> int | None:
        """Return the version of its row."""
        mark = mark_of(instance)
        return None if mark is None else mark.version

    def _tell(self, found: Any) -> None:
        """Set the version on an object that has an attribute for it."""
        version = self.version_of(found)
        if self.options.version is not None:
            object.__setattr__(found, self.options.version, version)

    # Checks -------------------------------------------------------------------------

    def problems(self) -> Iterator[Problem]:
        """Yield faults: a class without a name, or a state that cannot be restored."""
        found = list(self._name_problems())
        if not found:
            found = list(self._state_problems())
        yield from found
        if not found:
            yield from self._option_problems()

    def _name_problems(self) -> Iterator[Problem]:
        fault = fault_in_name(self.cls)
        if fault is not None:
            yield Problem(
                Rule.NAMELESS_DOCUMENT,
                f"{name_of_type(self.cls)} has no name for storage: {fault}.",
                'Name it with @document("app.name").',
                self.cls,
            )

    def _state_problems(self) -> Iterator[Problem]:
        for fault in self.rows.shape.faults():
            yield Problem(Rule.UNSTORABLE_STATE, fault.text, fault.hint, self.cls)
        if not _has_room(self.cls):
            yield Problem(
                Rule.UNSTORABLE_STATE,
                f"{name_of_type(self.cls)} has only __slots__, so its objects cannot "
                "remember which version was read.",
                "Remove slots=True, or derive the class from RecordsEvents.",
                self.cls,
            )

    def _option_problems(self) -> Iterator[Problem]:
        said = name_of_type(self.cls)
        for name in self._names:
            if name not in self._annotations and not hasattr(self.cls, name):
                yield Problem(
                    Rule.NO_IDENTIFIER,
                    f"{said} has no attribute {name!r} to identify it.",
                    "Annotate it, or name another attribute with identifier=.",
                    self.cls,
                )
        version = self.options.version
        if version is not None and self._annotations.get(version) is not int:
            yield Problem(
                Rule.BAD_VERSION,
                f"{said} has version={version!r}, which is not an attribute annotated "
                "as int.",
                f"Write {version}: int = 0.",
                self.cls,
            )


def _has_room(cls: type) -> bool:
    """Return whether objects of a class have a ``__dict__``."""
    return cls.__dictoffset__ != 0


def document_storage(cls: type, options: Options) -> DocumentStorage | None:
    """Return the storage of a class that is not a model."""
    is_ours = isinstance(cls, type) and not issubclass(cls, models.Model)
    if not is_ours or not apps.is_installed("django_cqrs.documents"):
        return None
    return DocumentStorage(cls, options)


def subject_of(document: Document, registry: Registry) -> str:
    """
    Return the subject in envelopes of the aggregate or saga in a document.

    Args:
        document: the row.
        registry: the registry with the object's handlers.

    Returns:
        A text such as ``shop.Cart:7``; empty if its class has no handlers.

    """
    for subject in {each.subject for each in registry.routes.endpoints}:
        if not isinstance(subject, AggregateSubject):
            continue
        with suppress(NoStorage, InvalidHandler):  # the checks report it
            storage = subject.storage
            if isinstance(storage, DocumentStorage) and storage.rows.has(document):
                is_one = len(storage.parts) == 1
                values = [document.key] if is_one else json.loads(document.key)
                return subject.key_of(tuple(values))
    return ""
