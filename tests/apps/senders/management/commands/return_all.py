from django.core.management.base import BaseCommand

from django_cqrs import command_bus
from tests.apps.senders.messages import Return

raise RuntimeError("imported")


class Command(BaseCommand):
    def handle(self, **options):
        command_bus.dispatch(Return(1), route="book.return")
