"""Tenants that cannot be used, or would share what is not to be shared, are checks."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_cqrs import command_handler
from django_cqrs.buses import registry
from django_cqrs.checks import check_settings
from django_cqrs.management.explanation import explain
from django_cqrs.management.listing import transaction_of
from django_cqrs.outbox.checks import check_tables
from django_cqrs.tenancy import tenant
from tests.modelling.models import Account
from tests.settings import DJANGO_CQRS
from tests.support import registry_of
from tests.tenancy.support import ROUTER, with_tenancy

GOOD = {"acme": "default", "globex": "other"}


def found(rule):
    """Return the texts and hints of a check."""
    return [
        (each.msg, each.hint)
        for each in check_settings()
        if each.id == f"django_cqrs.{rule}"
    ]


def nobody(name):
    return None


FAULTS = {
    "a text": (
        "acme",
        "DJANGO_CQRS['TENANCY'] = 'acme' is not a dictionary.",
        "Write {'HEADER': ..., 'DATABASES': ...}.",
    ),
    "an unknown key": (
        {"HEADER": "tenant", "DATABASES": GOOD, "ALIASES": {}},
        "DJANGO_CQRS['TENANCY'] has no key 'ALIASES'.",
        "Its keys are HEADER, DATABASES, SCHEMAS, TENANTS, SHARED.",
    ),
    "no header": (
        {"DATABASES": GOOD},
        "DJANGO_CQRS['TENANCY']['HEADER'] = None cannot be the name of a header.",
        "Name the header that says whose message it is: 'tenant'.",
    ),
    "a reserved header": (
        {"HEADER": "message_id", "DATABASES": GOOD},
        (
            "DJANGO_CQRS['TENANCY']['HEADER'] = 'message_id' cannot be the name of a "
            "header."
        ),
        "Name the header that says whose message it is: 'tenant'.",
    ),
    "neither databases nor schemas": (
        {"HEADER": "tenant"},
        "DJANGO_CQRS['TENANCY'] needs either 'DATABASES' or 'SCHEMAS'.",
        (
            "Give 'DATABASES': a dict from tenants to aliases or a callable, or "
            "'SCHEMAS': True for django-tenants."
        ),
    ),
    "both": (
        {"HEADER": "tenant", "DATABASES": GOOD, "SCHEMAS": True},
        "DJANGO_CQRS['TENANCY'] needs either 'DATABASES' or 'SCHEMAS'.",
        (
            "Give 'DATABASES': a dict from tenants to aliases or a callable, or "
            "'SCHEMAS': True for django-tenants."
        ),
    ),
    "an alias that is not there": (
        {"HEADER": "tenant", "DATABASES": {"acme": "nowhere"}},
        (
            "DJANGO_CQRS['TENANCY']['DATABASES'] gives tenant 'acme' the database "
            "'nowhere', which is not in DATABASES."
        ),
        "The aliases are default, other.",
    ),
    "a name that cannot be one": (
        {"HEADER": "tenant", "DATABASES": {None: "other"}},
        (
            "DJANGO_CQRS['TENANCY']['DATABASES']: None cannot be the name of a tenant: "
            "that is a str, an int or a UUID, of 1 to 100 characters."
        ),
        "Name each tenant by a text.",
    ),
    "a path that leads nowhere": (
        {"HEADER": "tenant", "DATABASES": "tests.tenancy.nothing.alias_of"},
        (
            "DJANGO_CQRS['TENANCY']['DATABASES'] = 'tests.tenancy.nothing.alias_of' cannot "
            "be imported: No module named 'tests.tenancy.nothing'."
        ),
        "Give a callable, or its dotted path.",
    ),
    "a number": (
        {"HEADER": "tenant", "DATABASES": 5},
        "DJANGO_CQRS['TENANCY']['DATABASES'] = 5 is not a callable.",
        "Give a callable, or its dotted path.",
    ),
    "tenants that cannot be listed": (
        {"HEADER": "tenant", "DATABASES": nobody, "TENANTS": ["acme"]},
        "DJANGO_CQRS['TENANCY']['TENANTS'] = ['acme'] is not a callable.",
        "Give a callable, or its dotted path.",
    ),
    "shared apps as one text": (
        {"HEADER": "tenant", "DATABASES": GOOD, "SHARED": "auth"},
        "DJANGO_CQRS['TENANCY']['SHARED'] = 'auth' is not a list of app labels.",
        "Write ['auth', 'billing'].",
    ),
    "schemas of nothing": (
        {"HEADER": "tenant", "SCHEMAS": "tests.tenancy.nothing.Schemas"},
        (
            "DJANGO_CQRS['TENANCY']['SCHEMAS'] = 'tests.tenancy.nothing.Schemas' cannot be "
            "used: No module named 'tests.tenancy.nothing'"
        ),
        "Install django-tenants, and give True.",
    ),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_e_tenancy_that_cannot_be_used_E080_is_said_once(settings, name):
    """Each fault of TENANCY is one check, and the text of what is sent then."""
    given, text, hint = FAULTS[name]
    settings.DATABASE_ROUTERS = [ROUTER]
    settings.DJANGO_CQRS = {**DJANGO_CQRS, "TENANCY": given}

    assert found("E080") == [(text, hint)]

    @command_handler("do", name="do")
    def do():
        pass

    with pytest.raises(ImproperlyConfigured) as caught:
        registry_of(do).command_bus.dispatch(route="do")
    assert str(caught.value) == f"{text} {hint}"


def test_a_missing_router_E080_is_an_error():
    """Without the router, what handlers query would be in the shared database."""
    with with_tenancy(routers=()):
        assert found("E080") == [
            (
                (
                    "DJANGO_CQRS['TENANCY'] gives each tenant a database, but no router "
                    "sends queries there: DATABASE_ROUTERS has no TenantRouter."
                ),
                "Add 'django_cqrs.tenancy.TenantRouter' to DATABASE_ROUTERS.",
            )
        ]


def test_good_tenancy_has_no_check():
    """A dict, a callable, and a path of one are fine; a mapping of any kind is a dict."""

    class Databases(Mapping):
        def __getitem__(self, name):
            return GOOD[name]

        def __iter__(self):
            return iter(GOOD)

        def __len__(self):
            return len(GOOD)

    for databases in (GOOD, nobody, f"{__name__}.nobody", Databases()):
        with with_tenancy(databases, SHARED=["auth"], TENANTS=lambda: ["acme"]):
            assert [found(rule) for rule in ("E080", "W080", "W081")] == [[], [], []]


class Primary:
    def db_for_write(self, model, **hints):
        return "default" if model._meta.app_label != "modelling" else None


class AccountsElsewhere:
    def db_for_write(self, model, **hints):
        return "other" if model is Account else None


class Broken:
    def db_for_write(self, model, **hints):
        raise ValueError


@pytest.fixture
def accounts():
    """Have the project's registry know an aggregate."""
    registry.add(Account)
    yield
    registry._added.clear()
    registry.reset()


def test_a_router_before_the_tenants_W080_is_a_warning(accounts):
    """A router that answers for what each tenant has is named, and the model."""
    hint = (
        f"Put {ROUTER!r} first in DATABASE_ROUTERS; name the apps that all tenants "
        "share in TENANCY['SHARED']."
    )
    before = [f"{__name__}.{name}" for name in ("Broken", "Primary")]
    with with_tenancy(routers=[*before, ROUTER, f"{__name__}.AccountsElsewhere"]):
        [(text, said)] = found("W080")
        assert text.startswith(
            f"The router {__name__}.Primary answers for django_cqrs_"
        )
        assert text.endswith("so its rows are in 'default' for every tenant.")
        assert said == hint
    with with_tenancy(routers=[f"{__name__}.AccountsElsewhere", ROUTER]):
        assert found("W080") == [
            (
                (
                    f"The router {__name__}.AccountsElsewhere answers for "
                    "modelling.Account before TenantRouter, so its rows are in 'other' for "
                    "every tenant."
                ),
                hint,
            )
        ]
    with with_tenancy(
        routers=[f"{__name__}.AccountsElsewhere", ROUTER], SHARED=["modelling"]
    ):
        assert found("W080") == []


def test_keys_that_all_tenants_share_W081_are_a_warning(settings, monkeypatch):
    """In a project of django-tenants, keys in a shared table are for TENANCY."""

    @registry.add
    @command_handler("pay", name="pay", idempotency_key=lambda message: "k")
    def pay():
        pass

    is_installed = apps.is_installed
    monkeypatch.setattr(
        apps,
        "is_installed",
        lambda name: name == "django_tenants" or is_installed(name),
    )
    try:
        assert found("W081") == []
        settings.SHARED_APPS = ["django_tenants", "django_cqrs.outbox"]
        place = f"{__name__}.{pay.__qualname__}"
        assert found("W081") == [
            (
                (
                    f"{place} has idempotency_key=, and all tenants share the table of "
                    "keys: a message of one tenant would get the answer of another's."
                ),
                "Set DJANGO_CQRS['TENANCY'] = {'HEADER': 'tenant', 'SCHEMAS': True}.",
            )
        ]
        with with_tenancy():
            assert found("W081") == []
    finally:
        registry._added.clear()
        registry.reset()


def test_the_listing_says_whose_transaction_a_handler_has():
    """`cqrs_routes` says that the tenant decides; with an active tenant, its database."""

    @command_handler("own", name="own")
    def own():
        pass

    @command_handler("share", name="share", tenant=False)
    def share():
        pass

    @command_handler("bound", name="bound", using="other")
    def bound():
        pass

    routes = registry_of(own, share, bound)
    with with_tenancy():
        found = {each.name: transaction_of(each) for each in routes.routes.endpoints}
        assert found == {"own": "tenant's", "share": "default", "bound": "other"}
        with tenant("globex"):
            assert transaction_of(routes.routes.endpoint_named("own")) == "other"
        lines = explain(routes, "own")
    assert any("on the database of the tenant" in line for line in lines)


@pytest.mark.django_db(databases=["default", "other"])
def test_a_tenants_database_without_the_outbox_E002_is_an_error(monkeypatch):
    """`check --database` asks the databases of all tenants for the tables."""

    @registry.add
    @command_handler("do", name="do")
    def do():
        pass

    introspection = type(connections["other"].introspection)
    monkeypatch.setattr(introspection, "table_names", lambda *_: [])
    try:
        assert [each.id for each in check_tables(databases=["other"])] == []
        with with_tenancy():
            found = check_tables(databases=["other"])
            assert [(each.id, "'other'" in each.msg) for each in found] == [
                ("django_cqrs_outbox.E002", True)
            ]
        with with_tenancy(routers=()):
            assert check_tables(databases=["other"]) == []
    finally:
        registry._added.clear()
        registry.reset()
