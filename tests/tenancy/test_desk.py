"""The admin shows the rows of a request's tenant, and nobody else's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from django_cqrs import Retry, command_handler, message
from django_cqrs.outbox.models import DeadLetter, JournalEntry, OutboxMessage
from django_cqrs.outbox.pausing import paused_channels
from django_cqrs.tenancy import tenant
from tests.outbox.support import letters, rows, work
from tests.support import registry_of
from tests.tenancy.support import DATABASES, with_tenancy

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.urls("tests.outbox.desk_urls"),
]

LETTERS = "/admin/django_cqrs_outbox/deadletter/"
MESSAGES = "/admin/django_cqrs_outbox/outboxmessage/"
JOURNAL = "/admin/django_cqrs_outbox/journalentry/"
CHANNELS = "/admin/django_cqrs_outbox/outboxmessage/channels/"

SHARED = {"acme": "default", "globex": "default"}


@message("desk.of_tenants")
@dataclass(frozen=True)
class Pay:
    number: int
    fails: bool = False


@command_handler(name="pay", channel="outbox", retry=Retry(attempts=1))
def pay(command: Pay):
    if command.fails:
        raise RuntimeError


def of_request(request):
    """Name the tenant by a header of HTTP, as a subdomain would."""
    name = request.headers.get("X-Tenant")
    return {} if name is None else {"tenant": name}


@pytest.fixture(params=[SHARED, DATABASES], ids=["shared", "apart"])
def desk(request, settings):
    """Give each tenant a dead letter, a waiting message and a handled one."""
    middleware = "django_cqrs.middleware.MessageHeadersMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, middleware]
    also = {
        "JOURNAL": timedelta(days=1),
        "REQUEST_HEADERS": f"{__name__}.of_request",
    }
    with with_tenancy(request.param, also=also):
        registry = registry_of(pay, Pay)
        for name in request.param:
            with tenant(name):
                registry.command_bus.dispatch(Pay(1, fails=True))
                registry.command_bus.dispatch(Pay(2))
        for alias in set(request.param.values()):
            work(registry, using=alias)
        for name in request.param:
            with tenant(name):
                registry.command_bus.dispatch(Pay(3))
        yield request.param


def listed(client, address, name=None, query=""):
    headers = {} if name is None else {"X-Tenant": name}
    page = client.get(f"{address}{query}", headers=headers)
    assert page.status_code == 200
    return page, [each.tenant for each in page.context["cl"].result_list]


@pytest.mark.parametrize(
    ("address", "count"), [(LETTERS, 1), (MESSAGES, 1), (JOURNAL, 2)]
)
def test_t03_4_lists_show_the_tenant_of_the_request(admin_client, desk, address, count):
    """Of a request with a tenant, also where its address names another's database. [T03.4]"""
    for name in desk:
        for query in ("", "?database=default", "?database=other", "?tenant=globex"):
            if query == f"?tenant={name}" or not query.startswith("?tenant"):
                page, found = listed(admin_client, address, name, query)
                assert found == [name] * count
        assert "tenant" not in page.context["cl"].list_display
    _, found = listed(admin_client, address, "acme", "?tenant=globex")
    assert found == ["acme"] * count


def test_a_request_of_nobody_shows_everybody(admin_client, desk):
    """The page then says whose each row is, and filters by tenant."""
    for database, names in (
        ("default", [name for name in desk if desk[name] == "default"]),
        ("other", [name for name in desk if desk[name] == "other"]),
    ):
        page, found = listed(admin_client, LETTERS, query=f"?database={database}")
        assert sorted(found) == names
        assert page.context["cl"].list_display[-1] == "tenant"
        for name in names:
            assert f"tenant={name}" in page.content.decode()
            query = f"?database={database}&tenant={name}"
            assert listed(admin_client, LETTERS, query=query)[1] == [name]


def test_t03_4_pages_and_actions_of_another_tenants_rows_are_not_there(
    admin_client, desk
):
    """Neither a page nor an action reaches a row of another tenant. [T03.4]"""
    [theirs] = DeadLetter.objects.using(desk["globex"]).filter(tenant="globex")
    headers = {"X-Tenant": "acme"}
    for action in ("change", "replay", "edit", "delete"):
        address = f"{LETTERS}{theirs.pk}/{action}/"
        for database in ("", "?database=other"):
            page = admin_client.post(
                f"{address}{database}", {"post": "yes"}, headers=headers
            )
            assert page.status_code in (302, 403)
    for action in ("replay_selected", "delete_selected"):
        admin_client.post(
            LETTERS,
            {"action": action, "_selected_action": [theirs.pk], "post": "yes"},
            headers=headers,
        )
    assert DeadLetter.objects.using(desk["globex"]).filter(pk=theirs.pk).exists()
    waiting = OutboxMessage.objects.using(desk["globex"]).filter(tenant="globex")
    assert waiting.count() == 1


def test_an_action_on_all_rows_is_on_those_of_the_tenant(admin_client, desk):
    """ "All" are all of the request's tenant: the other's dead letter stays."""
    [own] = DeadLetter.objects.using(desk["acme"]).filter(tenant="acme")
    admin_client.post(
        LETTERS,
        {
            "action": "replay_selected",
            "_selected_action": [own.pk],
            "select_across": "1",
            "post": "yes",
        },
        headers={"X-Tenant": "acme"},
    )
    left = [each.tenant for alias in set(desk.values()) for each in letters(alias)]
    assert left == ["globex"]
    again = [each.tenant for alias in set(desk.values()) for each in rows(alias)]
    assert sorted(again) == ["acme", "acme", "globex"]


def test_t03_4_the_timeline_is_of_the_tenant_of_the_request(admin_client, desk):
    """A timeline by an id, or by an object, shows rows of that tenant alone. [T03.4]"""
    for alias in set(desk.values()):
        JournalEntry.objects.using(alias).update(subject="shop.Order:7")
    by_subject = reverse("admin:django_cqrs_outbox_subject_timeline")
    for name, alias in desk.items():
        page = admin_client.get(
            f"{by_subject}?subject=shop.Order:7", headers={"X-Tenant": name}
        )
        shown = set(page.context["correlation_ids"])
        own = JournalEntry.objects.using(alias).filter(tenant=name)
        assert shown == set(own.values_list("correlation_id", flat=True))
    [theirs] = DeadLetter.objects.using(desk["globex"]).filter(tenant="globex")
    page = admin_client.get(
        reverse("admin:django_cqrs_outbox_timeline", args=[theirs.correlation_id]),
        headers={"X-Tenant": "acme"},
    )
    assert page.context["rows"] == []


def test_the_page_of_channels_counts_the_tenant_of_the_request(admin_client, desk):
    """Its figures are the tenant's; the rest is shown where it is the tenant's alone."""
    page = admin_client.get(CHANNELS, headers={"X-Tenant": "globex"})
    [row] = [each for each in page.context["rows"] if each.channel == "outbox"]
    texts = {str(each.label): each.text for each in row.figures}
    assert (texts["Pending"], texts["Dead"]) == ("1", "1")
    assert page.context["using"] == desk["globex"]
    assert page.context["databases"] == [desk["globex"]]
    assert page.context["may_pause"] is (desk is DATABASES)


def test_a_tenant_pauses_only_channels_of_its_own(admin_client, desk):
    """A channel that all tenants share is not paused from a page of one."""
    page = admin_client.post(
        f"{CHANNELS}pause/",
        {"channel": "outbox", "action": "pause"},
        headers={"X-Tenant": "globex"},
    )
    assert page.status_code == (302 if desk is DATABASES else 403)
    for alias in set(desk.values()):
        is_paused = desk is DATABASES and alias == "other"
        assert bool(paused_channels(alias)) is is_paused


def test_permissions_hold_for_a_tenants_rows(client, desk):
    """Who may not replay, may not replay the own tenant's rows either. [T03.4]"""
    user = User.objects.create_user("ann", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_deadletter"))
    client.force_login(user)
    [own] = DeadLetter.objects.using(desk["acme"]).filter(tenant="acme")
    headers = {"X-Tenant": "acme"}
    assert client.get(f"{LETTERS}{own.pk}/change/", headers=headers).status_code == 200
    page = client.post(f"{LETTERS}{own.pk}/replay/", {"post": "yes"}, headers=headers)
    assert page.status_code == 403


@pytest.mark.parametrize("name", ["initech", "x" * 101])
def test_a_request_of_an_unknown_tenant_sees_nothing(admin_client, desk, name):
    """It is refused where databases would have to be opened; else its lists are empty."""
    headers = {"X-Tenant": name}
    page = admin_client.get(LETTERS, headers=headers)
    assert page.status_code == 403
