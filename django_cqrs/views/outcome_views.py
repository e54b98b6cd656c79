"""The view that tells a client what became of its command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.views import View

from django_cqrs.views.problem_details import problem, response_to

if TYPE_CHECKING:
    from django_cqrs.outbox.outcomes import MessageOutcome

OUTBOX = "django_cqrs.outbox"


class OutcomeView(View):
    """
    Tells what became of a message, by its id in the path of the URL.

    ::

        path("outcomes/<uuid:message_id>/", OutcomeView.as_view(), name="outcome")

    The answer has ``message_id``, ``status``, ``attempts``, ``at`` and
    ``next_attempt_at``, and nothing of the message's content or its errors. It is 404
    if nothing is known of the message. Restrict it with Django's mixins and decorators,
    as any view: without them, everyone who has an id may ask.

    Attributes:
        using: the alias of the database that stores the messages.

    """

    using: str = DEFAULT_DB_ALIAS

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """
        Return the view function.

        Raises:
            ImproperlyConfigured: the outbox, whose tables it reads, is not installed.

        """
        if not apps.is_installed(OUTBOX):
            msg = f"{cls.__name__} needs {OUTBOX!r} in INSTALLED_APPS."
            raise ImproperlyConfigured(msg)
        return super().as_view(**initkwargs)

    def get(
        self, request: HttpRequest, message_id: UUID | str, **_kwargs: Any
    ) -> HttpResponse:
        """Answer with the outcome of a message."""
        from django_cqrs.outbox.outcomes import MessageStatus, outcome_of

        unknown = problem(404, "Nothing is known of this message.")
        try:
            key = UUID(str(message_id))
        except ValueError:  # of a URL with <str:message_id>
            return response_to(unknown)
        outcome = outcome_of(key, using=self.using)
        if outcome.status is MessageStatus.UNKNOWN:
            return response_to(unknown)
        response = JsonResponse(self.details_of(outcome))
        response["Cache-Control"] = "no-store"
        return response

    def details_of(self, outcome: MessageOutcome) -> dict[str, Any]:
        """
        Return the members of the JSON object; override it to add to them.

        Args:
            outcome: the outcome, including its error, which clients do not see.

        """
        return {
            "message_id": outcome.message_id,
            "status": outcome.status,
            "attempts": outcome.attempts,
            "at": outcome.at,
            "next_attempt_at": outcome.next_attempt_at,
        }
