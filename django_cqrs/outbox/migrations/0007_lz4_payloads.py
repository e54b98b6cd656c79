from __future__ import annotations

from typing import Any

from django.db import migrations
from django.db.backends.base.base import BaseDatabaseWrapper

_HAS_LZ4 = (
    "SELECT 1 FROM pg_settings "
    "WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)"
)


def use_lz4(apps: Any, schema_editor: Any) -> None:
    """
    Have the server compress payloads with lz4, if it can.

    PostgreSQL compresses values over 2 kB, by default with pglz, which takes several
    times as long. It knows lz4 from version 14 on, if it was built with it. Otherwise,
    and on other databases, nothing changes. Rows that are stored already stay as they
    are: the server reads both.
    """
    connection: BaseDatabaseWrapper = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        # It is asked, not tried: an error would undo the whole migration.
        cursor.execute(_HAS_LZ4)
        if cursor.fetchone() is None:
            return
        for name in ("OutboxMessage", "DeadLetter"):
            model = apps.get_model("django_cqrs_outbox", name)
            table = connection.ops.quote_name(model._meta.db_table)
            column = connection.ops.quote_name(model._meta.get_field("payload").column)
            cursor.execute(
                f"ALTER TABLE {table} ALTER COLUMN {column} SET COMPRESSION lz4"
            )


class Migration(migrations.Migration):
    """Compress payloads with lz4 on PostgreSQL."""

    dependencies = [("django_cqrs_outbox", "0006_journal_by_message")]

    operations = [migrations.RunPython(use_lz4, migrations.RunPython.noop)]
