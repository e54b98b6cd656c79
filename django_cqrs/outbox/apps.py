"""The app config of the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_cqrs.outbox.worker.tasks import FinishedTask
    from django_cqrs.routing.endpoint import Endpoint


class OutboxConfig(AppConfig):
    """Messages stored together with the data that they concern."""

    name = "django_cqrs.outbox"
    label = "django_cqrs_outbox"
    verbose_name = _("Outbox")
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Import the models, and register the inbox before routes are compiled."""
        super().import_models()
        from django_cqrs.inbox import offer_inbox
        from django_cqrs.outbox.inbox import inbox

        offer_inbox(self.name, inbox)

    def ready(self) -> None:
        """Connect the journal, which is off by default, and the tasks of ``TASKS``."""
        from django_cqrs.outbox.checks import check_tables
        from django_cqrs.outbox.journal import watch
        from django_cqrs.outbox.worker.tasks import TASKS, watch_tasks
        from django_cqrs.routing.table import add_endpoint_maker

        watch()
        add_endpoint_maker(TASKS, _endpoint_of_task)
        watch_tasks(_send_finished)
        register(check_tables, Tags.database)


def _endpoint_of_task(name: str) -> Endpoint:
    """
    Return the endpoint of a task of ``TASKS``, which a project need not have.

    Raises:
        UnknownEndpoint: the task cannot be imported.

    """
    from django_cqrs.exceptions import UnknownEndpoint

    try:
        from django_cqrs.outbox.tasks.endpoints import endpoint_of
    except ImportError as error:
        msg = f"The task {name!r} cannot be imported: {error}."
        raise UnknownEndpoint(msg) from error
    return endpoint_of(name)


def _send_finished(task: FinishedTask) -> None:
    """Send Django's signal about a task, if the project has tasks at all."""
    try:
        from django_cqrs.outbox.tasks.results import send_finished
    except ImportError:  # its messages are dead letters
        return
    send_finished(task)
