"""Filters of the lists of messages, dead letters, entries and results."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from django_cqrs import clock
from django_cqrs.admin_lists import SEARCHED, RecentFilter, is_newest
from django_cqrs.outbox.models import Outcome, State, TaskStatus
from django_cqrs.outbox.statistics import is_delayed, is_pending, kept_channels
from django_cqrs.pipeline.tenancy import tenancy, tenant_of_request
from django_cqrs.tenant_options import COLUMN


class ChannelFilter(RecentFilter):
    """Filters messages by channel."""

    title = _("channel")
    parameter_name = "channel"


class TenantFilter(RecentFilter):
    """Filters rows by tenant, on pages for all of them."""

    title = _("tenant")
    parameter_name = COLUMN

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        """Return the tenants of the newest rows; none on a page of one tenant."""
        if tenancy() is None or tenant_of_request() is not None:
            return []
        return super().lookups(request, model_admin)

    def has_output(self) -> bool:
        """Show it where there are tenants to choose from."""
        return bool(self.lookup_choices)


class EndpointFilter(RecentFilter):
    """Filters messages by endpoint."""

    title = _("endpoint")
    parameter_name = "endpoint"


class NewestEndpointFilter(EndpointFilter):
    """Filters the newest messages by endpoint: an index would cost too many writes."""

    title = format_lazy(_("endpoint (of the newest {count})"), count=f"{SEARCHED:,}")

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the newest rows with the chosen value."""
        found = super().queryset(request, queryset)
        return None if found is None else found.filter(is_newest(found))


class NewestOutcomeFilter(admin.SimpleListFilter):
    """Filters the newest journal entries by outcome, for the same reason."""

    title = format_lazy(_("outcome (of the newest {count})"), count=f"{SEARCHED:,}")
    parameter_name = "outcome__exact"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return list(Outcome.choices)

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the newest entries with the chosen outcome."""
        if self.value() not in Outcome.values:
            return None
        return queryset.filter(is_newest(queryset), outcome=self.value())


class NewestStatusFilter(admin.SimpleListFilter):
    """Filters the newest results of tasks by status."""

    title = format_lazy(_("status (of the newest {count})"), count=f"{SEARCHED:,}")
    parameter_name = "status__exact"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return list(TaskStatus.choices)

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the newest results with the chosen status."""
        if self.value() not in TaskStatus.values:
            return None
        return queryset.filter(is_newest(queryset), status=self.value())


class _ChannelsFilter(admin.SimpleListFilter):
    """Filters by a column that follows the channel in an index: names all channels."""

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the rows that meet the chosen condition."""
        condition = self.condition()
        if condition is None:
            return None
        channels = tuple(kept_channels(queryset.db))
        return queryset.filter(condition, channel__in=channels)

    def condition(self) -> Q | None:
        """Return the chosen condition, None for everything."""
        raise NotImplementedError


class StateFilter(_ChannelsFilter):
    """Filters messages by the state of their rows."""

    title = _("state")
    parameter_name = "state__exact"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [(str(value), label) for value, label in State.choices]

    def condition(self) -> Q | None:
        """Return the chosen condition, None for everything."""
        chosen = self.value() or ""
        known = {str(state.value): state for state in State}
        return Q(state=known[chosen]) if chosen in known else None


class StandingFilter(_ChannelsFilter):
    """Filters messages as the figures of channels count them, whatever their state."""

    title = _("standing")
    parameter_name = "standing"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [
            ("pending", _("pending")),
            ("delayed", _("delayed")),
            ("parked", _("parked")),
        ]

    def condition(self) -> Q | None:
        """Return the chosen condition, None for everything."""
        now = clock.now()
        conditions = {
            "pending": is_pending(now),
            "delayed": is_delayed(now),
            "parked": Q(state=State.PARKED),
        }
        return conditions.get(self.value() or "")
