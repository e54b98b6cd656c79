"""The rows of one collection, for the storage of aggregates and for the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, connections, router
from django.utils import timezone

from django_cqrs.annotations import name_of_type
from django_cqrs.conversion.limits import ensure_kept
from django_cqrs.documents.collections import Collection
from django_cqrs.documents.shapes import Mark, mark_of, put_mark
from django_cqrs.exceptions import ConcurrencyError, InvalidIdentifier
from django_cqrs.modelling.identifiers import plain
from django_cqrs.modelling.model_storage import is_violation_of
from django_cqrs.statements import fitting, written

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from django_cqrs.documents.models import Document

_LONGEST = 255


class Taken(Exception):
    """The key is in use."""


def key_of(*values: Any) -> str:
    """
    Return the key of an identifier: its text, a JSON array of texts for several.

    Raises:
        InvalidIdentifier: it is invalid, too long, or ends with a space.

    """
    if None in values or not values:
        msg = f"None is not a key of a document: {values!r}."
        raise InvalidIdentifier(msg)
    texts = [str(plain(value)) for value in values]
    key = texts[0]
    if len(texts) > 1:
        key = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    # MariaDB ignores a space at the end.
    if len(key) > _LONGEST or key.endswith(" "):
        msg = (
            f"A document's key has at most {_LONGEST} characters and does not end "
            f"with a space: {key!r}."
        )
        raise InvalidIdentifier(msg)
    return key


class Rows(Collection):
    """Reads and writes the values of one type in one collection."""

    @property
    def table(self) -> type[Document]:
        """
        The model.

        Raises:
            ImproperlyConfigured: the app is not installed.

        """
        if not apps.is_installed("django_cqrs.documents"):
            msg = "Add 'django_cqrs.documents' to INSTALLED_APPS, and migrate."
            raise ImproperlyConfigured(msg)
        return apps.get_model("django_cqrs_documents", "Document")

    def write_alias(self) -> str:
        """Ask the database router, with the collection as a hint."""
        return router.db_for_write(self.table, collection=self.name.name)

    def read_alias(self) -> str:
        """Ask the database router, with the collection as a hint."""
        return router.db_for_read(self.table, collection=self.name.name)

    def all(self, using: str) -> QuerySet[Document]:
        """Return the rows, including those stored under an old name."""
        rows = self.table._default_manager.using(using)
        return rows.filter(collection__in=self.names)

    def has(self, row: Document) -> bool:
        """Return whether a row is of this collection."""
        return row.collection in self.names

    def row(self, key: str, using: str, *, lock: bool = False) -> Document | None:
        """Return the row of a key."""
        rows = self.all(using).filter(key=key)
        if lock:
            has_no_key = connections[using].features.has_select_for_no_key_update
            rows = rows.select_for_update(no_key=has_no_key)
        found = {row.collection: row for row in rows}
        return next((found[name] for name in self.names if name in found), None)

    def value(self, row: Document) -> Any:
        """
        Return the content of a row.

        Raises:
            UnknownMessage: it was stored by newer code.
            MessageConversionError: it does not have the collection's type.

        """
        value = self.shape.load(row.content, self.name, row.collection, row.shape)
        put_mark(value, Mark(row.pk, self.name.name, row.key, row.version))
        return value

    def values(self, using: str) -> Iterator[Any]:
        """Yield all values, the oldest first."""
        for row in self.all(using).order_by("pk").iterator():
            yield self.value(row)

    def insert(self, key: str, value: Any, using: str, *, version: int = 0) -> None:
        """
        Insert a row.

        Raises:
            Taken: the key is in use.
            MessageConversionError: the value has no JSON form, or this database would
                change it.
            StatementTooLarge: it is larger than the server accepts.

        """
        content = self._content_of(value, using)
        if self.name.aliases and self.row(key, using) is not None:
            raise Taken
        now = timezone.now()
        row = self.table(
            collection=self.name.name,
            key=key,
            content=content,
            shape=self.name.version,
            version=version,
            created_at=now,
            updated_at=now,
        )
        try:
            with self._fitting(content, using, key):
                row.save(using=using, force_insert=True)
        except IntegrityError as error:
            columns = [{"collection", "key"}]
            names = {"cqrs_document_once"}
            if is_violation_of(error, {self.table._meta.db_table}, columns, names):
                raise Taken from error
            raise
        put_mark(value, Mark(row.pk, self.name.name, key, version))

    def replace(
        self, row: QuerySet[Document], value: Any, version: Any, using: str
    ) -> bool:
        """
        Overwrite a row with a value, and return whether the row existed.

        Raises:
            MessageConversionError: the value has no JSON form, or this database would
                change it.
            StatementTooLarge: it is larger than the server accepts.

        """
        content = self._content_of(value, using)
        with self._fitting(content, using):
            return bool(
                row.using(using).update(
                    collection=self.name.name,
                    content=content,
                    shape=self.name.version,
                    version=version,
                    updated_at=timezone.now(),
                )
            )

    def _content_of(self, value: Any, using: str) -> Any:
        content = self.shape.dump(value)
        ensure_kept(content, connections[using], name_of_type(self.target))
        return content

    def _fitting(
        self, content: Any, using: str, key: str = ""
    ) -> AbstractContextManager[None]:
        return fitting(
            connections[using],
            lambda: written(json.dumps(content)),
            lambda: (
                self.said(key) if key else f"An object of {name_of_type(self.target)}"
            ),
        )

    def update(self, mark: Mark, value: Any, using: str) -> None:
        """
        Overwrite the row that a value was read from.

        Raises:
            ConcurrencyError: somebody else has changed or deleted the row.
            MessageConversionError: the value has no JSON form.

        """
        version = mark.version + 1
        row = self.table._default_manager.filter(pk=mark.pk, version=mark.version)
        if not self.replace(row, value, version, using):
            raise self.lost(mark.key)
        put_mark(value, mark._replace(version=version))

    def mark_of(self, value: Any) -> Mark | None:
        """Return a value's mark of its row in this collection."""
        mark = mark_of(value)
        return mark if mark and mark.collection == self.name.name else None

    def lost(self, key: str) -> ConcurrencyError:
        """Return the error of an update that comes too late."""
        msg = (
            f"{self.said(key)} was changed or deleted by somebody else since it was "
            "read. This attempt saved nothing; try again."
        )
        return ConcurrencyError(msg)

    def said(self, key: str) -> str:
        """Return the name of a value in errors."""
        return f"{name_of_type(self.target)} {key!r} in {self.name.name!r}"
