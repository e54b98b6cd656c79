"""What tools that watch the database let out of a message that is sent."""

import base64
import json
import os
import subprocess
import sys
from urllib.parse import quote, quote_plus

from django.db import connection

from django_cqrs.outbox.models import OutboxMessage
from tests.outbox.support import database, on_databases
from tests.outbox.watched import SECRET, WAYS

pytestmark = on_databases


def what_leaves():
    """Return what Sentry and OpenTelemetry send away, by the way of sending."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.outbox.watched"],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            **database(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def forms_of(secret):
    """Return the texts from which anybody can read a secret back."""
    as_bytes = secret.encode()
    return {
        "plain": secret,
        "part": secret.split()[0],
        "hex": as_bytes.hex(),
        "base64": base64.b64encode(as_bytes).decode()[:-4],
        "percent-encoded": quote(secret),
        "form-encoded": quote_plus(secret),
        "JSON": json.dumps(secret)[1:-1],
        "JSON for HTML": secret.replace("<", r"\u003C"),
    }


def test_no_trace_and_no_error_report_holds_what_a_message_carries():
    """
    A statement that stores a message names no payload and no header in its text.

    Sentry and OpenTelemetry report the text of every statement at their defaults, in
    spans and in the breadcrumbs of an error; parameters they leave out.
    """
    texts_by_way = what_leaves()

    assert list(texts_by_way) == list(WAYS)
    payload = json.dumps({"card": SECRET}, separators=(",", ":")).encode()
    stored = OutboxMessage.objects.values_list("payload", flat=True)
    assert {bytes(each) for each in stored} == {payload}
    table = OutboxMessage._meta.db_table
    found = []
    for way, texts in texts_by_way.items():
        telling = [text for text in texts if table in text]
        is_postgresql = connection.vendor == "postgresql"
        tools = {"sentry event", "sentry transaction"}
        tools |= {"span {"} if is_postgresql else set()
        assert {" ".join(text.split()[:2]) for text in telling} == tools
        found += [
            (way, name)
            for name, form in forms_of(SECRET).items()
            if any(form in text for text in texts)
        ]
    assert found == []
