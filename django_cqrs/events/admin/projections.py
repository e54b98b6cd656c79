"""Projections in the admin: how far they have come, and what can be done with them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import Error
from django.db.models import QuerySet
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.timesince import timesince
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from django_cqrs import clock
from django_cqrs.admin_databases import databases_of
from django_cqrs.admin_lists import as_text
from django_cqrs.events.admin.tables import EventsAdmin
from django_cqrs.events.generations import live_generation
from django_cqrs.events.models import (
    Generation,
    ProjectionFailure,
    Shard,
    Status,
    StoredEvent,
)
from django_cqrs.events.operations import Projections
from django_cqrs.events.settling import Blocker
from django_cqrs.events.status import MOST_COUNTED, ProjectionStatus, store_status
from django_cqrs.events.wanted import actions_of, has_workers, want
from django_cqrs.exceptions import CQRSError, ProjectionNotFound
from django_cqrs.times import as_sent


@dataclasses.dataclass(frozen=True, slots=True)
class ProjectionAction:
    """Something that a user can do with a projection."""

    name: str
    label: str | Promise
    permission: str
    entry: str | Promise
    """The text in the history."""
    question: str | Promise = ""
    """The question before it; empty if it is done at once."""
    is_long: bool = False
    """Whether it is left to a worker."""


_ACTIONS: Final = {
    each.name: each
    for each in (
        ProjectionAction(
            "init",
            _("Set up"),
            "operate_generation",
            _("Set up."),
        ),
        ProjectionAction("pause", _("Pause"), "operate_generation", _("Paused.")),
        ProjectionAction("resume", _("Resume"), "operate_generation", _("Resumed.")),
        ProjectionAction(
            "run",
            _("Run"),
            "operate_generation",
            _("Run was asked for."),
            is_long=True,
        ),
        ProjectionAction(
            "retry",
            _("Try again now"),
            "skip_failure",
            _("The event that it has stopped at is tried again."),
        ),
        ProjectionAction(
            "skip",
            _("Skip the event"),
            "skip_failure",
            _("The event that it has stopped at was skipped."),
            _(
                "Go on without the event that fails? It becomes a failure, which can "
                "be retried later, out of its order."
            ),
        ),
        ProjectionAction(
            "backfill",
            _("Backfill"),
            "rebuild_generation",
            _("Backfill was asked for."),
            is_long=True,
        ),
        ProjectionAction(
            "rebuild",
            _("Rebuild"),
            "rebuild_generation",
            _("Rebuild was asked for."),
            _(
                "Fill the views anew from all events? Readers see the present rows "
                "until it is done. It is one transaction, as long as it takes."
            ),
            is_long=True,
        ),
        ProjectionAction(
            "reset",
            _("Reset"),
            "rebuild_generation",
            _("Reset was asked for."),
            _(
                "Empty the views now, and begin again with the first event? Readers "
                "see incomplete views until it has caught up."
            ),
            is_long=True,
        ),
        ProjectionAction(
            "delete",
            _("Delete"),
            "rebuild_generation",
            _("Deletion was asked for."),
            _(
                "Delete the rows of the views, the states and the positions? If its "
                "code is still deployed, it is set up again."
            ),
            is_long=True,
        ),
    )
}


@admin.register(Generation)
class ProjectionAdmin(EventsAdmin):
    """One page with all projections, and one for each."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Generation]:
        """Return the live generations."""
        rows: QuerySet[Generation] = super().get_queryset(request)
        return rows.filter(is_live=True)

    def get_urls(self) -> list[URLPattern]:
        """Add the address that the buttons post to."""
        view = self.admin_site.admin_view(self.act_view)
        name = f"{self.opts.app_label}_{self.opts.model_name}_act"
        return [path("act/", view, name=name), *super().get_urls()]

    def _own(self, request: HttpRequest) -> Projections:
        return Projections(self.using(request))

    # All projections ------------------------------------------------------------------

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the projections of a database, and who holds them back."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        own = self._own(request)
        keys = dict(
            Generation.objects.using(own.using)
            .filter(is_live=True)
            .values_list("projection", "pk")
        )
        context = {
            "title": gettext("Projections"),
            "projections": [
                self._row(request, each, keys.get(each.name)) for each in own.statuses()
            ],
            "may_set_up": self._may(request, "operate_generation"),
            "act_address": self.address(request, "act"),
            "databases": databases_of(Generation),
            "using": own.using,
            "now": timezone.localtime(),
            **self._store(request),
            **(extra_context or {}),
        }
        return self.page(request, "projections.html", context)

    def _store(self, request: HttpRequest) -> dict[str, Any]:
        store = store_status(self.using(request))
        return {
            "store": store,
            "blockers": [
                {
                    "floor": each.floor,
                    "who": _who(each),
                    "age": "" if each.age is None else _span(each.age),
                    "query": without_literals(each.query),
                }
                for each in store.blockers
            ],
        }

    def _row(
        self, request: HttpRequest, status: ProjectionStatus, pk: int | None
    ) -> dict[str, Any]:
        failures = ""
        if status.failures and self.may_view(request, ProjectionFailure):
            failures = self.address(
                request, "changelist", model=ProjectionFailure, projection=status.name
            )
        return {
            "status": status,
            "word": _word(status),
            "is_bad": status.status == Status.FAILED or bool(status.action_error),
            "address": "" if pk is None else self.address(request, "change", pk),
            "runs": _runs(status),
            "lag": _lag(status),
            "lag_time": _span(timedelta(seconds=status.lag_seconds)),
            "failures_address": failures,
        }

    # One projection -------------------------------------------------------------------

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a projection, its shards, and the buttons that the user may press."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        generation = self.get_object(request, object_id)
        if generation is None:
            return self.gone(request, object_id)
        own = self._own(request)
        try:
            status = own.status(generation.projection)
        except ProjectionNotFound as error:
            self.message_user(request, str(error), messages.WARNING)
            return HttpResponseRedirect(self.address(request, "changelist"))
        handled = sum(each.handled for each in status.shards)
        row = self._row(request, status, generation.pk)
        context = {
            "title": generation.projection,
            "row": row,
            "status": status,
            "generation": generation,
            "handled": handled,
            "rate": _rate(request, handled),
            "refresh": self.address(
                request,
                "change",
                generation.pk,
                handled=handled,
                at=round(clock.now().timestamp(), 3),
            ),
            "shards": self._shards(request, generation, status),
            "actions": self._buttons(request, status),
            "act_address": self.address(request, "act"),
            "has_workers": has_workers(),
            "list_address": self.address(request, "changelist"),
            "history_address": self.address(request, "history", generation.pk),
            "now": timezone.localtime(),
            **self._store(request),
            **(extra_context or {}),
        }
        return self.page(request, "projection.html", context)

    def _shards(
        self, request: HttpRequest, generation: Generation, status: ProjectionStatus
    ) -> list[dict[str, Any]]:
        leases = dict(
            Shard.objects.using(self.using(request))
            .filter(generation_id=generation.pk)
            .values_list("number", "lease_expires_at")
        )
        may_see = self.may_view(request, StoredEvent)
        found = []
        for each in status.shards:
            lease, position = leases.get(each.number), each.failed_position
            event = ""
            if position is not None and may_see:
                event = self.address(request, "change", position, model=StoredEvent)
            found.append(
                {
                    "shard": each,
                    "lease": None if lease is None else as_sent(lease),
                    "event_address": event,
                    "traceback": as_text(each.traceback) if each.traceback else "",
                }
            )
        return found

    def _buttons(
        self, request: HttpRequest, status: ProjectionStatus
    ) -> list[ProjectionAction]:
        """Return the actions that the projection has, and the user may do."""
        handlers = self._own(request).handlers(status.name)
        is_busy = bool(status.wanted) or status.status == Status.BUILDING
        names = []
        if is_busy or status.status == Status.PAUSED:
            names.append("resume")
        else:
            names.append("pause")
        if any(each.error and each.attempts for each in status.shards):
            names += ["retry", "skip"]
        if has_workers() and not is_busy:
            names += actions_of(handlers)
        return [
            action
            for action in map(_ACTIONS.__getitem__, names)
            if self._may(request, action.permission)
        ]

    # Actions --------------------------------------------------------------------------

    def _may(self, request: HttpRequest, codename: str) -> bool:
        user: Any = request.user
        return bool(user.has_perm(f"{self.opts.app_label}.{codename}"))

    def act_view(self, request: HttpRequest) -> HttpResponse:
        """Do something with a projection on POST, after a question if it is serious."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        action = _ACTIONS.get(request.POST.get("action", ""))
        if action is None or not self._may(request, action.permission):
            raise PermissionDenied
        own, name = self._own(request), request.POST.get("projection", "")
        if action.question and request.POST.get("post") != "yes":
            return self._ask(request, action, name)
        try:
            self._act(request, own, action, name)
        except CQRSError as error:
            self.message_user(request, str(error), messages.ERROR)
        except Error:
            raise
        except Exception as error:  # noqa: BLE001 - of the projection's own code
            text = gettext("%(action)s of %(name)s failed with %(error)s.")
            values = {
                "action": action.label,
                "name": name,
                "error": type(error).__name__,
            }
            self.message_user(request, text % values, messages.ERROR)
        generation = live_generation(name, own.using)
        if generation is None:
            return HttpResponseRedirect(self.address(request, "changelist"))
        return HttpResponseRedirect(self.address(request, "change", generation.pk))

    def _ask(
        self, request: HttpRequest, action: ProjectionAction, name: str
    ) -> HttpResponse:
        found = live_generation(name, self.using(request))
        back = self.address(request, "changelist")
        if found is not None:
            back = self.address(request, "change", found.pk)
        context = {
            "title": gettext("Are you sure?"),
            "subtitle": name,
            "projection": name,
            "action": action,
            "act_address": self.address(request, "act"),
            "back": back,
        }
        return self.page(request, "projection_question.html", context)

    def _act(
        self,
        request: HttpRequest,
        own: Projections,
        action: ProjectionAction,
        name: str,
    ) -> None:
        before = live_generation(name, own.using)
        if action.is_long:
            want(own, name, action.name)
            is_done: Any = True
            text = gettext("%(action)s of %(name)s: a worker begins with it.")
        else:
            act: Callable[[str], Any] = getattr(own, action.name)
            is_done = act(name)
            text = gettext("%(action)s of %(name)s: done.")
        values = {"action": action.label, "name": name}
        if not is_done:
            text = gettext("%(action)s of %(name)s: there was nothing to do.")
            self.message_user(request, text % values, messages.WARNING)
            return
        row = before or live_generation(name, own.using)
        if row is not None:
            self.log_change(request, row, str(action.entry))
        self.message_user(request, text % values, messages.SUCCESS)


def _word(status: ProjectionStatus) -> str | Promise:
    """Return the status, or the action that the projection is busy with."""
    if status.wanted and status.is_running:
        return _("%(action)s: a worker is doing it") % {"action": status.wanted}
    if status.wanted:
        return _("%(action)s: waits for a worker") % {"action": status.wanted}
    labels: dict[str, Any] = dict(Status.choices)
    return str(labels.get(status.status, status.status))


def _runs(status: ProjectionStatus) -> str | Promise:
    if status.channel is not None:
        return _("channel %(channel)s") % {"channel": status.channel}
    return _("inline") if status.is_inline else _("on demand")


def _lag(status: ProjectionStatus) -> str:
    return f"{status.lag:,}{'+' if status.lag >= MOST_COUNTED else ''}"


def _span(span: timedelta) -> str:
    """Return a time in words, exact to the second below a minute."""
    if span < timedelta(minutes=1):
        return gettext("%(count)d s") % {"count": span.total_seconds()}
    now = timezone.now()
    return timesince(now - span, now)


def _who(blocker: Blocker) -> str:
    if blocker.session is None:
        return gettext("a prepared transaction")
    return gettext("session %(number)d of the server") % {"number": blocker.session}


_LITERAL: Final = re.compile(r"'(?:[^']|'')*(?:'|$)|\b\d[\d.]*\b")


def without_literals(query: str) -> str:
    """
    Return a statement with a mark in place of its values, which may be personal data.

    Of one with another form of quoting, only the first word is returned.
    """
    if "$$" in query or "\\" in query or re.search(r"\$\w*\$", query):
        return query.split(maxsplit=1)[0] if query.strip() else ""
    return " ".join(_LITERAL.sub("•", query).split())


def _rate(request: HttpRequest, handled: int) -> str:
    """Return the number of events handled a second since the page was last shown."""
    try:
        before = int(request.GET["handled"])
        seconds = clock.now().timestamp() - float(request.GET["at"])
    except (KeyError, ValueError):
        return ""
    if not 0 < seconds < float("inf") or handled < before:
        return ""
    values = {
        "count": f"{handled - before:,}",
        "time": _span(timedelta(seconds=min(seconds, 10**9))),
        "rate": f"{(handled - before) / seconds:,.1f}",
    }
    return gettext("%(count)s in %(time)s: %(rate)s a second") % values
