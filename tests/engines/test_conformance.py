"""The channels of engines pass the suite that every channel must pass."""

import pytest

from django_cqrs.testing.channels import ChannelConformance
from tests.engines.support import consume, relay_of


class Conformance(ChannelConformance):
    alias = "outbox"

    @pytest.fixture(autouse=True)
    def _given_engine(self, given_engine, _suite):
        self.engine = given_engine

    def run_waiting(self):
        """Forward and handle in turns, until nothing is ready."""
        while relay_of(self.registry).run().forwarded:
            consume(self.engine, self.registry)


@pytest.mark.database
class TestCeleryChannel(Conformance):
    @pytest.fixture
    def given_engine(self, celery_engine):
        return celery_engine


class TestTasksChannel(Conformance):
    @pytest.fixture
    def given_engine(self, tasks_engine):
        return tasks_engine
