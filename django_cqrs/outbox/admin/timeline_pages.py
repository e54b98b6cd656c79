"""Timeline pages in Django's admin, and the links to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import database_of, with_database
from django_cqrs.admin_links import MessageLink, message_links
from django_cqrs.admin_lists import TypedModelAdmin
from django_cqrs.buses.registries import registry
from django_cqrs.modelling.aggregates import key_of_object
from django_cqrs.outbox import journal
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.outbox.timeline import (
    SOURCES,
    Happening,
    Placed,
    Severity,
    Timeline,
    correlations_of,
    timeline_of,
)
from django_cqrs.pipeline.tenancy import tenant_of_request

TEMPLATE = "admin/django_cqrs_outbox/timeline.html"
BY_ID = "django_cqrs_outbox_timeline"
BY_SUBJECT = "django_cqrs_outbox_subject_timeline"


def sources_for(site: admin.AdminSite, request: HttpRequest) -> list[type[Model]]:
    """Return the tables that the user may see."""
    return [model for model in SOURCES if _may_view(site, request, model)]


def _may_view(site: admin.AdminSite, request: HttpRequest, model: type[Model]) -> bool:
    if site.is_registered(model):
        return site.get_model_admin(model).has_view_permission(request)
    user: Any = request.user
    return bool(user.has_perm(f"{model._meta.app_label}.view_{model._meta.model_name}"))


def address_of_timeline(
    site: admin.AdminSite,
    request: HttpRequest,
    *,
    correlation_id: UUID | None = None,
    subject: str = "",
) -> str:
    """
    Return the address of a timeline; empty if the user has none.

    Args:
        site: the admin site.
        request: the user's request.
        correlation_id: of the messages, or else
        subject: the name of an aggregate or a saga in the tables.

    """
    if not (correlation_id or subject) or not sources_for(site, request):
        return ""
    try:
        if correlation_id is not None:
            arguments = (correlation_id,)
            return reverse(f"admin:{BY_ID}", args=arguments, current_app=site.name)
        address = reverse(f"admin:{BY_SUBJECT}", current_app=site.name)
    except NoReverseMatch:  # the outbox is not in that site
        return ""
    return f"{address}?{urlencode({'subject': subject})}"


class TimelineMixin(TypedModelAdmin):
    """
    Adds a link "Timeline" to the pages of an aggregate or a saga that is a model.

    ``class FulfilmentAdmin(TimelineMixin, admin.ModelAdmin)``. The link leads to
    everything that the outbox and its journal know of the object's messages.
    """

    change_form_template = "admin/django_cqrs_outbox/change_form.html"

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Show the form, with the link if the user may follow it."""
        obj = kwargs.get("obj")
        if obj is not None:
            context["timeline_url"] = self.timeline_address(request, obj)
        return super().render_change_form(request, context, *args, **kwargs)

    def timeline_address(self, request: HttpRequest, obj: Any) -> str:
        """Return the address of the link; empty for none."""
        subject = key_of_object(obj, registry._services)
        return address_of_timeline(self.admin_site, request, subject=subject)


class CorrelationMixin(TimelineMixin):
    """The link for rows with a correlation id of their own."""

    def timeline_address(self, request: HttpRequest, obj: Any) -> str:
        """Return the address of the row's timeline."""
        address = address_of_timeline(
            self.admin_site, request, correlation_id=obj.correlation_id
        )
        return with_database(address, database_of(request, type(obj)))


def urls_of(model_admin: admin.ModelAdmin[Any]) -> list[URLPattern]:
    """Return the URLs of the pages, for the admin of the outbox."""
    site = model_admin.admin_site

    def by_id(request: HttpRequest, correlation_id: UUID) -> HttpResponse:
        using, sources = _asked(site, request)
        found = timeline_of(
            [correlation_id], using=using, sources=sources, tenant=tenant_of_request()
        )
        return _page(model_admin, request, found, sources, using=using)

    def by_subject(request: HttpRequest) -> HttpResponse:
        using, sources = _asked(site, request)
        subject = request.GET.get("subject", "")
        if not subject or "\0" in subject:
            raise Http404
        tenant = tenant_of_request()
        ids = correlations_of(subject, using=using, sources=sources, tenant=tenant)
        found = timeline_of(ids, using=using, sources=sources, tenant=tenant)
        return _page(model_admin, request, found, sources, using=using, subject=subject)

    return [
        path("timeline/", site.admin_view(by_subject), name=BY_SUBJECT),
        path("timeline/<uuid:correlation_id>/", site.admin_view(by_id), name=BY_ID),
    ]


def _asked(
    site: admin.AdminSite, request: HttpRequest
) -> tuple[str, list[type[Model]]]:
    sources = sources_for(site, request)
    if not sources:
        raise PermissionDenied
    asked = database_of(request, OutboxMessage)
    return asked or router.db_for_read(OutboxMessage), sources


def _page(
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    timeline: Timeline,
    sources: list[type[Model]],
    *,
    using: str,
    subject: str = "",
) -> HttpResponse:
    site = model_admin.admin_site
    times = [step.at for step in timeline.steps if step.at is not None]
    first = min(times, default=None)
    rows = timeline.placed()
    happenings = list(timeline.happenings)
    ids = {step.message_id for step in timeline.steps}
    links = message_links(site, request, timeline.correlation_ids, ids, using)
    context = {
        **site.each_context(request),
        "title": gettext("Timeline"),
        "subtitle": subject or None,
        "opts": model_admin.opts,
        "media": model_admin.media,
        "subject": subject,
        "correlation_ids": timeline.correlation_ids,
        "started": first,
        "summary": _summary(rows, happenings),
        "notes": _notes(timeline, sources),
        "rows": [
            _shown(
                site,
                sources,
                row,
                first,
                subject,
                links=links.get(row.step.message_id, []),
                database=database_of(request, OutboxMessage),
            )
            for row in rows
        ],
    }
    asked: Any = request
    asked.current_app = site.name
    return TemplateResponse(request, TEMPLATE, context)


def _summary(rows: list[Placed], happenings: list[Happening]) -> str:
    known = sum(row.step.is_known for row in rows)
    waits = sum(each.standing is Severity.WAITS for each in happenings)
    dead = sum(isinstance(each.row, DeadLetter) for each in happenings)
    failed = sum(each.standing is Severity.BAD for each in happenings) - dead
    counts = [
        ngettext("%d message", "%d messages", known) % known,
        gettext("%d waiting") % waits,
        ngettext("%d failed attempt", "%d failed attempts", failed) % failed,
        ngettext("%d dead letter", "%d dead letters", dead) % dead,
    ]
    return ", ".join(counts)


def _notes(timeline: Timeline, sources: list[type[Model]]) -> list[str]:
    """Return notes on the parts that the page cannot show, with the reasons."""
    notes = []
    if timeline.is_bounded:
        notes.append(gettext("There is more: only the beginning is shown."))
    if not journal.is_kept():
        notes.append(
            gettext(
                "Handled messages are not shown: the journal is off. Set "
                'DJANGO_CQRS["JOURNAL"] to the time for which entries are kept.'
            )
        )
    hidden = [model for model in SOURCES if model not in sources]
    if hidden:
        names = ", ".join(str(model._meta.verbose_name_plural) for model in hidden)
        text = gettext(
            "You do not have permission to view %(names)s, so they are not shown."
        )
        notes.append(text % {"names": names})
    return notes


def _shown(
    site: admin.AdminSite,
    sources: list[type[Model]],
    row: Placed,
    first: datetime | None,
    subject: str,
    *,
    links: list[MessageLink],
    database: str = "",
) -> dict[str, Any]:
    """Return one message for the template."""
    step, cause = row.step, row.cause
    return {
        "step": step,
        "name": step.name or (gettext("a value") if step.is_known else ""),
        "kind": _KINDS.get(step.kind, ""),
        "at": None if step.at is None else _clock(step.at, first),
        # Indentation shows it to the eye, and nested lists to screen readers.
        "cause": (cause.name or str(cause.message_id)) if cause else "",
        "opens": row.opens,
        "links": links,
        "closes": row.closes,
        "happenings": [
            {
                "what": each,
                "at": _clock(each.at, first),
                "due": each.due and _clock(each.due, first),
                "duration": _duration(each.duration),
                "attempts": _attempts(each),
                "error": ": ".join(filter(None, (each.exception, each.error))),
                "standing": each.standing.value,
                "is_own": bool(subject) and each.subject == subject,
                "is_dead": isinstance(each.row, DeadLetter),
                "address": with_database(_address(site, sources, each.row), database),
            }
            for each in step.happenings
        ],
    }


_KINDS = {"command": _("command"), "event": _("event"), "query": _("query")}


def _clock(moment: datetime, first: datetime | None) -> str:
    """Return a time to the millisecond, with its date if that differs."""
    local, start = _local(moment), first and _local(first)
    text = f"{local:%H:%M:%S}.{local.microsecond // 1000:03d}"
    if start is not None and local.date() == start.date():
        return text
    return f"{local:%Y-%m-%d} {text}"


def _local(moment: datetime) -> datetime:
    return timezone.localtime(moment) if timezone.is_aware(moment) else moment


def _duration(microseconds: int | None) -> str:
    if microseconds is None:
        return ""
    milliseconds = microseconds / 1000
    if milliseconds < 1000:  # noqa: PLR2004 - a second
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds / 1000:.1f} s"


def _attempts(happening: Happening) -> str:
    count = happening.attempts
    if happening.row is None:
        return gettext("attempt %d") % count if count > 1 else ""
    if not count:
        return ""
    return ngettext("%d attempt", "%d attempts", count) % count


def _address(
    site: admin.AdminSite, sources: list[type[Model]], row: Model | None
) -> str:
    if row is None or not site.is_registered(type(row)) or type(row) not in sources:
        return ""
    name = f"{row._meta.app_label}_{row._meta.model_name}_change"
    return reverse(f"admin:{name}", args=(row.pk,), current_app=site.name)
