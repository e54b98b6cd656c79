"""An error that UTF-8 cannot hold is logged nevertheless, whoever logs it."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest

from django_cqrs import Registry, event_handler
from django_cqrs.channels import channels
from django_cqrs.channels.on_commit import OnCommitChannel
from django_cqrs.engines.base import EngineChannel, EngineRelay
from django_cqrs.logged_errors import loggable
from tests.outbox.support import note, on_databases, registry_of, rows, send
from tests.outbox.work import Work

pytestmark = on_databases


@contextmanager
def log_file(path, name):
    """Have a logger write into a file in UTF-8."""
    handler = logging.FileHandler(path, encoding="utf-8")
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def refuse(*arguments, **options):
    try:
        raise LookupError("no \ud801")
    except LookupError as error:
        raise ConnectionError("no \ud800") from error


@pytest.fixture
def path(tmp_path):
    return tmp_path / "app.log"


def test_a_handler_that_fails_after_the_commit(path, monkeypatch):
    """The channel that calls handlers after the commit."""
    monkeypatch.setitem(channels._channels, "fast", OnCommitChannel("fast", {}))

    @event_handler(channel="fast", name="fails")
    def fails(event: Work):
        refuse()

    registry = Registry()
    registry.add(fails)
    with log_file(path, "django_cqrs.channels"):
        registry.event_bus.publish(Work(1, "write"))

    first, *trace = path.read_text(encoding="utf-8").splitlines()
    assert first.endswith("for fails was lost: its handler failed after the commit")
    assert r"LookupError: no \ud801" in trace
    assert trace[-1] == r"ConnectionError: no \ud800"


def test_an_engine_that_cannot_be_reached(path, monkeypatch):
    """The relay of an engine."""
    send(registry_of(note), 1)
    monkeypatch.setattr(EngineChannel, "send", refuse)
    relay = EngineRelay(EngineChannel("outbox", {}), "default")
    with log_file(path, "django_cqrs.worker"):
        assert relay.forward("me", limit=None) == 0

    first, *trace = path.read_text(encoding="utf-8").splitlines()
    assert "1 messages could not be forwarded; nothing is lost" in first
    assert trace[-1] == r"ConnectionError: no \ud800"
    assert len(rows()) == 1


def test_an_error_that_a_log_accepts_is_logged_as_it_is():
    """With its frames, which a tracker of errors shows."""
    with pytest.raises(ValueError, match="plain ☃") as raised:
        raise ValueError("plain ☃")

    assert loggable(raised.value) is raised.value
