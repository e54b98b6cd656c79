"""
ViewRows that handlers of projections fill: found by one query, kept by one statement.

``Annotated[OrderRow, Row("number")]`` gives a handler the row whose field ``number`` is
that attribute of the event. All rows of a batch are read together, each exists once in
it, and those that were changed are written together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from enum import Enum
from functools import partial
from operator import itemgetter
from typing import Any, Final, Literal, get_args
from uuid import UUID

from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.base import ModelState
from django.db.models.expressions import RawSQL
from django.db.models.fields import NOT_PROVIDED
from django.db.models.signals import post_init, pre_init

from django_cqrs.annotations import name_of_type
from django_cqrs.declaration.marks import Header
from django_cqrs.events.arrays import as_array
from django_cqrs.events.upserts import (
    Upsert,
    mutable_fields_of,
    takes_arrays,
    unique_sets_of,
)
from django_cqrs.exceptions import InvalidKey, MissingHeader
from django_cqrs.messages import Message

Missing = Literal["create", "ignore", "raise"]
"""The fate of an event whose row does not exist."""

Source = str | Header | Callable[[Message], Any]


class Row:
    """
    A mark: the row of a model that belongs to an event.

    ``Row("number")`` is the row whose field is equal to the event's attribute of that
    name; ``Row(number="order_no")`` names the attribute; several names make a key of
    several fields. A handler changes the row's attributes, or calls ``row.delete()``.
    """

    __slots__ = ("missing", "sources")

    def __init__(
        self, *fields: str, missing: Missing = "create", **sources: Source
    ) -> None:
        """
        Take the fields that are the key of the row.

        Args:
            fields: names of fields that are also attributes of the event.
            missing: ``"create"`` makes a row that does not exist, ``"ignore"`` does not
                call the handler, ``"raise"`` raises the model's ``DoesNotExist``.
            sources: names of fields, each with the name of an attribute, a ``Header``,
                or a callable that takes the message.

        Raises:
            TypeError: there is no field, or a value cannot be a source.
            ValueError: `missing` is another word.

        """
        if missing not in get_args(Missing):
            words = ", ".join(map(repr, get_args(Missing)))
            msg = f"Row(missing={missing!r}): one of {words}."
            raise ValueError(msg)
        self.missing: Missing = missing
        self.sources: Mapping[str, Source] = {
            **{name: name for name in fields},
            **sources,
        }
        if not self.sources or not all(isinstance(each, str) for each in self.sources):
            msg = 'Row() takes the names of fields: Row("number").'
            raise TypeError(msg)
        for name, source in self.sources.items():
            if not isinstance(source, (str, Header)) and not callable(source):
                msg = (
                    f"Row({name}={source!r}): a source is the name of an attribute, a "
                    "Header or a callable."
                )
                raise TypeError(msg)

    def __repr__(self) -> str:
        """Return the constructor call."""
        given = [
            repr(name) if name == source else f"{name}={source!r}"
            for name, source in self.sources.items()
        ]
        if self.missing != "create":
            given.append(f"missing={self.missing!r}")
        return f"Row({', '.join(given)})"


Key = tuple[Any, ...]


class Ignored(Exception):
    """The row of an event does not exist, so that its handler is not called."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RowPlan:
    """How one parameter of a handler gets its row."""

    model: type[models.Model]
    fields: tuple[models.Field[Any, Any], ...]
    """The key of the row."""
    missing: Missing
    key_of: Callable[[Message], Key]
    """Returns the key of an event's row."""

    place: tuple[Any, ...]
    """The model and the names of the key's fields: plans that share rows."""


class RowFault(Exception):
    """A mark of a row that cannot be used; the text says why."""


def row_plan(model: type[models.Model], mark: Row) -> RowPlan:
    """
    Return the plan of a parameter.

    Args:
        model: the model in its annotation.
        mark: the mark.

    Raises:
        RowFault: no row can be found, or kept, by it.

    """
    name = name_of_type(model)
    if any(not each._meta.abstract for each in model._meta.parents):
        msg = (
            f"{name} is spread over several tables, since it inherits from another "
            "model"
        )
        raise RowFault(msg)
    fields = []
    for each in mark.sources:
        try:
            field: Any = model._meta.get_field(each)
        except FieldDoesNotExist as error:
            msg = f"{name} has no field {each!r}"
            raise RowFault(msg) from error
        if not getattr(field, "concrete", False) or field not in (
            model._meta.local_concrete_fields
        ):
            msg = f"{name}.{each} is not a column"
            raise RowFault(msg)
        fields.append(field)
    names = frozenset(each.name for each in fields)
    if names not in unique_sets_of(model):
        known = ", ".join(sorted(names))
        msg = (
            f"{known} of {name} {'is' if len(names) == 1 else 'are'} not unique"
            f"{'' if len(names) == 1 else ' together'}"
        )
        raise RowFault(msg)
    readers = [
        _reader(field, source, mark)
        for field, source in zip(fields, mark.sources.values(), strict=True)
    ]
    place = (model, *(each.attname for each in fields))
    key_of = _key_reader(readers)
    return RowPlan(model, tuple(fields), mark.missing, key_of, place)


def _key_reader(
    readers: Sequence[Callable[[Message], Any]],
) -> Callable[[Message], Key]:
    if len(readers) == 1:
        [read] = readers
        return lambda message: (read(message),)
    return lambda message: tuple([read(message) for read in readers])


def _reader(
    field: models.Field[Any, Any], source: Source, mark: Row
) -> Callable[[Message], Any]:
    """Return a function from a message to the value of one field of the key."""
    target = field
    while isinstance(target, models.ForeignKey):
        target = target.target_field
    convert = target.to_python
    ready = _CLASSES.get(target.get_internal_type())
    get = _getter(source, mark)

    def read(message: Message) -> Any:
        value = get(message)
        if type(value) is ready:
            return value
        if value is None:
            msg = f"{mark} finds no row: the event has None for {field.name!r}."
            raise InvalidKey(msg)
        if isinstance(value, Enum):
            value = value.value
        try:
            return convert(getattr(value, "pk", value))
        except ValidationError as error:
            msg = f"{mark} finds no row by {field.name!r}: {error.messages[0]}"
            raise InvalidKey(msg) from error

    return read


_CLASSES: Final = {
    "CharField": str,
    "SlugField": str,
    "TextField": str,
    "UUIDField": UUID,
    **dict.fromkeys(("AutoField", "BigAutoField", "SmallAutoField"), int),
    **dict.fromkeys(("BigIntegerField", "IntegerField", "SmallIntegerField"), int),
    **dict.fromkeys(("PositiveBigIntegerField", "PositiveIntegerField"), int),
    "PositiveSmallIntegerField": int,
}
"""The classes of values that are keys as they are, by the kind of the field."""


def _getter(source: Source, mark: Row) -> Callable[[Message], Any]:
    if isinstance(source, Header):
        name = source.name

        def header(message: Message) -> Any:
            try:
                return message.headers[name]
            except KeyError:
                msg = f"{mark} finds no row: the event has no header {name!r}."
                raise MissingHeader(msg) from None

        return header
    if not isinstance(source, str):
        return source
    attribute = source

    def value(message: Message) -> Any:
        payload = message._payload
        if type(payload) is dict:
            return payload.get(attribute)
        try:
            return getattr(payload, attribute)
        except AttributeError:
            msg = (
                f"{mark} finds no row: {type(payload).__qualname__} has no "
                f"{attribute!r}."
            )
            raise InvalidKey(msg) from None

    return value


# -------------------------------------------------------------------------- of a batch


class _HeldRow:
    """A row that a batch knows, or that it knows not to exist."""

    __slots__ = ("before", "is_deleted", "row")

    def __init__(
        self, row: models.Model | None = None, before: tuple[Any, ...] | None = None
    ) -> None:
        self.row = row
        self.before = before
        """The values of a row that was found; None of one that was made."""
        self.is_deleted = False
        """Whether a row of the database is to be deleted."""


class _KeptRows:
    """The rows of one model and key."""

    def __init__(
        self, plan: RowPlan, connection: BaseDatabaseWrapper, *, locks: bool
    ) -> None:
        self._model = plan.model
        self._fields = plan.fields
        self._connection = connection
        self._upsert = Upsert(plan.model, plan.fields, connection)
        # There is one writer at a time on SQLite.
        self._locks = locks and connection.features.has_select_for_update
        self._makes_first = self._locks and self._upsert.is_unique_by_key
        self._attnames = tuple(each.attname for each in plan.fields)
        self._all = tuple(
            each.attname for each in plan.model._meta.local_concrete_fields
        )
        self._values_of = getter_of(self._all)
        self._key_of = getter_of([self._all.index(each) for each in self._attnames])
        fields = plan.model._meta.local_concrete_fields
        self._is_plain = False
        self._constants: dict[str, Any] = {}
        self._defaults: list[tuple[str, Callable[[], Any]]] = []
        for each in fields:
            if each.generated:
                continue
            if each.default is NOT_PROVIDED or isinstance(each.default, _FIXED):
                self._constants[each.attname] = each.get_default()
            else:
                self._defaults.append((each.attname, each.get_default))
        self._mutable = [
            place
            for place, name in enumerate(self._all)
            if name in mutable_fields_of(plan.model)
        ]
        self._takes_arrays = takes_arrays(plan.fields, connection)
        self._expected: dict[Key, bool] = {}
        self._held: dict[Key, _HeldRow] = {}
        self._given: dict[Key, _HeldRow] = {}

    def expect(self, key: Key, *, creates: bool) -> None:
        """Note that a row will be needed, so that it is read with others."""
        if key not in self._held:
            self._expected[key] = self._expected.get(key, False) or creates

    def get(self, key: Key, missing: Missing) -> models.Model:
        held = self._given.get(key)
        if held is not None and held.row is not None:  # it is in use
            return held.row
        held = self._held.get(key)
        if held is None:
            self.expect(key, creates=missing == "create")
            self._load()
            held = self._held[key]
        row = held.row
        if row is None:
            if missing == "ignore":
                raise Ignored
            if missing == "raise":
                names = ", ".join(
                    f"{name}={value!r}"
                    for name, value in zip(self._attnames, key, strict=True)
                )
                msg = f"There is no {name_of_type(self._model)} with {names}."
                raise self._model.DoesNotExist(msg)  # type: ignore[attr-defined]
            row = held.row = self._make(key)
        self._given[key] = held
        vars(row)["delete"] = partial(self._delete, held)
        return row

    def _make(self, key: Key) -> models.Model:
        """Return a new row, as the model's constructor makes it."""
        if not self._is_plain:
            made = self._model(**dict(zip(self._attnames, key, strict=True)))
            made._state.db = self._connection.alias
            return made
        made = self._model.__new__(self._model)
        state = made._state = ModelState()
        state.db = self._connection.alias
        values = vars(made)
        values.update(self._constants)
        for name, default in self._defaults:
            values[name] = default()
        values.update(zip(self._attnames, key, strict=True))
        return made

    def _delete(
        self, held: _HeldRow, *_args: Any, **_options: Any
    ) -> tuple[int, dict[str, int]]:
        """Take the place of the row's own ``delete()``."""
        held.is_deleted = held.is_deleted or held.before is not None
        held.row = held.before = None
        return 1, {self._model._meta.label: 1}

    def _load(self) -> None:
        """Read all rows that are expected, by one query if they are not locked."""
        wanted, self._expected = self._expected, {}
        keys = list(wanted)
        if self._makes_first:
            self._make_missing([key for key, creates in wanted.items() if creates])
        for key in keys:
            self._held[key] = _HeldRow()
        self._is_plain = _is_plain(self._model)
        make = _maker_of(self._model, self._all, self._connection.alias)
        for some in self._portions(keys):
            rows = self._rows(some)
            if self._locks:
                rows = rows.order_by(*self._attnames).select_for_update()
            for values in rows.values_list(*self._all):
                held = self._held.get(self._key_of(values))
                if held is not None:  # else it is equal for a collation alone
                    held.row, held.before = make(values), self._copied(values)

    def _copied(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the values of a row; those that may change in place are copied."""
        if not self._mutable:
            return values
        copied = list(values)
        for place in self._mutable:
            copied[place] = deepcopy(copied[place])
        return tuple(copied)

    def _portions(self, keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
        """Divide keys into statements that a server accepts."""
        most = self._connection.features.max_query_params
        size = MOST_KEYS if most is None else most // len(self._attnames)
        size = min(size, MOST_KEYS)
        for start in range(0, len(keys), size):
            yield keys[start : start + size]

    def _rows(self, keys: Sequence[Key]) -> models.QuerySet[models.Model]:
        manager = self._model._base_manager.using(self._connection.alias)
        if len(self._attnames) == 1 and not self._takes_arrays:
            [name] = self._attnames
            return manager.filter(**{f"{name}__in": [value for (value,) in keys]})
        return manager.filter(self._among(keys))

    def _among(self, keys: Sequence[Key]) -> RawSQL:
        """Return the condition that a key is one of these."""
        quote = self._connection.ops.quote_name
        table = quote(self._model._meta.db_table)
        columns = ", ".join(
            f"{table}.{quote(str(each.column))}" for each in self._fields
        )
        parameters: list[Any] = []
        if self._takes_arrays:  # one array a column, which is parsed only once
            types = [f"%s::{each.db_type(self._connection)}[]" for each in self._fields]
            condition = f"{columns} = ANY({types[0]})"
            if len(types) > 1:
                condition = f"({columns}) IN (SELECT * FROM unnest({', '.join(types)}))"
            parameters += map(as_array, zip(*keys, strict=True))
        else:
            line = f"({', '.join(['%s'] * len(self._fields))})"
            lines = ", ".join([line] * len(keys))
            if self._connection.vendor == "sqlite":
                lines = f"VALUES {lines}"
            condition = f"({columns}) IN ({lines})"
            parameters += [
                field.get_db_prep_value(value, self._connection)
                for key in keys
                for field, value in zip(self._fields, key, strict=True)
            ]
        return RawSQL(  # noqa: S611 - names of columns; values are parameters
            condition, parameters, output_field=models.BooleanField()
        )

    def _make_missing(self, keys: Sequence[Key]) -> None:
        """
        Insert the rows that do not exist, so that they can be locked like others.

        Without that, two transactions would both make a row, and the second would
        overwrite the first one's. Where a column has no default, the second fails.
        """
        known: set[Any] = set()
        for some in self._portions(keys):
            known.update(self._rows(some).values_list(*self._attnames))
        made = [self._make(key) for key in sorted(set(keys) - known)]
        if made and all(map(_has_all_values, made)):
            self._upsert.insert_missing(made)

    @property
    def is_pending(self) -> bool:
        """Whether rows were given to handlers since they were last written."""
        return bool(self._given)

    def flush(self) -> None:
        """
        Write the rows that were changed, and delete those that were deleted.

        Raises:
            IntegrityError: a value is taken in another unique column, or is missing; or
                another transaction has made one of the rows.

        """
        given, self._given = self._given, {}
        new: list[tuple[Key, _HeldRow, models.Model]] = []
        old: list[tuple[Key, _HeldRow, models.Model]] = []
        pairs: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []
        deleted: list[Key] = []
        for key, held in given.items():
            row = held.row
            if held.is_deleted:
                deleted.append(key)
                held.is_deleted = False
            if row is None:
                continue
            vars(row).pop("delete", None)
            if held.before is None:
                new.append((key, held, row))
                continue
            values = self._values_of(vars(row))
            if values != held.before:
                old.append((key, held, row))
                pairs.append((held.before, values))
        for some in self._portions(deleted):
            self._rows(some).delete()
        if not new and not old:
            return
        if self._locks:
            new.sort(key=itemgetter(0))
            old.sort(key=itemgetter(0))
        is_known = self._upsert.write(
            [row for _, _, row in new],
            [row for _, _, row in old],
            self._changed(pairs),
            parts_new=self._locks,
        )
        for key, held, row in (*new, *old):
            if is_known:
                held.before = self._copied(self._values_of(vars(row)))
            else:  # the database has computed something
                self._held.pop(key, None)

    def _changed(
        self, pairs: Sequence[tuple[tuple[Any, ...], tuple[Any, ...]]]
    ) -> set[str]:
        """Return the attributes that differ in any row."""
        return {
            name
            for place, name in enumerate(self._all)
            if any(before[place] != after[place] for before, after in pairs)
        }

    def forget(self) -> None:
        """Forget all rows: they are read again when they are needed."""
        self._held = {}
        self._given = {}
        self._expected = {}


def getter_of(places: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function from a dict, or a tuple, to a tuple of some of its values."""
    if len(places) == 1:
        [place] = places
        return lambda held: (held[place],)
    return itemgetter(*places)


def _is_plain(model: Any) -> bool:
    """Return whether nothing happens when an instance is made, but its attributes."""
    plain: Any = models.Model
    return (
        model.from_db.__func__ is plain.from_db.__func__
        and model.__init__ is plain.__init__
        and not pre_init.has_listeners(model)
        and not post_init.has_listeners(model)
    )


def _maker_of(
    model: type[models.Model], names: Sequence[str], alias: str
) -> Callable[[tuple[Any, ...]], models.Model]:
    """Return a function that makes an instance of a row, as a queryset would."""
    given: Any = model
    if not _is_plain(model):
        return lambda values: given.from_db(alias, names, values)

    def make(values: tuple[Any, ...]) -> models.Model:
        row = given.__new__(given)
        state = row._state = ModelState()
        state.adding, state.db = False, alias
        vars(row).update(zip(names, values, strict=True))
        return row  # type: ignore[no-any-return]

    return make


# Defaults that are the same for every row.
_FIXED: Final = (bool, int, str, float, type(None))

MOST_KEYS: Final = 5000
"""The maximum number of keys in a query."""


def _has_all_values(row: models.Model) -> bool:
    """Return whether a row can be inserted as it was made: its columns have values."""
    return all(
        field.null
        or field.primary_key
        or getattr(field, "auto_now", False)
        or getattr(field, "auto_now_add", False)
        or getattr(row, field.attname) is not None
        for field in row._meta.local_concrete_fields
        if not field.generated
    )


class ViewRows:
    """The rows of a projection in one database: used by one batch after another."""

    def __init__(self, connection: BaseDatabaseWrapper, *, locks: bool = False) -> None:
        """
        Start without rows.

        Args:
            connection: of the database.
            locks: whether others may write the same rows at the same time: they are
                then locked, in the order of their keys.

        """
        self._connection = connection
        self._locks = locks
        self._kept: dict[tuple[Any, ...], _KeptRows] = {}

    def table_of(self, plan: RowPlan) -> _KeptRows:
        """Return the rows of a plan's model and key."""
        kept = self._kept.get(plan.place)
        if kept is None:
            kept = _KeptRows(plan, self._connection, locks=self._locks)
            self._kept[plan.place] = kept
        return kept

    def expect(self, plan: RowPlan, key: Key) -> None:
        """Note that a row will be needed: those expected are read by one query."""
        self.table_of(plan).expect(key, creates=plan.missing == "create")

    def get(self, plan: RowPlan, key: Key) -> models.Model:
        """
        Return a row.

        Raises:
            Ignored: it does not exist, and its handler is not to be called.
            ObjectDoesNotExist: it does not exist, and the mark says to raise.

        """
        return self.table_of(plan).get(key, plan.missing)

    @property
    def is_pending(self) -> bool:
        """Whether rows were given to handlers since they were last written."""
        return any(each.is_pending for each in self._kept.values())

    def flush(self) -> None:
        """
        Write what handlers have changed, models in the order of their first use.

        Raises:
            IntegrityError: a value is taken in another unique column, or is missing.

        """
        for each in self._kept.values():
            if each.is_pending:
                each.flush()

    def forget(self) -> None:
        """Forget all rows, of which none is pending, or whose changes are lost."""
        for each in self._kept.values():
            each.forget()
