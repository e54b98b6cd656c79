"""The pages of the desk that are opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from urllib.parse import urlencode

from django.db.models import Model
from django.test import Client
from django.urls import reverse

from django_cqrs.outbox.models import DeadLetter, JournalEntry, OutboxMessage, State
from tests.benchmarks.desk_site.rows import RARE_ENDPOINT, RARE_NAME

LISTED, PER_PAGE = 10_000, 50
NONE = {"state": str(State.FORWARDED.value), "reason": "unknown_message"}


class Unexpected(Exception):
    """A page did not come."""


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """An address, and what is posted there."""

    name: str
    address: str
    data: dict[str, str] | None = None

    def open(self, client: Client) -> None:
        """Have it made, as a browser would."""
        if self.data is None:
            response = client.get(self.address)
        else:
            response = client.post(self.address, self.data)
        if response.status_code != 200:
            msg = f"{self.name}: {response.status_code} at {self.address}"
            raise Unexpected(msg)


def every_page() -> Iterator[Page]:
    """Yield them; what they are about is read from the rows that are there."""
    label = OutboxMessage._meta.app_label
    yield Page("channels at a glance", reverse(f"admin:{label}_channels"))
    row = JournalEntry.objects.exclude(subject="").order_by("pk")[100]
    timeline = reverse(f"admin:{label}_timeline", args=[row.correlation_id])
    yield Page("the timeline of a message", timeline)
    for what, subject in (("an object", row.subject), ("no object", "shop.Order:none")):
        address = reverse(f"admin:{label}_subject_timeline")
        found = f"{address}?{urlencode({'subject': subject})}"
        yield Page(f"the timeline of {what}", found)
    for model in (OutboxMessage, DeadLetter):
        yield from _pages_of(model)
    yield from _journal()


def _journal() -> Iterator[Page]:
    listed = reverse("admin:django_cqrs_outbox_journalentry_changelist")
    row = JournalEntry.objects.order_by("pk")[500]
    for what, filters in (
        ("the list", {}),
        ("of a rare outcome", {"outcome__exact": "failed"}),
        ("of a rare endpoint", {"endpoint": RARE_ENDPOINT}),
        ("found by correlation id", {"q": str(row.correlation_id)}),
        ("found by nothing", {"q": "00000000-0000-4000-8000-000000000000"}),
    ):
        yield Page(f"journal entries, {what}", f"{listed}?{urlencode(filters)}")


def _pages_of(model: type[Model]) -> Iterator[Page]:
    options = model._meta
    noun = str(options.verbose_name_plural)
    place = f"admin:{options.app_label}_{options.model_name}"
    listed = reverse(f"{place}_changelist")

    def listing(what: str, **filters: str) -> Page:
        return Page(f"{noun}, {what}", f"{listed}?{urlencode(filters)}")

    row = model._default_manager.order_by("pk")[500]
    kind = {OutboxMessage: "state", DeadLetter: "reason"}[model]
    yield Page(f"{noun}, the list", listed)
    last = model._default_manager.values("pk")[:LISTED].count() // PER_PAGE
    yield listing("the last page", p=str(last))
    yield listing("of a channel", channel=row.channel)
    yield listing(f"of a {kind}", **{f"{kind}__exact": getattr(row, kind)})
    if model is OutboxMessage:
        for standing in ("pending", "delayed", "parked"):
            yield listing(f"{standing}", standing=standing)
            yield listing(
                f"{standing} in a channel", standing=standing, channel=row.channel
            )
    yield listing(f"of a {kind} that none has", **{f"{kind}__exact": NONE[kind]})
    yield listing("for an endpoint", endpoint=row.endpoint)
    yield listing("for a rare endpoint", endpoint=RARE_ENDPOINT)
    yield listing("found by message id", q=row.message_id)
    yield listing("found by correlation id", q=row.correlation_id)
    yield listing("found by name", q=row.name)
    yield listing("found by a rare name", q=RARE_NAME)
    yield listing("found by endpoint", q=row.endpoint)
    yield listing("found by nothing", q="no such thing")
    yield Page(f"{noun}, one", reverse(f"{place}_change", args=[row.pk]))
    for action in ("delete", "replay"):
        if action == "replay" and model is OutboxMessage:
            continue
        posted = {"action": f"{action}_selected", "index": "0", "select_across": "1"}
        posted["_selected_action"] = str(row.pk)
        yield Page(f"{noun}, {action} all?", listed, posted)
        some = f"{listed}?{urlencode({'channel': row.channel})}"
        yield Page(f"{noun}, {action} all of a channel?", some, posted)
