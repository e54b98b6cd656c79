"""Waiting messages in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import Model, Q, QuerySet
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.text import format_lazy
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import (
    DatabaseFilter,
    database_of,
    databases_of,
    with_database,
)
from django_cqrs.admin_lists import LISTED, SEARCHED, is_newest
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox.admin.channel_overview import glance, idle_channels
from django_cqrs.outbox.admin.filters import (
    ChannelFilter,
    NewestEndpointFilter,
    StandingFilter,
    StateFilter,
    TenantFilter,
)
from django_cqrs.outbox.admin.stored_messages import SHOWN, KeptMessageAdmin
from django_cqrs.outbox.admin.timeline_pages import (
    urls_of,
)
from django_cqrs.outbox.attendance import living_workers
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.outbox.pausing import (
    REASON,
    described,
    pause,
    paused_channels,
    resume,
)
from django_cqrs.outbox.statistics import statistics_of
from django_cqrs.outbox.worker.replays import replays_in_progress
from django_cqrs.pipeline.tenancy import (
    shares_its_database,
    tenancy,
    tenant_of_request,
)


@admin.register(OutboxMessage)
class OutboxMessageAdmin(KeptMessageAdmin):
    """The waiting messages: a handled message no longer has a row."""

    list_display = (
        "id",
        "channel",
        "endpoint",
        "name",
        "state",
        "attempts",
        "sent_at",
        "available_at",
        "error_text",
        "key_text",
    )
    list_filter = (
        DatabaseFilter,
        TenantFilter,
        ChannelFilter,
        StandingFilter,
        StateFilter,
        NewestEndpointFilter,
    )
    search_help_text = format_lazy(
        _(
            "A message id, a correlation id, an ordering key, or the name of a "
            "message or an endpoint (exact matches only). Names are searched among "
            "the newest {count} messages."
        ),
        count=f"{SEARCHED:,}",
    )
    actions = ("delete_selected",)
    readonly_fields = ("payload_text", "headers_text", "key_text", "subject_text")
    fieldsets = (
        (None, {"fields": ("channel", "endpoint", "name", "version")}),
        (_("Message"), {"fields": ("payload_text", "headers_text")}),
        (
            _("State"),
            {
                "fields": (
                    "state",
                    "attempts",
                    "available_at",
                    "expires_at",
                    "owner",
                    "lease_expires_at",
                    "last_error",
                )
            },
        ),
        (
            _("Identity"),
            {
                "fields": (
                    "message_id",
                    "correlation_id",
                    "causation_id",
                    "sent_at",
                    "priority",
                    "key_text",
                    "subject_text",
                )
            },
        ),
    )

    @admin.display(description=_("last error"))
    def error_text(self, obj: OutboxMessage) -> str:
        """Return the error of the last attempt, if the message is retried."""
        text = obj.last_error or "-"
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    def _are_searched(self, rows: QuerySet[Any]) -> Q:
        """Return the condition for the rows that are searched by name."""
        return is_newest(rows)

    def get_urls(self) -> list[URLPattern]:
        """Add the page of channels, and the timelines."""
        view = self.admin_site.admin_view(self.channels_view)
        name = f"{self.opts.app_label}_channels"
        own = path("channels/", view, name=name)
        view = self.admin_site.admin_view(self.pause_view)
        pausing = path("channels/pause/", view, name=f"{name}_pause")
        return [own, pausing, *urls_of(self), *super().get_urls()]

    def channels_view(self, request: HttpRequest) -> HttpResponse:
        """Show the figures of all channels."""
        listed = self._list_of(request, OutboxMessage)
        letters = self._list_of(request, DeadLetter)
        if not listed and not letters:
            raise PermissionDenied
        asked = database_of(request, OutboxMessage)
        using = asked or router.db_for_read(OutboxMessage)
        tenant = tenant_of_request()
        figures = statistics_of(using, at_most=LISTED, tenant=tenant)
        rows = glance(
            figures, messages=listed, letters=letters, at_most=LISTED, database=asked
        )
        paused = paused_channels(using) if listed else {}
        working = [each for each in figures if each.channel not in paused]
        labels = [each.label for each in rows[0].figures] if rows else []
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Channels at a glance"),
            "opts": self.opts,
            "media": self.media,
            "now": timezone.localtime(),
            "labels": labels,
            "width": len(labels) + 1,
            "databases": databases_of(OutboxMessage),
            "using": using,
            "rows": rows,
            "workers": living_workers(using) if listed else [],
            "paused": [(name, described(row)) for name, row in paused.items()],
            "may_pause": bool(listed) and self._may_pause(request, using),
            "reason_length": REASON,
            # These two are counted for all tenants together.
            "replays": replays_in_progress(using) if letters and not tenant else [],
            "idle_channels": (
                idle_channels(working, using) if listed and not tenant else []
            ),
        }
        return self._page(request, "channels.html", context)

    def _may_pause(self, request: HttpRequest, using: str) -> bool:
        """Return whether the user may pause channels, which are everybody's."""
        user: Any = request.user
        if not user.has_perm(f"{self.opts.app_label}.pause_channel"):
            return False
        policy, tenant = tenancy(), tenant_of_request()
        if policy is None or tenant is None:
            return True
        return not shares_its_database(policy, tenant, using)

    def pause_view(self, request: HttpRequest) -> HttpResponse:
        """Pause or resume a channel on POST, and return to the page of channels."""
        asked = database_of(request, OutboxMessage)
        using = asked or router.db_for_write(OutboxMessage)
        may_pause = self._may_pause(request, using)
        if not may_pause or not self.has_view_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        channel = request.POST.get("channel", "")
        if request.POST.get("action") == "resume":
            self._resume(request, channel, using)
        else:
            self._pause(request, channel, using)
        address = reverse(
            f"admin:{self.opts.app_label}_channels", current_app=self.admin_site.name
        )
        return HttpResponseRedirect(with_database(address, asked))

    def _pause(self, request: HttpRequest, channel: str, using: str) -> None:
        if channel not in {each.channel for each in statistics_of(using, at_most=1)}:
            text = gettext("There is no channel %(channel)s.")
            self.message_user(request, text % {"channel": channel}, messages.ERROR)
            return
        reason = request.POST.get("reason", "").strip()
        by = request.user.get_username()
        try:
            is_new = pause(channel, using=using, by=by, reason=reason)
        except InvalidChannel as error:  # of messages that the settings have forgotten
            self.message_user(request, str(error), messages.ERROR)
            return
        text = gettext("Channel %(channel)s was paused already.")
        if is_new:
            row = paused_channels(using)[channel]
            why = gettext("Paused: %(reason)s") if reason else gettext("Paused.")
            self._log(request, [row], CHANGE, why % {"reason": reason})
            text = gettext("Channel %(channel)s is paused. Its messages wait.")
        level = messages.SUCCESS if is_new else messages.WARNING
        self.message_user(request, text % {"channel": channel}, level)

    def _resume(self, request: HttpRequest, channel: str, using: str) -> None:
        row = paused_channels(using).get(channel)
        if row is None or not resume(channel, using=using):
            text = gettext("Channel %(channel)s was not paused.")
            self.message_user(request, text % {"channel": channel}, messages.WARNING)
            return
        self._log(request, [row], CHANGE, gettext("Resumed."))
        text = gettext("Channel %(channel)s is resumed.")
        self.message_user(request, text % {"channel": channel}, messages.SUCCESS)

    def _list_of(self, request: HttpRequest, model: type[Model]) -> str:
        """Return the address of a list, empty if the user must not see it."""
        if not self.admin_site.is_registered(model):
            return ""
        if not self.admin_site.get_model_admin(model).has_view_permission(request):
            return ""
        name = f"{model._meta.app_label}_{model._meta.model_name}_changelist"
        return reverse(f"admin:{name}", current_app=self.admin_site.name)
