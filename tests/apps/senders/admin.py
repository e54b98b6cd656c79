from django_cqrs import command_bus
from tests.apps.senders.messages import Return


class BookAdmin:
    def return_selected(self, request, books):
        for book in books:
            self._return(book)

    def _return(self, book):
        command_bus.dispatch(Return(book), route="book.return")
