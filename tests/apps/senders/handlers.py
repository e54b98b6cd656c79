from django_cqrs import EventBus, command_handler, event_handler, query_handler
from tests.apps.senders.messages import FindBook, Lend, Lent, Return


@command_handler
@command_handler("book.lend")
def lend(command: Lend, events: EventBus) -> None:
    tell(command.book, events)


@command_handler("book.return")
def take_back(command: Return) -> None: ...


@query_handler
def find(query: FindBook) -> int:
    return query.book


@event_handler
def note(event: Lent) -> None: ...


def tell(book, events):
    events.publish(Lent(book))
