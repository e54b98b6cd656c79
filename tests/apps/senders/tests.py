from django_cqrs import command_bus
from tests.apps.senders.messages import Lend


def test_lend():
    command_bus.dispatch(Lend(1))
