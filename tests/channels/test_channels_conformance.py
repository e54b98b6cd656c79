"""The channels of the core pass the suite that every channel must pass."""

from __future__ import annotations

import pytest

from django_cqrs.channels import InMemoryChannel
from django_cqrs.testing.channels import ChannelConformance

pytestmark = [pytest.mark.database]

CHANNELS = {
    "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
    "commit": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
    "immediate": {"BACKEND": "django_cqrs.channels.ImmediateChannel"},
}


@pytest.fixture(autouse=True)
def _channels(settings):
    settings.DJANGO_CQRS = {"CHANNELS": CHANNELS}


class TestInMemoryChannel(ChannelConformance):
    alias = "memory"

    def run_waiting(self):
        assert isinstance(self.channel, InMemoryChannel)
        self.channel.run()


class TestOnCommitChannel(ChannelConformance):
    alias = "commit"

    def run_waiting(self):
        """Nothing waits: the handlers are called after the commit."""


class TestImmediateChannel(ChannelConformance):
    alias = "immediate"

    def run_waiting(self):
        """Only delayed messages wait: other handlers are called by the sender."""
        assert isinstance(self.channel, InMemoryChannel)
        self.channel.run()
