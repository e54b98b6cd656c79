"""Keep many rows of a model by one statement: new ones are inserted, others updated."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.constants import OnConflict

from django_cqrs.events.arrays import as_array
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


class _Column:
    """Writes the values of one field for the driver."""

    def __init__(
        self, field: models.Field[Any, Any], connection: BaseDatabaseWrapper
    ) -> None:
        self.field = field
        self.attname = field.attname
        self.type = f"{field.db_type(connection)}[]"
        self.name = connection.ops.quote_name(str(field.column))
        self.is_touched = _is_touched(field)
        """Whether each save gives it a value, also if nobody has changed it."""
        target: models.Field[Any, Any] = field
        while isinstance(target, models.ForeignKey):
            target = target.target_field
        self._ready = frozenset({_READY.get(type(target), _Unusual), type(None)})
        self._is_plain = type(field).pre_save is models.Field.pre_save
        self._connection = connection

    def values(self, rows: Sequence[models.Model], *, are_new: bool) -> list[Any]:
        """Return the values of some rows."""
        field, name = self.field, self.attname
        if self._is_plain:
            values = [row.__dict__[name] for row in rows]
            if self._ready.issuperset(map(type, values)):  # nothing to prepare
                return values
        else:
            values = [field.pre_save(row, are_new) for row in rows]
        if any(hasattr(each, "resolve_expression") for each in values):
            raise _Unusual
        return [field.get_db_prep_save(each, self._connection) for each in values]


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
        self._table = connection.ops.quote_name(meta.db_table)
        columns = {
            each: _Column(each, connection)
            for each in meta.local_concrete_fields
            if not each.generated
        }
        pk = meta.pk
        self._serial: _Column | None = None
        if isinstance(pk, models.AutoField) and pk not in self.key:
            self._serial = columns.pop(pk)
        self._columns = list(columns.values())
        self._key = [columns[each] for each in self.key]
        self._changing = [
            each
            for each in self._columns
            if each not in self._key and not each.field.primary_key
        ]
        self._fits_arrays = takes_arrays(columns, connection)
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

    def write(
        self,
        new: Sequence[models.Model],
        old: Sequence[models.Model],
        changed: Collection[str],
        *,
        parts_new: bool = False,
    ) -> bool:
        """
        Insert the rows that were made, and update those that were found.

        Args:
            new: instances that were made.
            old: instances that were found and changed; all keys differ.
            changed: the attributes that were changed in any of them.
            parts_new: whether another transaction may make the same rows: new ones are
                then inserted by a statement that fails if they exist.

        Returns:
            Whether the instances still have the values of their rows: not after an
            expression.

        Raises:
            IntegrityError: a value is taken in another unique column, or is missing.

        """
        is_known = True
        changing = [
            each
            for each in self._changing
            if each.is_touched or each.attname in changed
        ]
        try:
            if self._fits_arrays:
                self._write_arrays(new, old, changing)
            elif new and old and (parts_new or self._parts_new):
                self._write_lines(new, [], changing)
                self._write_lines([], old, changing)
            else:
                self._write_lines(new, old, changing)
        except _Unusual:
            self._write_by_django(new, old, changing)
            is_known = False
        for row in new:
            row._state.adding = False
            row._state.db = self._connection.alias
        return is_known

    # Arrays ---------------------------------------------------------------------------

    def _write_arrays(
        self,
        new: Sequence[models.Model],
        old: Sequence[models.Model],
        changing: Sequence[_Column],
    ) -> None:
        """Write rows as one array a column, which are parsed and planned only once."""
        finding = [self._serial] if self._serial is not None else self._key
        updating = [*finding, *changing]
        added = [each.values(new, are_new=True) for each in self._columns]
        altered = [each.values(old, are_new=False) for each in updating]
        if not changing:
            old = []
        for start in range(0, max(len(new), len(old)), MOST_ROWS):
            end = start + MOST_ROWS
            insertion = update = ""
            parameters: list[Any] = []
            if start < len(new):
                insertion = self._insertion(added, start, end, parameters)
            if start < len(old):
                source = _unnested(updating, altered, start, end, parameters)
                names = [f"c{place}" for place in range(len(updating))]
                pairs = list(zip(updating, names, strict=True))
                found = " AND ".join(
                    f"{self._table}.{column.name} = u.{name}"
                    for column, name in pairs[: len(finding)]
                )
                given = ", ".join(
                    f"{column.name} = u.{name}"
                    for column, name in pairs[len(finding) :]
                )
                update = (
                    f"UPDATE {self._table} SET {given} "
                    f"FROM {source} AS u({', '.join(names)}) WHERE {found}"
                )
            if insertion and update:
                insertion = f"WITH made AS ({insertion}) "
            with self._connection.cursor() as cursor:
                cursor.execute(f"{insertion}{update}", parameters)

    def _insertion(
        self, added: Sequence[list[Any]], start: int, end: int, parameters: list[Any]
    ) -> str:
        names = ", ".join(each.name for each in self._columns)
        source = _unnested(self._columns, added, start, end, parameters)
        return f"INSERT INTO {self._table} ({names}) SELECT * FROM {source}"

    # Lines ----------------------------------------------------------------------------

    def _write_lines(
        self,
        new: Sequence[models.Model],
        old: Sequence[models.Model],
        changing: Sequence[_Column],
    ) -> None:
        """Write rows as lines of values; those that exist are updated."""
        if not changing:
            old = []
        if not new and not old:
            return
        columns = list(self._columns)
        lines = self._lines(columns, new, are_new=True)
        lines += self._lines(columns, old, are_new=False)
        if self._serial is not None and old:
            columns.append(self._serial)
            numbers = [*([None] * len(new)), *(each.pk for each in old)]
            for line, number in zip(lines, numbers, strict=True):
                line.append(number)
        self._insert(columns, lines, self._suffix(columns, changing) if old else "")

    @staticmethod
    def _lines(
        columns: Sequence[_Column], rows: Sequence[models.Model], *, are_new: bool
    ) -> list[list[Any]]:
        values = [each.values(rows, are_new=are_new) for each in columns]
        return [list(line) for line in zip(*values, strict=True)]

    def _insert(
        self, columns: Sequence[_Column], lines: Sequence[list[Any]], suffix: str
    ) -> None:
        names = ", ".join(each.name for each in columns)
        fields = [each.field for each in columns]
        most = self._connection.ops.bulk_batch_size(fields, lines)
        rows = min(max(1, most), MOST_ROWS)
        for part in portions(self._connection, lines, _size_of, rows=rows):
            marks = [self._marks(columns, line) for line in part]
            parameters = [
                value
                for line in part
                for value, column in zip(line, columns, strict=True)
                if not self._is_default(column, value)
            ]
            with self._connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO {self._table} ({names}) VALUES {', '.join(marks)} "
                    f"{suffix}",
                    parameters,
                )

    def _marks(self, columns: Sequence[_Column], line: Sequence[Any]) -> str:
        marks = (
            "DEFAULT" if self._is_default(column, value) else "%s"
            for column, value in zip(columns, line, strict=True)
        )
        return f"({', '.join(marks)})"

    def _is_default(self, column: _Column, value: Any) -> bool:
        """Return whether the server gives a number; others do so for NULL as well."""
        return (
            value is None
            and column is self._serial
            and self._connection.vendor == "postgresql"
        )

    def _suffix(self, columns: Sequence[_Column], changing: Sequence[_Column]) -> str:
        suffix: str = self._connection.ops.on_conflict_suffix_sql(
            [each.field for each in columns],
            OnConflict.UPDATE,
            [each.field.column for each in changing],
            [each.column for each in self.key],
        )
        return suffix

    # Others ---------------------------------------------------------------------------

    def insert_missing(self, rows: Sequence[models.Model]) -> None:
        """Insert rows, and leave those alone whose key exists."""
        lines = self._lines(self._columns, rows, are_new=True)
        if self._connection.vendor == "mysql":
            # INSERT IGNORE would ignore other errors as well.
            suffix = self._suffix(self._columns, self._key)
        else:
            suffix = self._connection.ops.on_conflict_suffix_sql(
                [each.field for each in self._columns], OnConflict.IGNORE, [], []
            )
        self._insert(self._columns, lines, suffix)

    def _write_by_django(
        self,
        new: Sequence[models.Model],
        old: Sequence[models.Model],
        changing: Sequence[_Column],
    ) -> None:
        """Write rows with expressions, such as ``F()`` or a default of the database."""
        alias = self._connection.alias
        self.model._base_manager.using(alias).bulk_create(new)
        names = [each.field.name for each in changing]
        for each in old:
            each.save(using=alias, update_fields=names)


def _unnested(
    columns: Sequence[_Column],
    values: Sequence[list[Any]],
    start: int,
    end: int,
    parameters: list[Any],
) -> str:
    """Return some rows of columns as a table; the arrays are added to parameters."""
    parameters += [as_array(each[start:end]) for each in values]
    return f"unnest({', '.join(f'%s::{each.type}' for each in columns)})"


def _is_touched(field: models.Field[Any, Any]) -> bool:
    if isinstance(field, (models.DateField, models.TimeField)):
        return field.auto_now
    if isinstance(field, models.FileField):
        return False
    return type(field).pre_save is not models.Field.pre_save


def _kind(field: models.Field[Any, Any]) -> str:
    while isinstance(field, models.ForeignKey):
        field = field.target_field
    return field.get_internal_type()


def _is_compared_loosely(key: Sequence[models.Field[Any, Any]]) -> bool:
    """Return whether two texts of a key may be equal for a collation of the server."""
    return any(_kind(each) in _TEXTS for each in key)


_TEXTS: Final = frozenset({"CharField", "FilePathField", "SlugField", "TextField"})


def takes_arrays(
    fields: Iterable[models.Field[Any, Any]], connection: BaseDatabaseWrapper
) -> bool:
    """Return whether values of some fields are passed as an array of each column."""
    return connection.vendor == "postgresql" and all(
        _kind(each) in _IN_ARRAYS for each in fields
    )


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
