"""Collections of documents, used directly: values of one type, each under its key."""

from __future__ import annotations

import builtins
import typing
from functools import cached_property
from typing import Any, Generic, TypeVar

from django.db.models import F
from django.db.transaction import atomic

from django_cqrs.annotations import name_of_type, sole_type
from django_cqrs.documents.collections import name_of_collection, remember
from django_cqrs.documents.names import fault_in_name
from django_cqrs.documents.rows import Rows, Taken, key_of
from django_cqrs.exceptions import (
    DocumentAlreadyExists,
    DocumentNotFound,
    InvalidOption,
)
from django_cqrs.parameters.plan import Constant
from django_cqrs.parameters.planner import register_filler
from django_cqrs.parameters.services import Services

T = TypeVar("T")


class DocumentStore(Generic[T]):
    """
    A collection of values of one type, each under a key, stored as JSON.

    You can create it while a module is imported: the database is only used when a
    method is called, in the transaction that is open then. As a handler's parameter,
    ``DocumentStore[Theme]`` is ``DocumentStore(Theme)``.

    An object that was read remembers its version: saving it over one that was changed
    in the meantime raises. A value that cannot remember it, such as a dict or an object
    with only ``__slots__``, replaces the stored one, unless you give ``version=``.
    """

    def __init__(
        self, type_: type[T], /, *, collection: str = "", using: str | None = None
    ) -> None:
        """
        Define a collection.

        Args:
            type_: the type of the values: a class, or an annotation such as
                ``list[Price]``.
            collection: its name, by default that of the class: ``shop.Theme``.
            using: the database alias, by default the router's.

        """
        self._type = type_
        self._collection = collection
        self._using = using
        remember(type_, collection)

    @cached_property
    def _rows(self) -> Rows:
        own = name_of_collection(self._type, self._collection)
        if self._collection and own is not None:
            return Rows(self._type, own)
        fault = fault_in_name(self._type) if isinstance(self._type, type) else ""
        if own is None or fault:
            fault = fault or "it is not a class"
            msg = (
                f"DocumentStore({name_of_type(self._type)}) has no name for its "
                f'collection: {fault}. Give collection=, or @document("app.name").'
            )
            raise InvalidOption(msg)
        return Rows(self._type, own)

    @property
    def _alias(self) -> str:
        return self._using or self._rows.write_alias()

    def add(self, key: Any, document: T, /) -> None:
        """
        Store a value under a new key.

        Raises:
            DocumentAlreadyExists: the key is in use; the transaction can continue.
            MessageConversionError: part of it has no JSON form.

        """
        key, alias = key_of(key), self._alias
        try:
            with atomic(using=alias):
                self._rows.insert(key, document, alias)
        except Taken as error:
            msg = f"{self._rows.said(key)} exists already."
            raise DocumentAlreadyExists(msg) from error

    def update(self, key: Any, document: T, /, *, version: int | None = None) -> None:
        """
        Replace the value under a key.

        Args:
            key: the key of both values.
            document: the new value.
            version: the version of the old one, if the new one does not remember it.

        Raises:
            DocumentNotFound: the key has no value.
            ConcurrencyError: somebody else has changed or deleted it in the meantime.
            MessageConversionError: part of it has no JSON form.

        """
        key, alias = key_of(key), self._alias
        if self._is_updated(key, document, version, alias):
            return
        if version is not None and self._rows.row(key, alias) is not None:
            raise self._rows.lost(key)
        raise self._missing(key)

    def _is_updated(
        self, key: str, document: T, version: int | None, alias: str
    ) -> bool:
        """Overwrite the row of a key with a value, and return whether it exists."""
        mark = self._rows.mark_of(document)
        if version is None and mark is not None and mark.key == key:
            self._rows.update(mark, document, alias)
            return True
        rows = self._rows.all(alias).filter(key=key)
        if version is not None:
            rows = rows.filter(version=version)
        return self._rows.replace(rows, document, F("version") + 1, alias)

    def upsert(self, key: Any, document: T, /) -> None:
        """
        Store a value under a key, whether it has one or not.

        Raises:
            ConcurrencyError: the value was read, and somebody has changed it since.
            MessageConversionError: part of it has no JSON form.

        """
        key, alias = key_of(key), self._alias
        if self._is_updated(key, document, None, alias):
            return
        try:
            with atomic(using=alias):
                self._rows.insert(key, document, alias)
        except Taken:  # another one was faster
            if not self._is_updated(key, document, None, alias):
                raise self._rows.lost(key) from None

    def get(self, key: Any, /) -> T:
        """
        Return the value of a key.

        Raises:
            DocumentNotFound: the key has no value.

        """
        key = key_of(key)
        row = self._rows.row(key, self._alias)
        if row is None:
            raise self._missing(key)
        value: T = self._rows.value(row)
        return value

    def find(self, key: Any, /) -> T | None:
        """Return the value of a key, None if it has none."""
        row = self._rows.row(key_of(key), self._alias)
        return None if row is None else self._rows.value(row)

    def delete(self, key: Any, /) -> bool:
        """Delete the value of a key; return whether there was one."""
        deleted, _ = self._rows.all(self._alias).filter(key=key_of(key)).delete()
        return bool(deleted)

    def clear(self) -> int:
        """Delete all values; return their number."""
        deleted, _ = self._rows.all(self._alias).delete()
        return deleted

    def count(self) -> int:
        """Return the number of values."""
        return self._rows.all(self._alias).count()

    def list(self) -> builtins.list[T]:
        """Return all values, the oldest first."""
        return list(self._rows.values(self._alias))

    def _missing(self, key: str) -> DocumentNotFound:
        return DocumentNotFound(f"There is no {self._rows.said(key)}.")

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same collection of one database."""
        if not isinstance(other, DocumentStore):
            return NotImplemented
        return self._identity == other._identity

    def __hash__(self) -> int:
        """Return the hash of its collection and its database."""
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, str | None]:
        own = name_of_collection(self._type, self._collection)
        return str(self._type) if own is None else own.name, self._using

    def __repr__(self) -> str:
        """Return the constructor call."""
        return f"DocumentStore({name_of_type(self._type)})"


def _store_filler(annotation: Any, _services: Services) -> Constant | None:
    bare = sole_type(annotation)
    if typing.get_origin(bare) is not DocumentStore:
        return None
    (target,) = typing.get_args(bare)
    return Constant(DocumentStore(target))


register_filler(_store_filler)
