from django.db import migrations, models

import django_cqrs.models


class Migration(migrations.Migration):
    dependencies = [
        ("django_cqrs_outbox", "0004_replay_requests"),
    ]

    operations = [
        migrations.CreateModel(
            name="StoredTaskResult",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        primary_key=True, serialize=False, verbose_name="message id"
                    ),
                ),
                ("correlation_id", models.UUIDField(verbose_name="correlation id")),
                (
                    "channel",
                    django_cqrs.models.NameField(
                        max_length=100, verbose_name="channel"
                    ),
                ),
                (
                    "endpoint",
                    django_cqrs.models.NameField(
                        max_length=255, verbose_name="endpoint"
                    ),
                ),
                ("priority", models.IntegerField(default=0, verbose_name="priority")),
                ("payload", models.BinaryField(verbose_name="payload")),
                ("enqueued_at", models.DateTimeField(verbose_name="enqueued at")),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("READY", "ready"),
                            ("FAILED", "failed"),
                            ("SUCCESSFUL", "successful"),
                        ],
                        max_length=10,
                        verbose_name="status",
                    ),
                ),
                (
                    "started_at",
                    models.DateTimeField(null=True, verbose_name="started at"),
                ),
                (
                    "last_attempted_at",
                    models.DateTimeField(verbose_name="last attempted at"),
                ),
                (
                    "finished_at",
                    models.DateTimeField(null=True, verbose_name="finished at"),
                ),
                (
                    "worker_ids",
                    models.BinaryField(default=b"[]", verbose_name="worker ids"),
                ),
                ("errors", models.BinaryField(default=b"[]", verbose_name="errors")),
                (
                    "return_value",
                    models.BinaryField(null=True, verbose_name="return value"),
                ),
            ],
            options={
                "verbose_name": "task result",
                "verbose_name_plural": "task results",
                "default_permissions": ("view",),
                "indexes": [
                    models.Index(fields=["last_attempted_at"], name="cqrs_task_last")
                ],
            },
        ),
    ]
