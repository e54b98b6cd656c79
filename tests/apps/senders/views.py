from django_cqrs import command_bus, query_bus
from tests.apps.senders.messages import FindBook
from tests.apps.senders.services import lend_all


def page(request):
    return query_bus.ask(FindBook(1))


def give_back(request):
    return command_bus.dispatch({"book": 1}, route="book.return")


def lend_some(request):
    lend_all([1, 2])
