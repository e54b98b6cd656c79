"""The page of the message graph in Django's admin."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext

from django_cqrs.admin_databases import database_of, databases_of
from django_cqrs.buses.registries import registry
from django_cqrs.graph.building import graph_of
from django_cqrs.graph.graph import Graph
from django_cqrs.graph.page import context_of
from django_cqrs.outbox import journal
from django_cqrs.outbox.models import JournalEntry
from django_cqrs.outbox.observed_graph import observed_in
from django_cqrs.pipeline.tenancy import tenant_of_request
from django_cqrs.routing.table import RouteTable

TEMPLATE: Final = "admin/django_cqrs_outbox/graph.html"
NAME: Final = "django_cqrs_outbox_graph"

READ: Final = 20_000
"""The maximum number of entries of the journal that the page reads, the newest."""

_known: WeakKeyDictionary[RouteTable, Graph] = WeakKeyDictionary()


def urls_of(model_admin: admin.ModelAdmin[Any]) -> list[URLPattern]:
    """Return the URL of the page, for the admin of the journal."""

    def view(request: HttpRequest) -> HttpResponse:
        if not model_admin.has_view_permission(request):
            raise PermissionDenied
        return _page(model_admin, request)

    return [path("graph/", model_admin.admin_site.admin_view(view), name=NAME)]


def _graph() -> Graph:
    """Return the graph of the code, which is the same as long as the process runs."""
    table = registry.routes
    if table not in _known:
        _known[table] = graph_of(registry)
    return _known[table]


def _page(model_admin: admin.ModelAdmin[Any], request: HttpRequest) -> HttpResponse:
    site = model_admin.admin_site
    using = database_of(request, JournalEntry) or router.db_for_read(JournalEntry)
    graph = _graph()
    is_kept = journal.is_kept()
    if is_kept:
        graph = observed_in(graph, using=using, most=READ, tenant=tenant_of_request())
    names = sorted({each.name for each in graph.messages})
    wanted = request.GET.get("message", "").strip()
    if wanted:
        graph = graph.around(wanted)
    found = context_of(graph)
    if not is_kept:
        found["notes"].append(
            gettext(
                "The journal is off, so the graph shows the code alone. Set "
                'DJANGO_CQRS["JOURNAL"] to compare it with what happens.'
            )
        )
    context = {
        **site.each_context(request),
        **found,
        "title": gettext("Message graph"),
        "opts": model_admin.opts,
        "media": model_admin.media,
        "databases": databases_of(JournalEntry) if is_kept else [],
        "using": using,
        "names": names,
        "wanted": wanted,
    }
    asked: Any = request
    asked.current_app = site.name
    return TemplateResponse(request, TEMPLATE, context)
