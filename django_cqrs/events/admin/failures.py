"""Failures of projections in the admin: retry them, or give them up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.db import connections
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import DatabaseFilter, database_of
from django_cqrs.admin_lists import as_text
from django_cqrs.events import failures
from django_cqrs.events.admin.tables import EventsAdmin, link_to
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.handling import Handlers
from django_cqrs.events.models import Generation, ProjectionFailure, StoredEvent
from django_cqrs.events.operations import Projections
from django_cqrs.events.reading import events_where
from django_cqrs.events.redaction import NOT_SHOWN, redact

AT_ONCE: Final = 100
"""The maximum number that a request retries or skips."""

SHOWN: Final = 100
"""The number of characters of an error in a list."""


class ProjectionFilter(admin.SimpleListFilter):
    """Filters failures by projection."""

    title = _("projection")
    parameter_name = "projection"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        """Return the projections that are set up."""
        own: Any = model_admin
        rows = Generation.objects.using(own.using(request)).filter(is_live=True)
        names = rows.order_by("projection").values_list("projection", flat=True)
        return [(name, name) for name in names]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the failures of the chosen projection."""
        if self.value() is None:
            return None
        rows = Generation.objects.using(queryset.db).filter(projection=self.value())
        keys = list(rows.values_list("pk", flat=True))
        return queryset.filter(generation_id__in=keys)


@dataclasses.dataclass(frozen=True, slots=True)
class _FailureAction:
    """An action on chosen failures."""

    action: str
    question: str
    entry: str
    """The text in the history."""
    do: Callable[[Handlers, ProjectionFailure, str], None]


@admin.register(ProjectionFailure)
class ProjectionFailureAdmin(EventsAdmin):
    """The events that projections have skipped or parked."""

    list_display = (
        *("id", "failed_at", "first_line", "projection", "name", "event_link"),
        *("reason", "attempts"),
    )
    list_filter = (DatabaseFilter, ProjectionFilter)
    actions = ("retry_selected", "skip_selected")
    readonly_fields = (
        *("projection", "event_link", "partition_text"),
        *("error_text", "traceback_text"),
    )
    fieldsets = (
        (None, {"fields": ("projection", "name", "event_link", "partition_text")}),
        (
            _("Failure"),
            {
                "fields": (
                    *("reason", "failed_at", "attempts", "exception", "error_text"),
                    "traceback_text",
                )
            },
        ),
    )

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the newest first, in the order of an index."""
        if request.GET.get("projection"):
            return ("-failed_at", "-pk")
        return ("-pk",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ProjectionFailure]:
        """Return the rows without the column that lists do not show."""
        rows: QuerySet[ProjectionFailure] = super().get_queryset(request)
        return rows.defer("traceback")

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, with the names of the projections and links."""
        changes = super().get_changelist_instance(request)
        rows: Any = changes.result_list
        for each in rows:
            self._note(request, each)
        return changes

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> ProjectionFailure | None:
        """Return a failure, with the name of its projection and a link."""
        found: Any = super().get_object(request, object_id, from_field)
        if found is not None:
            self._note(request, found)
            found.partition_shown = self._partition(request, found)
        failure: ProjectionFailure | None = found
        return failure

    def _note(self, request: HttpRequest, failure: Any) -> None:
        address = ""
        if self.may_view(request, StoredEvent):
            address = self.address(
                request, "change", failure.position, model=StoredEvent
            )
        failure.event_html = link_to(address, failure.position)
        failure.projection_name = self._projections(request).get(
            failure.generation_id, "-"
        )

    def _partition(self, request: HttpRequest, failure: ProjectionFailure) -> str:
        """Return the partition, without a sensitive value of its event."""
        types = self.registry_of(request).routes.types
        events = events_where(
            connections[self.using(request)],
            "e.position = %s",
            [failure.position],
            decoder_of(types),
        )
        if not events:
            return NOT_SHOWN if failure.partition else ""
        shown = redact(events[0], types)
        return NOT_SHOWN if shown.reason else shown.redact(failure.partition)

    def _projections(self, request: HttpRequest) -> dict[int, str]:
        """Return the names of the projections by generation, read once a request."""
        asked: Any = request
        if not hasattr(asked, "cqrs_projections"):
            rows = Generation.objects.using(self.using(request))
            asked.cqrs_projections = dict(rows.values_list("pk", "projection"))
        found: dict[int, str] = asked.cqrs_projections
        return found

    @admin.display(description=_("projection"))
    def projection(self, obj: Any) -> str:
        """Return the name of the projection."""
        name: str = obj.projection_name
        return name

    @admin.display(description=_("position"))
    def event_link(self, obj: Any) -> str:
        """Return the position, with a link to the event."""
        html: str = obj.event_html
        return html

    @admin.display(description=_("partition"))
    def partition_text(self, obj: Any) -> str:
        """Return the stream or the key of its partition, without sensitive data."""
        return obj.partition_shown or "-"

    @admin.display(description=_("error"))
    def first_line(self, obj: ProjectionFailure) -> str:
        """Return the beginning of the error."""
        text = " ".join((obj.error or obj.exception).split())
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    @admin.display(description=_("error"))
    def error_text(self, obj: ProjectionFailure) -> str:
        """Return the text of the exception; it was stored without sensitive data."""
        return obj.error or "-"

    @admin.display(description=_("traceback"))
    def traceback_text(self, obj: ProjectionFailure) -> str:
        """Return the traceback; it was stored without sensitive data."""
        return as_text(obj.traceback)

    # Actions --------------------------------------------------------------------------

    def has_skip_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may retry failures, and give them up."""
        user: Any = request.user
        return bool(user.has_perm(f"{self.opts.app_label}.skip_failure"))

    @admin.action(permissions=["skip"], description=_("Retry selected failures"))
    def retry_selected(
        self, request: HttpRequest, queryset: QuerySet[ProjectionFailure]
    ) -> HttpResponse | None:
        """Handle the chosen events again, each in a transaction, after a question."""
        question = gettext(
            "Handle these events again? Of a parked partition, the events behind are "
            "handled too."
        )
        entry = gettext("Retried the failure of %(failure)s.")
        act = _FailureAction("retry_selected", question, entry, failures.retry)
        return self._each(request, queryset, act)

    @admin.action(permissions=["skip"], description=_("Give up selected failures"))
    def skip_selected(
        self, request: HttpRequest, queryset: QuerySet[ProjectionFailure]
    ) -> HttpResponse | None:
        """Give the chosen events up, after a question."""
        question = gettext(
            "Give these events up? Of a parked partition, the events behind are "
            "handled."
        )
        entry = gettext("Gave up the failure of %(failure)s.")
        act = _FailureAction("skip_selected", question, entry, failures.skip)
        return self._each(request, queryset, act)

    def _each(
        self,
        request: HttpRequest,
        queryset: QuerySet[ProjectionFailure],
        act: _FailureAction,
    ) -> HttpResponse | None:
        using = self.using(request)
        chosen = list(queryset.using(using).order_by("pk").defer(None)[: AT_ONCE + 1])
        if len(chosen) > AT_ONCE:
            text = gettext(
                "Choose at most %(count)d failures. Nothing was done. For all of a "
                "projection, run manage.py cqrs_projections."
            )
            self.message_user(request, text % {"count": AT_ONCE}, messages.ERROR)
            return None
        if request.POST.get("post") != "yes":
            return self._ask(request, chosen, act)
        done, errors = 0, []
        own = Projections(using)
        for failure in chosen:
            name = self._projections(request).get(failure.generation_id, "")
            try:
                act.do(own.handlers(name), failure, using)
            except Exception as error:  # noqa: BLE001 - of a handler, kept in the row
                errors.append(f"{failure}: {type(error).__name__}")
            else:
                done += 1
                self._log(request, failure, act.entry % {"failure": failure})
        if errors:
            text = gettext("Failed again, as the failures say: %(errors)s.")
            some = ", ".join(errors[:10])
            self.message_user(request, text % {"errors": some}, messages.ERROR)
        text = ngettext("%(count)d event is done.", "%(count)d events are done.", done)
        level = messages.SUCCESS if done else messages.WARNING
        self.message_user(request, text % {"count": done}, level)
        return None

    def _log(self, request: HttpRequest, failure: ProjectionFailure, text: str) -> None:
        """Record the user in the history of the projection: the failure has gone."""
        rows = Generation.objects.using(self.using(request))
        generation = rows.filter(pk=failure.generation_id).first()
        if generation is not None:
            self.log_change(request, generation, text)

    def _ask(
        self,
        request: HttpRequest,
        chosen: list[ProjectionFailure],
        act: _FailureAction,
    ) -> HttpResponse:
        for each in chosen:
            self._note(request, each)
        context = {
            "title": gettext("Are you sure?"),
            "question": act.question,
            "action": act.action,
            "chosen": chosen,
            "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
            "back": self.address(request, "changelist"),
            "database": database_of(request, self.model),
        }
        return self.page(request, "failures_question.html", context)
