from django_cqrs import command_bus
from tests.apps.senders.messages import Lend


def lend_all(books):
    for book in books:
        command_bus.dispatch(Lend(book))
