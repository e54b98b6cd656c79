"""What a row or an error holds cannot break the log."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from django.utils import timezone

from django_cqrs import Retry
from django_cqrs.outbox.models import OutboxMessage
from tests.outbox.support import on_databases, registry_of, send, work
from tests.outbox.work import Work

pytestmark = on_databases

FORGED = "shop.note\n2026-11-29 ERROR all is lost\r\x1b[31m\u2028"
SHOWN = r"shop.note\n2026-11-29 ERROR all is lost\r\x1b[31m\u2028"


def note(command: Work): ...


@pytest.mark.parametrize(
    "expires", [None, timedelta(seconds=-1)], ids=["unknown", "expired"]
)
def test_a_stored_name_with_a_line_break_stays_in_one_line_of_the_log(caplog, expires):
    """A name of a handler that was changed in the table is escaped in the log."""
    registry = registry_of(note)
    send(registry, 1)
    OutboxMessage.objects.update(
        endpoint=FORGED, expires_at=expires and timezone.now() + expires
    )

    with caplog.at_level(logging.DEBUG, logger="django_cqrs.worker"):
        work(registry)

    texts = [each.getMessage() for each in caplog.records]
    told = [text for text in texts if "shop.note" in text]
    assert told
    assert all(SHOWN in text for text in told)
    assert all(text.isprintable() for text in told)


def fail(command: Work):
    try:
        raise LookupError("no \ud801")
    except LookupError as error:
        raise ValueError("no \ud800") from error


def test_a_dead_letter_with_half_of_a_surrogate_pair_reaches_a_log_file(tmp_path):
    """A file in UTF-8 gets the line and the traceback, with the character escaped."""
    registry = registry_of(fail, retry=Retry(attempts=1))
    send(registry, 1)
    path = tmp_path / "worker.log"
    handler = logging.FileHandler(path, encoding="utf-8")
    logger = logging.getLogger("django_cqrs.worker")
    logger.addHandler(handler)
    try:
        work(registry)
    finally:
        logger.removeHandler(handler)
        handler.close()

    first, *trace = path.read_text(encoding="utf-8").splitlines()
    assert first.endswith(
        r"with ValueError: no \ud800; it is now a dead letter (failed)"
    )
    assert trace[-1] == r"ValueError: no \ud800"
    assert r"LookupError: no \ud801" in trace
