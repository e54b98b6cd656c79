"""
Positions: the numbers of events in the whole store, which grow along cause.

A transaction that appends holds back everybody who follows, until it ends: its events
may appear below those that others have committed already. What it holds is a floor, a
position below all of its own. On PostgreSQL a floor is a shared advisory lock whose key
says the position. The default of the column takes it, so that rows inserted by hand
have one as well.
"""

from __future__ import annotations

from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

BUCKETS: Final = 256
"""The number of rows that decisions lock."""

POSITION: Final = "django_cqrs_events_position"
"""The function that returns the next position; on PostgreSQL only."""

SETTLED: Final = "django_cqrs_events_settled"
"""The function that returns the settled position; on PostgreSQL only."""

# The key of an advisory lock has 64 bits: 3 for what it is, 13 for the store, since
# each schema of a database may have one, and 48 for a position. Two stores that share
# a number hold each other back, which is needless and harmless.
FLOOR_KIND: Final = 0b010
"""The highest bits of the keys of floors."""

_GATE: Final = 0b011

_NEXT: Final = """\
CREATE OR REPLACE FUNCTION {schema}.{position}() RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $function$
DECLARE
  store bigint := {sequence_name}::regclass::oid::bigint % 8192;
  setting text := 'django_cqrs.floor_' || store;
  low bigint;
BEGIN
  IF coalesce(current_setting(setting, true), '') = '' THEN
    PERFORM pg_advisory_xact_lock_shared(({gate}::bigint << 61) | (store << 48));
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END
      INTO low FROM {sequence};
    PERFORM pg_advisory_xact_lock_shared(
      ({floor}::bigint << 61) | (store << 48) | low);
    PERFORM set_config(setting, low::text, true);
  END IF;
  RETURN nextval({sequence_name}::regclass);
END
$function$"""

_LAST_SETTLED: Final = """\
CREATE OR REPLACE FUNCTION {schema}.{settled}() RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $function$
DECLARE
  store bigint := {sequence_name}::regclass::oid::bigint % 8192;
  kind bigint := ({floor}::bigint << 13) | store;
  head bigint;
  low bigint;
BEGIN
  -- The head first: a transaction that begins afterwards gets a position above it.
  SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END
    INTO head FROM {sequence};
  SELECT min(((classid::bigint & 65535) << 32) | objid::bigint) INTO low
    FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND classid::bigint >> 16 = kind
      AND pid IS DISTINCT FROM pg_backend_pid();
  RETURN least(head, low);
END
$function$"""


def complete(connection: BaseDatabaseWrapper, table: str) -> None:
    """
    Give the tables what models cannot say. Calling it twice is calling it once.

    On PostgreSQL these are the sequence of positions and the functions, on others the
    rows that decisions lock.

    Args:
        connection: to a database in which the tables were made.
        table: the name of the table of events.

    """
    with connection.cursor() as cursor:
        names = connection.introspection.table_names(cursor)
        if table not in names:
            return
        if connection.vendor == "postgresql":
            _complete_postgresql(cursor, connection.ops.quote_name(table))
        elif connection.vendor == "mysql":
            buckets = connection.ops.quote_name("django_cqrs_events_bucket")
            cursor.execute(f"SELECT COUNT(*) FROM {buckets}")
            if cursor.fetchone()[0] < BUCKETS:
                rows = ", ".join(f"({number})" for number in range(BUCKETS))
                cursor.execute(f"INSERT IGNORE INTO {buckets} (id) VALUES {rows}")


def _complete_postgresql(cursor: Any, table: str) -> None:
    cursor.execute(
        "SELECT quote_ident(n.nspname), quote_ident(c.relname), "
        "pg_get_serial_sequence(%s, 'position') "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.oid = %s::regclass",
        [table, table],
    )
    schema, name, owned = cursor.fetchone()
    table = f"{schema}.{name}"
    bare = name.strip('"')
    sequence = f'{schema}."{bare}_position"'
    cursor.execute("SELECT to_regclass(%s)", [sequence])
    if cursor.fetchone()[0] is None:
        begin = 1
        if owned is not None:  # the identity that Django has made
            cursor.execute(f"SELECT last_value, is_called FROM {owned}")
            last, is_called = cursor.fetchone()
            begin = last + is_called
        cursor.execute(
            f"ALTER TABLE {table} ALTER COLUMN position DROP IDENTITY IF EXISTS"
        )
        cursor.execute(
            f"CREATE SEQUENCE {sequence} AS bigint START WITH 1 CACHE 1 "
            f"OWNED BY {table}.position"
        )
        if begin > 1:
            cursor.execute(f"SELECT setval('{sequence}', %s, false)", [begin])
    names = {
        "schema": schema,
        "sequence": sequence,
        "sequence_name": _literal(sequence),
        "position": POSITION,
        "settled": SETTLED,
        "floor": FLOOR_KIND,
        "gate": _GATE,
    }
    cursor.execute(_NEXT.format(**names))
    cursor.execute(_LAST_SETTLED.format(**names))
    cursor.execute(
        f"ALTER TABLE {table} ALTER COLUMN position SET DEFAULT {schema}.{POSITION}()"
    )


def remove(connection: BaseDatabaseWrapper, table: str) -> None:
    """Take back what :func:`complete` has made, before the tables are dropped."""
    if connection.vendor != "postgresql":
        return
    name = connection.ops.quote_name(table)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {name} ALTER COLUMN position DROP DEFAULT")
        cursor.execute(f"DROP FUNCTION IF EXISTS {POSITION}(), {SETTLED}()")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
