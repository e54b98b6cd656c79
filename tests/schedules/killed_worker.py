"""A worker with a clock that may kill itself: ``python -m tests.schedules.killed_worker``."""

from __future__ import annotations

import signal
from datetime import timedelta


def main() -> None:
    import django
    from django.conf import settings

    settings.DJANGO_CQRS["CHANNELS"]["outbox"]["BACKEND"] = (
        "tests.schedules.work.DeadlyChannel"
    )
    django.setup()
    from django_cqrs.attendants import duties_of
    from django_cqrs.outbox.worker import Worker
    from tests.schedules.work import registry

    worker = Worker(
        registry,
        ["outbox"],
        using="default",
        lease=timedelta(seconds=1),
        duties=duties_of(registry, ["outbox"], "default"),
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    print("ready", flush=True)
    worker.run()
    print("ended", flush=True)


if __name__ == "__main__":
    main()
