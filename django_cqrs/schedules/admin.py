"""The schedules in Django's admin: their next times and their last commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import Error, router
from django.forms import Media
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext

from django_cqrs.admin_databases import database_of, databases_of, with_database
from django_cqrs.exceptions import CQRSError, UnknownSchedule
from django_cqrs.logged_errors import described
from django_cqrs.pipeline.tenancy import (
    shares_its_database,
    tenancy,
    tenant_of_request,
)
from django_cqrs.schedules.models import Schedule
from django_cqrs.schedules.operations import (
    ScheduleState,
    ScheduleStatus,
    pause,
    resume,
    run_now,
    statuses,
)

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Schedule]
else:
    _ModelAdmin = admin.ModelAdmin

_TEMPLATE = "admin/django_cqrs_schedules/schedules.html"
_STYLES: dict[str, Sequence[str]] = {"all": ["django_cqrs_schedules/schedules.css"]}


@admin.register(Schedule)
class ScheduleAdmin(_ModelAdmin):
    """One page with all schedules: the code says what they are, so none is edited."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: the code declares schedules."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: Schedule | None = None
    ) -> bool:
        """Refuse: the code declares schedules."""
        return False

    def has_delete_permission(
        self, request: HttpRequest, obj: Schedule | None = None
    ) -> bool:
        """Refuse: rows without a declaration are deleted by ``cqrs_prune``."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """Add the address that the buttons post to."""
        view = self.admin_site.admin_view(self.act_view)
        own = path("act/", view, name=f"{self.opts.app_label}_schedule_act")
        return [own, *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the schedules of a database."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        asked = database_of(request, Schedule)
        using = asked or router.db_for_read(Schedule)
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Schedules"),
            "opts": self.opts,
            "media": self.media + Media(css=_STYLES),
            "now": timezone.localtime(),
            "databases": databases_of(Schedule),
            "using": using,
            "schedules": [*_cells(statuses(using, tenant=_only_tenant(using)))],
            "may_pause": self._may(request, "pause"),
            "may_run": self._may(request, "run"),
            "address": with_database(self._address("act"), asked),
            **(extra_context or {}),
        }
        site: Any = request
        site.current_app = self.admin_site.name
        return TemplateResponse(request, _TEMPLATE, context)

    def act_view(self, request: HttpRequest) -> HttpResponse:
        """Pause, resume or run a schedule on POST, and return to the page."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        asked = database_of(request, Schedule)
        using = asked or router.db_for_write(Schedule)
        name, action = request.POST.get("name", ""), request.POST.get("action", "")
        own = request.POST.get("tenant") or None
        if _only_tenant(using) not in (None, own):
            raise PermissionDenied
        if not self._may(request, "run" if action == "run" else "pause"):
            raise PermissionDenied
        acts = {"pause": self._pause, "resume": self._resume, "run": self._run}
        if action in acts:
            try:
                acts[action](request, name, using, own)
            except CQRSError as error:
                self.message_user(request, str(error), messages.ERROR)
        return HttpResponseRedirect(with_database(self._address("changelist"), asked))

    def _may(self, request: HttpRequest, verb: str) -> bool:
        user: Any = request.user
        return bool(user.has_perm(f"{self.opts.app_label}.{verb}_schedule"))

    def _address(self, page: str) -> str:
        name = f"{self.opts.app_label}_schedule_{page}"
        return reverse(f"admin:{name}", current_app=self.admin_site.name)

    def _pause(
        self, request: HttpRequest, name: str, using: str, tenant: str | None
    ) -> None:
        by = request.user.get_username()
        if pause(name, using=using, by=by, tenant=tenant):
            self._log(request, name, using, tenant, gettext("Paused."))
            text = gettext("Schedule %(name)s is paused.")
            self.message_user(request, text % {"name": name}, messages.SUCCESS)
        else:
            text = gettext("Schedule %(name)s was paused already.")
            self.message_user(request, text % {"name": name}, messages.WARNING)

    def _resume(
        self, request: HttpRequest, name: str, using: str, tenant: str | None
    ) -> None:
        if resume(name, using=using, tenant=tenant):
            self._log(request, name, using, tenant, gettext("Resumed."))
            text = gettext("Schedule %(name)s is resumed. It makes up for nothing.")
            self.message_user(request, text % {"name": name}, messages.SUCCESS)
        else:
            text = gettext("Schedule %(name)s was not paused.")
            self.message_user(request, text % {"name": name}, messages.WARNING)

    def _run(
        self, request: HttpRequest, name: str, using: str, tenant: str | None
    ) -> None:
        try:
            sent = run_now(name, tenant=tenant)
        except (UnknownSchedule, Error):
            raise
        except Exception as error:  # noqa: BLE001 - of the schedule's own functions
            said = f"{type(error).__name__}: {' '.join(described(error).split())}"
            text = gettext("Schedule %(name)s could not be run. %(said)s")
            values = {"name": name, "said": said}
            self.message_user(request, text % values, messages.ERROR)
            return
        if sent is None:
            text = gettext("Schedule %(name)s sent nothing: its command was stopped.")
            self.message_user(request, text % {"name": name}, messages.WARNING)
            return
        text = gettext("Run now: %(id)s.") % {"id": sent}
        self._log(request, name, using, tenant, text)
        text = gettext("Schedule %(name)s has sent %(id)s.")
        values = {"name": name, "id": str(sent)}
        self.message_user(request, text % values, messages.SUCCESS)

    def _log(
        self,
        request: HttpRequest,
        name: str,
        using: str,
        tenant: str | None,
        text: str,
    ) -> None:
        """Record the user in the history of a schedule."""
        row = Schedule.objects.using(using).get(name=name, tenant=tenant or "")
        self.log_change(request, row, text)


def _only_tenant(using: str) -> str | None:
    """Return the tenant whose schedules alone a page may show; None for all."""
    policy, name = tenancy(), tenant_of_request()
    if policy is None or name is None or not shares_its_database(policy, name, using):
        return None
    return name


def _cells(found: list[ScheduleStatus]) -> Iterator[dict[str, Any]]:
    """Yield the cells of each schedule on the page; times are in its zone."""
    for each in found:
        yield {
            "status": each,
            "state": str(each.state),
            "is_bad": bool(each.failures) or each.state is ScheduleState.GONE,
            "is_paused": each.state is ScheduleState.PAUSED,
            "is_gone": each.state is ScheduleState.GONE,
            "next_times": [f"{at:%Y-%m-%d %H:%M:%S %Z}" for at in each.next_times],
            "due_at": each.due_at and f"{each.due_at:%Y-%m-%d %H:%M:%S %Z}",
        }
