from __future__ import annotations

import pytest
from django.conf import settings as project_settings

from django_cqrs.channels import channels
from tests.engines.support import CeleryEngine, TasksEngine

ENGINES = {"celery": CeleryEngine, "tasks": TasksEngine}


@pytest.fixture(params=ENGINES)
def engine(request, settings):
    """Each engine in turn, behind the channel "outbox" of the outbox's own tests."""
    yield from _installed(ENGINES[request.param](), settings)


@pytest.fixture
def celery_engine(settings):
    yield from _installed(CeleryEngine(), settings)


@pytest.fixture
def tasks_engine(settings):
    yield from _installed(TasksEngine(), settings)


def _installed(engine, settings):
    settings.DJANGO_CQRS = {"CHANNELS": {"outbox": engine.channel}}
    if isinstance(engine, CeleryEngine):
        engine.flush()
    yield engine
    channels["outbox"].close()
    if isinstance(engine, CeleryEngine):
        engine.flush()


@pytest.fixture
def with_options(settings):
    """Give the channel more options."""

    def with_options(**options):
        [config] = project_settings.DJANGO_CQRS["CHANNELS"].values()
        options = {**config["OPTIONS"], **options}
        settings.DJANGO_CQRS = {"CHANNELS": {"outbox": {**config, "OPTIONS": options}}}

    return with_options
