"""Collections of documents, by hand: values of one type, each under its key."""

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
    A collection of values of one type, each under a key, kept as JSON.

    It can be made where a module is imported: it is the database that is asked when a
    method is called, in whichever transaction is open then. As a handler's parameter
    ``DocumentStore[Theme]`` is ``DocumentStore(Theme)``.

    An object that was read remembers its version: saving it over one that was changed
    meanwhile raises. A value that remembers nothing, such as a dict or an object with
    ``__slots__`` alone, replaces what is there, unless ``version=`` is given.
    """

    def __init__(
        self, type_: type[T], /, *, collection: str = "", using: str | None = None
    ) -> None:
        """
        Take what the collection is of.

        Args:
            type_: of the values: a class, or an annotation such as ``list[Price]``.
            collection: its name, by default that of the class: ``shop.Theme``.
            using: the database alias, by default what the router says.

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
        Keep a value under a new key.

        Raises:
            DocumentAlreadyExists: the key has one; the transaction can go on.
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
        Keep a value instead of the one under its key.

        Args:
            key: of both.
            document: the new one.
            version: of the old one, where the new one does not remember it.

        Raises:
            DocumentNotFound: the key has none.
            ConcurrencyError: somebody else has changed it, or deleted it, meanwhile.
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
        """Write a value over the row of its key, and return whether there is one."""
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
        Keep a value under a key, whether there is one or not.

        Raises:
            ConcurrencyError: this one was read, and somebody has changed it meanwhile.
            MessageConversionError: part of it has no JSON form.

        """
        key, alias = key_of(key), self._alias
        if self._is_updated(key, document, None, alias):
            return
        try:
            with atomic(using=alias):
                self._rows.insert(key, document, alias)
        except Taken:  # somebody else was first
            if not self._is_updated(key, document, None, alias):
                raise self._rows.lost(key) from None

    def get(self, key: Any, /) -> T:
        """
        Return the value of a key.

        Raises:
            DocumentNotFound: there is none.

        """
        key = key_of(key)
        row = self._rows.row(key, self._alias)
        if row is None:
            raise self._missing(key)
        value: T = self._rows.value(row)
        return value

    def find(self, key: Any, /) -> T | None:
        """Return the value of a key, None where there is none."""
        row = self._rows.row(key_of(key), self._alias)
        return None if row is None else self._rows.value(row)

    def delete(self, key: Any, /) -> bool:
        """Forget the value of a key; return whether there was one."""
        deleted, _ = self._rows.all(self._alias).filter(key=key_of(key)).delete()
        return bool(deleted)

    def clear(self) -> int:
        """Forget all values; return how many there were."""
        deleted, _ = self._rows.all(self._alias).delete()
        return deleted

    def count(self) -> int:
        """Return how many values there are."""
        return self._rows.all(self._alias).count()

    def list(self) -> builtins.list[T]:
        """Return all values, the oldest first."""
        return list(self._rows.values(self._alias))

    def _missing(self, key: str) -> DocumentNotFound:
        return DocumentNotFound(f"There is no {self._rows.said(key)}.")

    def __repr__(self) -> str:
        """Return it as it is written."""
        return f"DocumentStore({name_of_type(self._type)})"


def _store_filler(annotation: Any, _services: Services) -> Constant | None:
    bare = sole_type(annotation)
    if typing.get_origin(bare) is not DocumentStore:
        return None
    (target,) = typing.get_args(bare)
    return Constant(DocumentStore(target))


register_filler(_store_filler)
