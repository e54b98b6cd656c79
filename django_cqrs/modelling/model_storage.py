"""Aggregates that are Django models."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from functools import cached_property, partial
from typing import Any
from uuid import UUID

from django.core.exceptions import (
    FieldDoesNotExist,
    ObjectDoesNotExist,
    ValidationError,
)
from django.db import DatabaseError, IntegrityError, connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.annotations import name_of_type, usual_name
from django_cqrs.buses.registries import Registry
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    ConcurrencyError,
    InvalidIdentifier,
)
from django_cqrs.modelling.identifiers import Part, Values, plain
from django_cqrs.modelling.storages import Options, Storage, register_storage, said_of
from django_cqrs.modelling.watches import Image, RowWatch
from django_cqrs.problems import Problem, Rule


class ModelStorage(Storage[Any]):
    """Stores Django models with their own ``_default_manager`` and ``save()``."""

    def __init__(self, cls: type[models.Model], options: Options) -> None:
        """Take a model."""
        super().__init__(cls, options)
        self._model = cls
        self._lock_options: dict[tuple[str, bool], dict[str, Any]] = {}
        self._managers: dict[str, models.Manager[Any]] = {}

    def write_alias(self) -> str:
        """Ask the database router."""
        return router.db_for_write(self._model)

    def read_alias(self) -> str:
        """Ask the database router."""
        return router.db_for_read(self._model)

    @cached_property
    def fields(self) -> tuple[Any, ...]:
        """The fields that identify an object."""
        meta = self._model._meta
        if self.options.identifier:
            return tuple(meta.get_field(name) for name in self.options.identifier)
        pk: Any = meta.pk
        names = getattr(pk, "field_names", None)  # a CompositePrimaryKey has them
        return tuple(meta.get_field(name) for name in names) if names else (pk,)

    def make_parts(self) -> tuple[Part, ...]:
        """Return the identifier's fields, by their names in messages."""
        return tuple(self._part_of(field) for field in self.fields)

    def _part_of(self, field: Any) -> Part:
        target = _target_of(field)
        is_link = getattr(field.remote_field, "parent_link", False)
        is_own = field is target or is_link
        is_plain_id = field.primary_key and is_own and target.name == "id"
        name = usual_name(self._model) if is_plain_id else None
        if name is None and is_link:
            name = target.attname
        aliases = (name,) if name else dict.fromkeys((field.attname, field.name))
        return Part(field.attname, tuple(aliases), partial(_converted, field, target))

    def find(self, values: Values, *, using: str, lock: bool) -> Any:
        """Get the object from the default manager, its row locked if asked to."""
        rows = self._rows(using)
        wanted = dict(zip(self._lookups, values, strict=True))
        if lock and _takes_lock(rows.query, connections[using]):
            rows = rows.select_for_update(**self._locking(rows, using))
        elif lock:
            self._lock_row(wanted, using)
        try:
            return rows.get(**wanted)
        except ObjectDoesNotExist:
            return None

    def _lock_row(self, wanted: dict[str, Any], using: str) -> None:
        """Lock only the row, without the default manager's additions."""
        bare: models.QuerySet[Any] = models.QuerySet(self._model, using=using)
        rows = bare.filter(**wanted)
        rows.select_for_update(**self._locking(rows, using)).first()

    def _rows(self, using: str) -> models.QuerySet[Any]:
        """Return the default manager's rows, from one database."""
        manager = self._managers.get(using)
        if manager is None:
            manager = self._model._default_manager.db_manager(using)
            self._managers[using] = manager
        rows: Any = manager.get_queryset()
        # A project's own manager may ignore the database.
        return rows if rows._db == using else rows.using(using)  # type: ignore[no-any-return]

    @cached_property
    def _lookups(self) -> tuple[str, ...]:
        return tuple(field.attname for field in self.fields)

    def _locking(self, rows: models.QuerySet[Any], using: str) -> dict[str, Any]:
        """Return the options that lock a row and those of its parents only."""
        query = rows.query
        joins = bool(query.select_related) or len(query.alias_map) > 1
        options = self._lock_options.get((using, joins))
        if options is None:
            features = connections[using].features
            links = tuple(_parent_links(self._model))
            options = {}
            if features.has_select_for_update_of and (joins or links):
                options["of"] = ("self", *links)
            if features.has_select_for_no_key_update:
                options["no_key"] = True
            self._lock_options[using, joins] = options
        return options

    def watch(
        self,
        instance: models.Model,
        registry: Registry,
        holder: str | None = None,
        *,
        using: str,
    ) -> RowWatch:
        """Return a watch of the statements that may write the object's row."""
        return RowWatch(
            self.said,
            registry,
            holder,
            instance=instance,
            connection=connections[using],
            tables=self._tables,
            image=partial(self._image, instance.pk, using),
            version=self.options.version,
        )

    @cached_property
    def _tables(self) -> tuple[str, ...]:
        return tuple(each._meta.db_table.lower() for each in self._lineage())

    def _image(self, pk: Any, using: str) -> Image | None:
        """Return a row's present values, read the same way as the object."""
        rows: Any = models.QuerySet(self._model, using=using).filter(pk=pk)
        if self.locks and connections[using].in_atomic_block:
            rows = rows.select_for_update(**self._locking(rows, using))
        names = [
            f.attname for f in self._model._meta.concrete_fields if not f.generated
        ]
        values = rows.values_list(*names).first()
        return None if values is None else dict(zip(names, values, strict=True))

    def is_new(self, instance: models.Model) -> bool:
        """Return whether it is new by the model's own state."""
        return instance._state.adding

    def insert(self, instance: models.Model, *, using: str) -> None:
        """Insert a row, never updating an existing one."""
        try:
            self._clean(instance)
        except ValidationError as error:
            if self._is_taken_by_validation(error):
                raise self._existing(instance) from error
            raise
        try:
            # Parents too: a parent's object with this identifier is a different one.
            instance.save(using=using, force_insert=(models.Model,))
        except IntegrityError as error:
            if not self._is_taken(error, using):
                raise
            raise self._existing(instance) from error

    def _existing(self, instance: models.Model) -> AggregateAlreadyExists:
        said = said_of(self.parts, self.values_of(instance))
        msg = f"{name_of_type(self._model)} with {said} exists already."
        return AggregateAlreadyExists(msg)

    def _is_taken_by_validation(self, error: ValidationError) -> bool:
        """Return whether ``full_clean()`` found that the identifier is in use."""
        names = {field.name for field in self.fields}
        return any(
            each.code in ("unique", "unique_together") and name in names
            for name, errors in getattr(error, "error_dict", {}).items()
            for each in errors
        )

    def update(self, instance: models.Model, *, using: str) -> None:
        """Update the row, if it still has the version that was loaded."""
        if self.is_deleted(instance):
            return
        version = self.options.version
        if version is None:
            self._clean(instance)
            self._save(instance, using)
            return
        loaded = getattr(instance, version)
        setattr(instance, version, loaded + 1)
        self._clean(instance)
        # As with django-concurrency: one more condition of the UPDATE.
        with_version = partial(self._update_version, instance, {version: loaded})
        vars(instance)["_do_update"] = with_version
        try:
            self._save(instance, using)
        finally:
            del vars(instance)["_do_update"]

    def _save(self, instance: models.Model, using: str) -> None:
        try:
            instance.save(using=using, force_update=True)
        except IntegrityError:
            raise
        except DatabaseError as error:
            # The error that save() itself raises has no cause in the driver.
            if error.__cause__ is None:
                raise self._lost(instance) from error
            raise

    def _update_version(
        self,
        instance: models.Model,
        condition: Mapping[str, int],
        rows: models.QuerySet[Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        field = self._model._meta.get_field(next(iter(condition)))
        holds_version = rows.model is field.model
        if holds_version:
            rows = rows.filter(**condition)
        update: Any = type(instance)._do_update
        updated = update(instance, rows, *args, **kwargs)
        if holds_version and not updated:
            raise self._lost(instance)
        return updated

    def _lost(self, instance: models.Model) -> ConcurrencyError:
        said = said_of(self.parts, self.values_of(instance))
        msg = (
            f"{name_of_type(self._model)} with {said} was changed or deleted by "
            "somebody else since it was loaded. This attempt saved nothing; try "
            "again."
        )
        return ConcurrencyError(msg)

    def _clean(self, instance: models.Model) -> None:
        if self.options.full_clean:
            instance.full_clean()

    def delete(self, instance: models.Model, *, using: str) -> None:
        """Delete the row, with the rows that depend on it."""
        instance.delete(using=using)

    def is_deleted(self, instance: models.Model) -> bool:
        """Return whether its primary key is None, as ``delete()`` leaves it."""
        pk = instance.pk
        return pk is None or (isinstance(pk, tuple) and None in pk)

    def identifier_of(self, instance: models.Model) -> Any:
        """Return the primary key, a tuple if it is composite."""
        return instance.pk

    @property
    def identifier_type(self) -> Any:
        """The primary key's type, if it is one of Django's own fields."""
        pk: Any = self._model._meta.pk
        if getattr(pk, "field_names", None):
            return tuple
        return python_type_of(_target_of(pk))

    def problems(self) -> Iterator[Problem]:
        """Yield faults: a non-unique identifier, a version that is not a number."""
        name = name_of_type(self._model)
        if self._model._meta.abstract:
            yield Problem(
                Rule.NO_STORAGE,
                f"{name} is an abstract model: it has no table for its objects.",
                "Decorate the models that derive from it; they inherit its handlers.",
                self._model,
            )
            return
        try:
            fields = self.fields
        except FieldDoesNotExist as error:
            hint = "Name fields of the model with identifier=."
            yield Problem(Rule.NO_IDENTIFIER, f"{error}.", hint, self._model)
            return
        if self.options.identifier and not _identify(self._model, fields):
            names = ", ".join(self.options.identifier)
            yield Problem(
                Rule.NO_IDENTIFIER,
                f"{name} is identified by {names}, which is not unique.",
                "Give the field unique=True, or the fields a UniqueConstraint.",
                self._model,
            )
        version = self.options.version
        if version is not None and not _is_integer(self._model, version):
            yield Problem(
                Rule.BAD_VERSION,
                f"{name} has version={version!r}, which is not one of its integer "
                "fields.",
                "Name a PositiveIntegerField with default=0.",
                self._model,
            )

    def _is_taken(self, error: IntegrityError, using: str) -> bool:
        """Return whether an insert failed because the identifier is in use."""
        columns = [{field.column for field in self.fields}]
        table = self._model._meta.db_table
        tables = {
            table,
            *(p._meta.db_table for p in self._model._meta.get_parent_list()),
        }
        columns += [{_pk_column(each)} for each in self._lineage()]
        names = {
            constraint.name
            for constraint in self._model._meta.total_unique_constraints
            if set(constraint.fields) == {field.name for field in self.fields}
        }
        return is_violation_of(error, tables, columns, names)

    def _lineage(self) -> list[type[models.Model]]:
        return [self._model, *self._model._meta.get_parent_list()]


def _takes_lock(query: Any, connection: BaseDatabaseWrapper) -> bool:
    """Return whether a query can lock: on PostgreSQL not if rows are computed."""
    if connection.vendor != "postgresql":
        return True
    return not (
        query.distinct
        or query.group_by is not None
        or query.is_sliced
        or any(map(_is_over_rows, query.annotations.values()))
    )


def _is_over_rows(annotation: Any) -> bool:
    names = ("contains_aggregate", "contains_over_clause", "set_returning")
    return any(getattr(annotation, name, False) for name in names)


def _pk_column(model: type[models.Model]) -> str:
    pk: Any = model._meta.pk
    return pk.column or ""


def _target_of(field: Any) -> Any:
    """Return the field that a relation finally refers to; another field itself."""
    while field.remote_field is not None:
        field = field.target_field
    return field


def _converted(field: Any, target: Any, value: Any) -> Any:
    value = plain(value)
    try:
        return target.to_python(value)
    except (ValidationError, ValueError, TypeError) as error:
        kind = type(target).__name__
        msg = (
            f"{value!r} is not a valid identifier: {field.attname} has the type {kind}."
        )
        raise InvalidIdentifier(msg) from error


def _parent_links(model: type[models.Model], prefix: str = "") -> Iterator[str]:
    for parent, link in model._meta.parents.items():
        if link is not None:
            yield f"{prefix}{link.name}"
            yield from _parent_links(parent, f"{prefix}{link.name}__")


def _identify(model: type[models.Model], fields: tuple[Any, ...]) -> bool:
    """Return whether the values of some fields belong to at most one object."""
    names = {field.name for field in fields}
    if len(fields) == 1 and (fields[0].unique or fields[0].primary_key):
        return True
    pk: Any = model._meta.pk
    sets = [set(each) for each in model._meta.unique_together]
    sets += [set(each.fields) for each in model._meta.total_unique_constraints]
    sets.append(set(getattr(pk, "field_names", ())) or {pk.name})
    return any(each <= names for each in sets)


def _is_integer(model: type[models.Model], name: str) -> bool:
    try:
        return isinstance(model._meta.get_field(name), models.IntegerField)
    except FieldDoesNotExist:
        return False


_PYTHON_TYPES: tuple[tuple[type, type], ...] = (
    (models.UUIDField, UUID),
    (models.IntegerField, int),
    (models.CharField, str),
    (models.TextField, str),
    (models.DecimalField, Decimal),
)


def python_type_of(field: Any) -> Any:
    """Return the type of a field's values, Any if it is not a field of Django's."""
    return next((type_ for cls, type_ in _PYTHON_TYPES if isinstance(field, cls)), Any)


_POSTGRES_UNIQUE = "23505"
_MARIADB_DUPLICATE = 1062


def is_violation_of(
    error: IntegrityError,
    tables: set[str],
    columns: list[set[str]],
    constraints: Collection[str] = (),
) -> bool:
    """
    Return whether a row was refused because some unique columns are in use.

    Args:
        error: the error of the INSERT.
        tables: the tables that the columns may belong to.
        columns: sets of column names that are unique together.
        constraints: names of constraints that mean the same.

    The violation is read from the driver's report: the detail on PostgreSQL ("Key (a,
    b)=..."), the index on MariaDB and MySQL ("for key 'PRIMARY'"), and the columns on
    SQLite ("UNIQUE constraint failed: t.a, t.b").

    """
    cause: Any = error.__cause__
    diagnosis = getattr(cause, "diag", None)
    if diagnosis is not None:
        if getattr(diagnosis, "sqlstate", None) != _POSTGRES_UNIQUE:
            return False
        if diagnosis.constraint_name in constraints:
            return True
        found = re.search(r"\(([^)]*)\)=", diagnosis.message_detail or "")
        named = {each.strip(' "') for each in found[1].split(",")} if found else set()
        return diagnosis.table_name in tables and named in columns
    arguments = getattr(cause, "args", ())
    if arguments and arguments[0] == _MARIADB_DUPLICATE:
        key = re.search(r"for key '(?:[^']*\.)?([^'.]+)'", str(arguments[-1]))
        single = {next(iter(each)) for each in columns if len(each) == 1}
        return key is not None and (
            key[1] == "PRIMARY" or key[1] in single or key[1] in constraints
        )
    text = str(cause)
    if not text.startswith("UNIQUE constraint failed: "):
        return False
    named = set()
    for each in text.partition(": ")[2].split(", "):
        table, _, column = each.rpartition(".")
        if table not in tables:
            return False
        named.add(column)
    return named in columns


def _model_storage(cls: type, options: Options) -> ModelStorage | None:
    is_model = isinstance(cls, type) and issubclass(cls, models.Model)
    return ModelStorage(cls, options) if is_model else None


register_storage(_model_storage)
