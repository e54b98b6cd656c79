"""What Sentry, at its defaults, makes of messages that fail for good."""

import json
import os
import subprocess
import sys

from django_cqrs.conversion.masking import MASK
from django_cqrs.outbox.models import DeadLetter
from tests.outbox.support import database, on_databases
from tests.outbox.test_tracing_tools import forms_of
from tests.outbox.watched import SECRET

pytestmark = on_databases


def test_a_dead_letter_is_one_report_of_its_handler_and_exception():
    """
    Each dead letter is one error with its exception, and attempts before it are none.

    The template of the log, by which a tracker tells issues apart, is one for each
    handler and exception. The traceback leads to the handler's own line. Nothing that
    is sent away has a sensitive value, in whatever form.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.outbox.reported"],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", **database()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    texts = json.loads(done.stdout)

    assert DeadLetter.objects.count() == 5
    events = [json.loads(text) for text in texts]
    assert [(each["level"], each["logger"]) for each in events] == [
        ("error", "django_cqrs.worker")
    ] * 5
    found = []
    for each in events:
        last = each["exception"]["values"][-1]
        frame = last["stacktrace"]["frames"][-1]
        found.append(
            (
                each["logentry"]["message"],
                each["extra"]["cqrs_endpoint"],
                last["type"],
                last["value"],
                frame["function"],
            )
        )
    template = "Message %s for {} failed at attempt %d with {}%s; %s"
    refused, unknown, greeted = (
        template.format("reported.pay", "Refused"),
        template.format("reported.pay", "LookupError"),
        template.format("reported.greet", "Refused"),
    )
    masked = f"the card {MASK} was refused"
    assert sorted(found) == sorted(
        [
            (refused, "reported.pay", "Refused", masked, "pay"),
            (refused, "reported.pay", "Refused", masked, "pay"),
            (unknown, "reported.pay", "LookupError", masked, "pay"),
            (greeted, "reported.greet", "Refused", "ada is not here", "greet"),
            (greeted, "reported.greet", "Refused", "jo is not here", "greet"),
        ]
    )
    assert [
        name
        for name, form in forms_of(SECRET).items()
        if any(form in text for text in texts)
    ] == []
