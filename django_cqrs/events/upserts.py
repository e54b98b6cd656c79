"""Keep many rows of a model by one statement: new ones are inserted, others updated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.constants import OnConflict

from django_cqrs.statements import portions

MOST_ROWS: Final = 1000
"""The maximum number of rows in a statement."""

# The classes of values that need no preparation, by the exact class of the field.
_READY: Final[dict[type, type]] = {
    **dict.fromkeys(
        (
            *(models.AutoField, models.BigAutoField, models.SmallAutoField),
            *(models.IntegerField, models.BigIntegerField, models.SmallIntegerField),
            models.PositiveBigIntegerField,
            models.PositiveIntegerField,
            models.PositiveSmallIntegerField,
        ),
        int,
    ),
    **dict.fromkeys((models.CharField, models.SlugField, models.TextField), str),
    models.BooleanField: bool,
}

# Fields whose values PostgreSQL takes in an array of their type. An array of arrays,
# for example, would be unnested to its elements.
_IN_ARRAYS: Final = frozenset(
    {
        *("AutoField", "BigAutoField", "SmallAutoField", "BooleanField", "CharField"),
        *("BigIntegerField", "IntegerField", "SmallIntegerField", "DateField"),
        *("PositiveBigIntegerField", "PositiveIntegerField", "DateTimeField"),
        *("PositiveSmallIntegerField", "DecimalField", "DurationField", "FloatField"),
        *("FileField", "FilePathField", "GenericIPAddressField", "JSONField"),
        *("SlugField", "TextField", "TimeField", "UUIDField"),
    }
)


class _Unusual(Exception):
    """A value is an expression, which only Django's own statements can write."""


Writer = Callable[[models.Model, bool], Any]
"""Returns the value of a column for the driver; the second says whether it is new."""


class Upsert:
    """Writes the rows of one model, found by one unique key, in one database."""

    def __init__(
        self,
        model: type[models.Model],
        key: Sequence[models.Field[Any, Any]],
        connection: BaseDatabaseWrapper,
    ) -> None:
        """
        Prepare the statements.

        Args:
            model: without a parent that has a table of its own.
            key: the fields that are unique together.
            connection: of the database with its table.

        """
        meta = model._meta
        self.model = model
        self.key = tuple(key)
        self._connection = connection
        self._quote = connection.ops.quote_name
        self._table = self._quote(meta.db_table)
        fields = [each for each in meta.local_concrete_fields if not each.generated]
        pk = meta.pk
        self._serial: models.Field[Any, Any] | None = None
        if isinstance(pk, models.AutoField) and pk not in self.key:
            self._serial = pk
        self._fields = [each for each in fields if each is not self._serial]
        self._changed = [
            each
            for each in self._fields
            if each not in self.key and not each.primary_key
        ]
        self._writers = [_writer(each, connection) for each in self._fields]
        self._fits_arrays = connection.vendor == "postgresql" and all(
            _kind(each) in _IN_ARRAYS for each in fields
        )
        wanted = frozenset(each.name for each in self.key)
        self.is_unique_by_key = all(
            names == wanted for names in unique_sets_of(model, with_serial=False)
        )
        """Whether no other column must be unique, except for a serial number."""
        # On MySQL and MariaDB the statement would update a row that is equal in another
        # unique column, or in the eyes of a collation.
        self._parts_new = connection.vendor == "mysql" and not (
            self.is_unique_by_key and not _is_compared_loosely(self.key)
        )

    def write(self, rows: Sequence[models.Model], *, parts_new: bool = False) -> None:
        """
        Insert the rows that were made, and update those that were found.

        Args:
            rows: instances of the model, whose keys differ.
            parts_new: whether another transaction may make the same rows: new ones are
                then inserted by a statement that fails if they exist.

        Raises:
            IntegrityError: a value is taken in another unique column, or is missing.

        """
        if parts_new or self._parts_new:
            new = [each for each in rows if each._state.adding]
            groups = [new, [each for each in rows if not each._state.adding]]
        else:
            groups = [list(rows)]
        for group in filter(None, groups):
            self._write_group(group)
        for row in rows:
            row._state.adding = False
            row._state.db = self._connection.alias

    def insert_missing(self, rows: Sequence[models.Model]) -> None:
        """Insert rows, and leave those alone whose key exists."""
        values = [[write(row, True) for write in self._writers] for row in rows]
        for part in self._portions(values):
            self._execute(part, has_new=True, has_old=False, ignores=True)

    def _portions(self, values: list[list[Any]]) -> Iterable[Sequence[list[Any]]]:
        fields = [*self._fields, *([self._serial] if self._serial is not None else [])]
        most = self._connection.ops.bulk_batch_size(fields, values)
        rows = min(max(1, most), MOST_ROWS)
        return portions(self._connection, values, _size_of, rows=rows)

    def _write_group(self, rows: list[models.Model]) -> None:
        has_new = any(each._state.adding for each in rows)
        has_old = any(not each._state.adding for each in rows)
        if not has_new and not self._changed:
            return
        try:
            values = [
                [write(row, row._state.adding) for write in self._writers]
                for row in rows
            ]
        except _Unusual:
            self._write_by_django(rows, has_old=has_old)
            return
        if self._serial is not None and has_old:  # new rows have none yet
            for line, row in zip(values, rows, strict=True):
                line.append(None if row._state.adding else row.pk)
        for part in self._portions(values):
            self._execute(part, has_new=has_new, has_old=has_old)

    def _execute(
        self,
        values: Sequence[list[Any]],
        *,
        has_new: bool,
        has_old: bool,
        ignores: bool = False,
    ) -> None:
        fields = list(self._fields)
        if self._serial is not None and has_old:
            fields.append(self._serial)
        columns = ", ".join(self._quote(str(each.column)) for each in fields)
        parameters: list[Any]
        if self._fits_arrays:
            source, parameters = self._arrays(fields, values, has_new=has_new)
        else:
            source, parameters = self._lines(fields, values)
        suffix = ""
        if ignores or has_old:  # else a row of the same key is an error
            suffix = self._suffix(fields, ignores=ignores)
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {self._table} ({columns}) {source} {suffix}", parameters
            )

    def _arrays(
        self,
        fields: Sequence[models.Field[Any, Any]],
        values: Sequence[list[Any]],
        *,
        has_new: bool,
    ) -> tuple[str, list[Any]]:
        """Return rows as one array a column, which is parsed and planned only once."""
        names = [f"c{place}" for place in range(len(fields))]
        arrays = ", ".join(f"%s::{each.db_type(self._connection)}[]" for each in fields)
        parameters: list[Any] = [list(column) for column in zip(*values, strict=True)]
        taken = [f"u.{name}" for name in names]
        if fields[-1] is self._serial and has_new:
            taken[-1] = (
                f"COALESCE({taken[-1]}, nextval(pg_get_serial_sequence(%s, %s)))"
            )
            parameters = [self._table, fields[-1].column, *parameters]
        return (
            f"SELECT {', '.join(taken)} FROM unnest({arrays}) AS u({', '.join(names)})",
            parameters,
        )

    def _lines(
        self, fields: Sequence[models.Field[Any, Any]], values: Sequence[list[Any]]
    ) -> tuple[str, list[Any]]:
        is_postgresql = self._connection.vendor == "postgresql"
        lines, parameters = [], []
        for line in values:
            marks = ["%s"] * len(line)
            if is_postgresql and fields[-1] is self._serial and line[-1] is None:
                marks[-1] = "DEFAULT"
                parameters += line[:-1]
            else:
                parameters += line
            lines.append(f"({', '.join(marks)})")
        return f"VALUES {', '.join(lines)}", parameters

    def _suffix(
        self, fields: Sequence[models.Field[Any, Any]], *, ignores: bool
    ) -> str:
        keys = [each.column for each in self.key]
        changed = [each.column for each in self._changed] or keys
        conflict = OnConflict.UPDATE
        if ignores and self._connection.vendor == "mysql":
            changed = keys  # INSERT IGNORE would ignore other errors as well
        elif ignores:
            conflict = OnConflict.IGNORE
        suffix: str = self._connection.ops.on_conflict_suffix_sql(
            fields, conflict, changed, keys
        )
        return suffix

    def _write_by_django(self, rows: list[models.Model], *, has_old: bool) -> None:
        """Write rows with expressions, such as ``F()`` or a default of the database."""
        new = [each for each in rows if each._state.adding]
        old = [each for each in rows if not each._state.adding]
        manager = self.model._base_manager.using(self._connection.alias)
        manager.bulk_create(new)
        names = [each.name for each in self._changed]
        for each in old:
            each.save(using=self._connection.alias, update_fields=names)


def _writer(field: models.Field[Any, Any], connection: BaseDatabaseWrapper) -> Writer:
    attname = field.attname
    target: models.Field[Any, Any] = field
    while isinstance(target, models.ForeignKey):
        target = target.target_field
    ready = _READY.get(type(target))
    prepare = field.get_db_prep_save
    is_plain = type(field).pre_save is models.Field.pre_save

    def write(row: models.Model, is_new: bool) -> Any:
        value = getattr(row, attname) if is_plain else field.pre_save(row, is_new)
        if value is None or type(value) is ready:
            return value
        if hasattr(value, "resolve_expression"):
            raise _Unusual
        return prepare(value, connection)

    return write


def _kind(field: models.Field[Any, Any]) -> str:
    while isinstance(field, models.ForeignKey):
        field = field.target_field
    return field.get_internal_type()


def _is_compared_loosely(key: Sequence[models.Field[Any, Any]]) -> bool:
    """Return whether two texts of a key may be equal for a collation of the server."""
    return any(_kind(each) in _TEXTS for each in key)


_TEXTS: Final = frozenset({"CharField", "FilePathField", "SlugField", "TextField"})


def mutable_fields_of(model: type[models.Model]) -> tuple[str, ...]:
    """Return the attributes of a model whose values may be changed in place."""
    return tuple(
        each.attname
        for each in model._meta.local_concrete_fields
        if _kind(each) not in _IN_ARRAYS - {"JSONField"}
    )


def unique_sets_of(
    model: type[models.Model], *, with_serial: bool = True
) -> list[frozenset[str]]:
    """
    Return the names of fields that are unique, alone or together.

    Args:
        model: the model.
        with_serial: whether a key that the database makes counts as well.

    """
    meta = model._meta
    found = [
        frozenset({each.name})
        for each in meta.local_concrete_fields
        if each.unique and (with_serial or not isinstance(each, models.AutoField))
    ]
    pk: Any = getattr(meta, "pk_fields", None)
    if pk and len(pk) > 1:
        found.append(frozenset(each.name for each in pk))
    found += [frozenset(names) for names in meta.unique_together]
    found += [
        frozenset(each.fields) for each in meta.total_unique_constraints if each.fields
    ]
    return list(dict.fromkeys(found))


def _size_of(values: list[Any]) -> int:
    """Return the maximum number of bytes of a row in a statement."""
    return sum(
        2 * len(each) + 4 if isinstance(each, (str, bytes)) else 64 for each in values
    )
