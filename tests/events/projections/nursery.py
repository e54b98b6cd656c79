"""
Workers that follow events, forked from one process that has imported everything.

``python -m tests.events.projections.nursery`` forks one for each line on its standard
input and prints its process id, so that one that was killed is replaced in
milliseconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from datetime import timedelta

LEASE = timedelta(seconds=0.5)
"""The lease of the shards of these workers: a stop of a second is longer."""


def work() -> None:
    """Follow until SIGTERM."""
    from django_cqrs.events import shards
    from django_cqrs.outbox.worker import Worker
    from tests.events.projections.work import registry

    shards.LEASE = LEASE
    random.seed()
    worker = Worker(registry, ["outbox"], using="default")
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()


def main() -> None:
    import django

    django.setup()
    from django_cqrs.events.handling import projections_of
    from tests.events.projections.work import registry

    projections_of(registry)  # compiled once for all
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                work()
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)


if __name__ == "__main__":
    main()
