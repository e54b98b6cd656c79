from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("django_cqrs_outbox", "0002_names_compared_by_bytes")]

    operations = [
        migrations.AddField(
            model_name="outboxmessage",
            name="last_error",
            field=models.TextField(null=True, verbose_name="last error"),
        ),
    ]
