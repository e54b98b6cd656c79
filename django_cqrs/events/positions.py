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

APPEND: Final = "django_cqrs_events_append"
"""The function that appends events to a stream; on PostgreSQL only."""

FUNCTIONS: Final = (POSITION, SETTLED, APPEND)
"""The names of the functions."""

# The key of an advisory lock has 64 bits: 3 for what it is, 13 for the store, since
# each schema of a database may have one, and 48 for a position. Two stores that share
# a number hold each other back, which is needless and harmless.
FLOOR_KIND: Final = 0b010
"""The highest bits of the keys of floors."""

_GATE_KIND: Final = 0b011

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


# A function, since the server keeps the plans of its statements, and since each of them
# sees what was committed before it: once the stream is locked, its last version.
_APPEND: Final = """\
CREATE OR REPLACE FUNCTION {schema}.{append}(
  given_category text, given_key text, given_stream bigint, expected integer,
  events jsonb
) RETURNS TABLE (at_position bigint, at_version integer, at_stream bigint)
LANGUAGE plpgsql VOLATILE AS $function$
#variable_conflict use_column
DECLARE
  target bigint := given_stream;
  last integer := CASE WHEN given_category IS NULL AND given_stream IS NULL
    THEN NULL ELSE expected END;
  positions bigint[];
BEGIN
  IF given_category IS NOT NULL AND target IS NULL THEN
    IF expected < 0 THEN
      SELECT s.id INTO target FROM {streams} s
        WHERE s.category = given_category AND s.key = given_key FOR NO KEY UPDATE;
    ELSE
      SELECT s.id INTO target FROM {streams} s
        WHERE s.category = given_category AND s.key = given_key;
    END IF;
    IF target IS NULL THEN
      IF expected NOT IN ({any}, 0) THEN RETURN; END IF;
      INSERT INTO {streams} (category, key, created_at, first_version)
        VALUES (given_category, given_key, clock_timestamp(), 1)
        ON CONFLICT DO NOTHING RETURNING id INTO target;
      IF target IS NULL THEN RETURN; END IF;
      last := 0;
    ELSE
      SELECT e.version INTO last FROM {table} e
        WHERE e.stream_id = target ORDER BY e.version DESC LIMIT 1;
      last := coalesce(last, 0);
      IF last <> expected AND (expected >= 0 OR expected = {exists} AND last = 0) THEN
        RETURN;
      END IF;
    END IF;
  END IF;
  IF jsonb_array_length(events) = 1 AND NOT events->0 ? 'tags' THEN
    RETURN QUERY INSERT INTO {table} (
        stream_id, version, name, shape, payload, headers,
        event_id, correlation_id, causation_id, recorded_at
      ) VALUES (
        target, last + 1, events->0->>'name', (events->0->>'shape')::smallint,
        events->0->'payload', events->0->'headers',
        (events->0->>'id')::uuid, (events->0->>'correlation')::uuid,
        (events->0->>'causation')::uuid, (events->0->>'time')::timestamptz
      ) ON CONFLICT DO NOTHING RETURNING position, version, stream_id;
    RETURN;
  END IF;
  WITH inserted AS (
    INSERT INTO {table} (
        stream_id, version, name, shape, payload, headers,
        event_id, correlation_id, causation_id, recorded_at
      ) SELECT target, last + n.number::integer, n.event->>'name',
        (n.event->>'shape')::smallint, n.event->'payload', n.event->'headers',
        (n.event->>'id')::uuid, (n.event->>'correlation')::uuid,
        (n.event->>'causation')::uuid, (n.event->>'time')::timestamptz
      FROM jsonb_array_elements(events) WITH ORDINALITY AS n (event, number)
      ORDER BY n.number
      ON CONFLICT DO NOTHING RETURNING position
  ) SELECT array_agg(position ORDER BY position) INTO positions FROM inserted;
  IF coalesce(cardinality(positions), 0) < jsonb_array_length(events) THEN
    DELETE FROM {table} e WHERE e.position = ANY (positions);
    RETURN;
  END IF;
  INSERT INTO {tags} (tag, position, name)
    SELECT t.tag, positions[n.number], n.event->>'name'
    FROM jsonb_array_elements(events) WITH ORDINALITY AS n (event, number)
    CROSS JOIN jsonb_array_elements_text(n.event->'tags') AS t (tag);
  RETURN QUERY SELECT p.position, last + p.number::integer, target
    FROM unnest(positions) WITH ORDINALITY AS p (position, number);
END
$function$"""

ANY_VERSION: Final = -1
"""The number that stands for any version, in that function."""

SOME_VERSION: Final = -2
"""The number that stands for any version but none."""


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
        "gate": _GATE_KIND,
        "append": APPEND,
        "table": table,
        "streams": f'{schema}."django_cqrs_events_stream"',
        "tags": f'{schema}."django_cqrs_events_eventtag"',
        "any": ANY_VERSION,
        "exists": SOME_VERSION,
    }
    for function in (_NEXT, _LAST_SETTLED, _APPEND):
        cursor.execute(function.format(**names))
    if not has_default(cursor, table):  # to change it locks the table
        cursor.execute(
            f"ALTER TABLE {table} ALTER COLUMN position "
            f"SET DEFAULT {schema}.{POSITION}()"
        )


def schema_of(cursor: Any, table: str) -> str:
    """Return the schema of a table, as it is quoted in SQL."""
    cursor.execute(
        "SELECT quote_ident(n.nspname) FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::regclass",
        [table],
    )
    schema: str = cursor.fetchone()[0]
    return schema


def has_default(cursor: Any, table: str) -> bool:
    """Return whether the default of the positions is the function."""
    cursor.execute(
        "SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_attribute a "
        "ON a.attrelid = d.adrelid AND a.attnum = d.adnum "
        "WHERE d.adrelid = %s::regclass AND a.attname = 'position'",
        [table],
    )
    found = cursor.fetchone()
    return found is not None and f"{POSITION}()" in found[0]


def remove(connection: BaseDatabaseWrapper, table: str) -> None:
    """Take back what :func:`complete` has made, before the tables are dropped."""
    if connection.vendor != "postgresql":
        return
    name = connection.ops.quote_name(table)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {name} ALTER COLUMN position DROP DEFAULT")
        cursor.execute(f"DROP FUNCTION IF EXISTS {POSITION}(), {SETTLED}()")
        cursor.execute(f"DROP FUNCTION IF EXISTS {APPEND}")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
