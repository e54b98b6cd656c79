from __future__ import annotations

from django.db import migrations, models

from django_cqrs.models import NameField, PartialIndex

# The same index, as long as it has the same name.
_INDEXES = (
    ("deadletter", "cqrs_dead_subject", ["subject"], ~models.Q(subject="")),
    (
        "deadletter",
        "cqrs_dead_key",
        ["ordering_key", "endpoint", "sequence"],
        models.Q(ordering_key__isnull=False),
    ),
    (
        "outboxmessage",
        "cqrs_outbox_due",
        ["channel", "available_at"],
        models.Q(state=1),
    ),
    (
        "outboxmessage",
        "cqrs_outbox_key",
        ["ordering_key", "endpoint", "state", "sequence"],
        models.Q(ordering_key__isnull=False),
    ),
    ("outboxmessage", "cqrs_outbox_subject", ["subject"], ~models.Q(subject="")),
)


class Migration(migrations.Migration):
    """
    Compare channels, messages and subjects byte by byte on MySQL and MariaDB.

    Other databases do so already: there only what Django knows of the columns changes.
    So it is with the indexes, everywhere: nothing is done to them.
    """

    dependencies = [("django_cqrs_outbox", "0001_initial")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                operation
                for model, name, fields, where in _INDEXES
                for operation in (
                    migrations.RemoveIndex(model, name),
                    migrations.AddIndex(
                        model, PartialIndex(fields=fields, name=name, where=where)
                    ),
                )
            ]
        ),
        *(
            migrations.AlterField(model, name, field)
            for model in ("deadletter", "outboxmessage")
            for name, field in (
                ("channel", NameField("channel", max_length=100)),
                ("name", NameField("message", max_length=255, blank=True)),
                (
                    "subject",
                    NameField("subject", max_length=255, blank=True, default=""),
                ),
            )
        ),
        migrations.AlterField(
            "journalentry",
            "channel",
            NameField("channel", max_length=100, null=True),
        ),
        migrations.AlterField(
            "journalentry", "name", NameField("message", max_length=255, blank=True)
        ),
        migrations.AlterField(
            "journalentry",
            "subject",
            NameField("subject", max_length=255, blank=True, default=""),
        ),
        migrations.AlterField(
            "journalentry",
            "outcome",
            models.CharField(
                "outcome",
                choices=[
                    ("handled", "handled"),
                    ("failed", "failed"),
                    ("dropped", "failed and dropped"),
                    ("expired", "expired"),
                    ("cancelled", "cancelled"),
                ],
                max_length=10,
            ),
        ),
    ]
