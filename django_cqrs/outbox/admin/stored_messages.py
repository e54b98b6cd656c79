"""Shared parts of the pages for waiting messages and dead letters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.models import DELETION, LogEntry
from django.db import Error, OperationalError, connections, router
from django.db.models import Max, Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import ChosenDatabaseMixin, database_of
from django_cqrs.admin_lists import LISTED, BoundedPaginator, TypedModelAdmin, as_text
from django_cqrs.admin_lookups import OfferedLookupsMixin
from django_cqrs.conversion.masking import MASK
from django_cqrs.outbox.admin.timeline_pages import CorrelationMixin
from django_cqrs.outbox.redaction import (
    MASKED,
    NOT_SHOWN,
    RedactedMessage,
    masked_among,
    redact,
    redact_list,
)
from django_cqrs.outbox.store.batches import retrying_deadlocks
from django_cqrs.outbox.store.dead_letters import discard
from django_cqrs.outbox.worker.outages import is_not_migrated
from django_cqrs.pipeline.tenancy import tenancy, tenant_of_request
from django_cqrs.tenant_options import COLUMN, has_tenants

SHOWN: Final = 100
"""The number of chosen messages that a confirmation names."""

BATCH: Final = 500
"""The number that is replayed or deleted in one transaction."""


class OutboxDatabaseMixin(ChosenDatabaseMixin):
    """Reads the rows of the outbox that the address names, of the request's tenant."""

    missing_text = _("The database %(alias)s has no outbox, or is unavailable.")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows of that database that the request may see."""
        return of_request(super().get_queryset(request))

    def get_list_display(self, request: HttpRequest) -> Any:
        """Return the columns; with the tenants on a page for all of them."""
        columns = super().get_list_display(request)
        is_of_all = tenancy() is not None and tenant_of_request() is None
        return (*columns, COLUMN) if is_of_all and has_tenants(self.model) else columns

    def is_missing(self, error: Error) -> bool:
        """Return whether a database has no outbox, an old one, or is unavailable."""
        return is_not_migrated(error) or isinstance(error, OperationalError)


class KeptMessageAdmin(
    OfferedLookupsMixin, OutboxDatabaseMixin, CorrelationMixin, TypedModelAdmin
):
    """Shared by the tables of messages: they are viewed, not edited."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    list_max_show_all = 0
    ordering = ("-pk",)
    sortable_by = ()
    search_fields = ("message_id",)
    search_help_text = _(
        "A message id, a correlation id, an ordering key, or the name of a message "
        "or an endpoint (exact matches only)."
    )
    change_list_template = "admin/django_cqrs_outbox/change_list.html"

    class Media:
        """The files that the pages need beside the admin's own."""

        css: ClassVar[dict[str, tuple[str, ...]]] = {
            "all": ("django_cqrs_outbox/desk.css",)
        }

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: messages are sent by a bus."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Refuse: a message stays as it was sent."""
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows without the columns that lists do not show."""
        wide = [
            name
            for name in ("payload", "headers", "traceback")
            if any(field.name == name for field in self.model._meta.fields)
        ]
        return super().get_queryset(request).defer(*wide)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for an exact id, key or name."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            value = UUID(term)
        except ValueError:
            named = Q(name=term) | Q(endpoint=term)
            keyed = Q(ordering_key=term) & ~masked_among(queryset, "ordering_key", term)
            wanted = keyed | self._are_searched(queryset) & named
        else:
            wanted = Q(message_id=value) | Q(correlation_id=value)
        return queryset.filter(wanted), False

    def _are_searched(self, rows: QuerySet[Any]) -> Q:
        """Return the condition for the rows that are searched by name."""
        return Q()

    # Redacted views -----------------------------------------------------------------

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, with its rows as the user may see them."""
        changes = super().get_changelist_instance(request)
        rows: Any = changes.result_list
        seen = redact_list(rows, using=rows.db)
        for each in rows:
            each._shown = seen[each.pk]
        return changes

    def _shown(self, obj: Any) -> RedactedMessage:
        if not hasattr(obj, "_shown"):
            obj._shown = redact(obj)
        found: RedactedMessage = obj._shown
        return found

    @admin.display(description=_("payload"))
    def payload_text(self, obj: Any) -> str:
        """Return the payload as JSON, without sensitive data; or why it is hidden."""
        seen = self._shown(obj)
        if seen.reason:
            return f"{NOT_SHOWN} {seen.reason}"
        text = as_text(seen.pretty)
        if MASK not in seen.pretty:
            return text
        return format_html('{}<p class="help">{}</p>', text, MASKED)

    @admin.display(description=_("headers"))
    def headers_text(self, obj: Any) -> str:
        """Return the headers as JSON."""
        return as_text(self._shown(obj).headers_of(obj))

    @admin.display(description=_("ordering key"))
    def key_text(self, obj: Any) -> str:
        """Return the ordering key, without sensitive data."""
        return self._shown(obj).key_of(obj) or "-"

    @admin.display(description=_("subject"))
    def subject_text(self, obj: Any) -> str:
        """Return the object that it is for, without sensitive data."""
        return self._shown(obj).subject_of(obj) or "-"

    # Deletion -----------------------------------------------------------------------

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """Return the objects to delete; nothing depends on a message."""
        name = str(self.model._meta.verbose_name_plural)
        is_query = isinstance(objs, QuerySet)
        count = objs.count() if is_query else len(objs)
        named = [str(each) for each in objs[:SHOWN]]
        lacking = set() if self.has_delete_permission(request) else {name}
        return named, {name: count}, lacking, []

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Delete a message, and let those behind it continue."""
        rows = self._rows(request)
        discard(rows.filter(pk=obj.pk), using=rows.db)

    @admin.action(
        permissions=["delete"],
        description=_("Delete selected %(verbose_name_plural)s"),
    )
    def delete_selected(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        """Delete the chosen messages, after a confirmation."""
        if not self._is_confirmed(request):
            question = gettext(
                "Permanently delete these messages? They will never be handled."
            )
            return self._ask(request, queryset, "delete_selected", question)
        count = self._in_batches(request, queryset, self._delete_batch)
        text = ngettext("Deleted %(count)d.", "Deleted %(count)d.", count)
        self.message_user(request, text % {"count": count}, messages.SUCCESS)
        return None

    def _delete_batch(self, request: HttpRequest, batch: list[Any], using: str) -> int:
        rows = self._rows(request)
        # Those that nobody else has deleted or handled in the meantime.
        kept = rows.select_for_update() if _locks(using) else rows
        found = list(kept.filter(pk__in=[each.pk for each in batch]))
        self._log(request, found, DELETION, "")
        return discard(rows.filter(pk__in=[each.pk for each in found]), using=using)

    # Confirmation and audit ---------------------------------------------------------

    def _is_confirmed(self, request: HttpRequest) -> bool:
        return request.method == "POST" and request.POST.get("post") == "yes"

    def _ask(
        self,
        request: HttpRequest,
        chosen: QuerySet[Any],
        action: str,
        question: str,
    ) -> HttpResponse:
        """Return the page that asks for a confirmation."""
        is_all = request.POST.get("select_across") == "1"
        keys = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        total = chosen.order_by().values("pk")[: LISTED + 1].count()
        redact = list(chosen[:SHOWN])
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Are you sure?"),
            "opts": self.opts,
            "question": question,
            "action": action,
            # One represents all: their filter is in the address.
            "keys": keys[:1] if is_all else keys,
            "select_across": "1" if is_all else "0",
            "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
            "total": min(total, LISTED),
            "is_bounded": total > LISTED,
            "shown": redact,
            "more": total - len(redact),
            "database": database_of(request, self.model),
        }
        return self._page(request, "confirmation.html", context)

    def _page(
        self, request: HttpRequest, template: str, context: dict[str, Any]
    ) -> HttpResponse:
        site: Any = request
        site.current_app = self.admin_site.name
        return TemplateResponse(
            request, f"admin/django_cqrs_outbox/{template}", context
        )

    def _in_batches(
        self,
        request: HttpRequest,
        chosen: QuerySet[Any],
        handle: Callable[[HttpRequest, list[Any], str], int],
    ) -> int:
        """Handle the chosen rows in order of sending, each batch in a transaction."""
        using, count = self._rows(request).db, 0

        def handle_batch(keys: list[int]) -> int:
            batch = list(self._rows(request).filter(pk__in=keys).order_by("sequence"))
            return handle(request, batch, using)

        for keys in keys_in_batches(chosen.using(using)):
            count += retrying_deadlocks(partial(handle_batch, keys), using=using)
        return count

    def _rows(self, request: HttpRequest) -> QuerySet[Any]:
        """Return all rows, with all columns, of the database for writing."""
        asked = database_of(request, self.model)
        using = asked or router.db_for_write(self.model)
        return of_request(self.model._default_manager.using(using))

    def _log(
        self, request: HttpRequest, rows: list[Any], flag: int, message: str
    ) -> None:
        """Record the user in the history of each row."""
        user: Any = request.user
        chosen: Any = rows
        if rows:
            LogEntry.objects.log_actions(
                user_id=user.pk,
                queryset=chosen,
                action_flag=flag,
                change_message=message,
            )


def of_request(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return those rows that belong to the tenant of the request, if it has one."""
    if not has_tenants(rows.model):
        return rows
    name = tenant_of_request()
    return rows if name is None else rows.filter(**{COLUMN: name})


def keys_in_batches(chosen: QuerySet[Any]) -> Iterator[list[int]]:
    """
    Yield the ids of the chosen rows, in order of sending, each once.

    A message that is given up again meanwhile has a new row, which is left alone.
    """
    last = chosen.order_by().aggregate(last=Max("pk"))["last"]
    if last is None:  # somebody else has replayed or deleted them
        return
    rows = chosen.filter(pk__lte=last).order_by("sequence", "pk")
    keys = list(rows.values_list("pk", flat=True))
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


def _locks(using: str) -> bool:
    return connections[using].features.has_select_for_update
