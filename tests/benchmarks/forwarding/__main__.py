"""``python -m tests.benchmarks.forwarding COUNT``: print the seconds of one run."""

from __future__ import annotations

import os
import sys

import django

django.setup()

from django.core.management import call_command  # noqa: E402

from tests.benchmarks.forwarding import projects  # noqa: E402

if sys.argv[1] == "migrate":
    call_command("migrate", verbosity=0)
else:
    run = {
        "django_cqrs": projects.ours,
        "django_celery_outbox": projects.django_celery_outbox,
    }
    try:
        print(run[os.environ["BENCHMARKS_PROJECT"]](int(sys.argv[1])))
    finally:
        projects.forget()
