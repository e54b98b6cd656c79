"""One header of a message decides on the database of all that its handling touches."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Protocol
from uuid import UUID, uuid4

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction

from django_cqrs import (
    CommandBus,
    EventBus,
    Fetch,
    Message,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.documents import DocumentStore
from django_cqrs.documents.models import Document
from django_cqrs.exceptions import MissingTenant, TenantSwitch, UnknownTenant
from django_cqrs.modelling import (
    Repository,
    business_interface,
    implement,
    sql_query,
    sql_write,
)
from django_cqrs.outbox.models import InboxEntry, JournalEntry, OutboxMessage
from django_cqrs.tenancy import (
    CurrentTenant,
    all_tenants,
    current_tenant,
    tenant,
    tenant_activated,
    tenant_deactivated,
)
from tests.documents.kinds import DataclassOrder, Place
from tests.modelling.messages import Deposit, OpenAccount, OrderPlaced
from tests.modelling.models import Account, Fulfilment
from tests.outbox.support import letters, rows, work
from tests.support import registry_of
from tests.tenancy.support import with_tenancy
from tests.testapp.models import Note

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]


@pytest.fixture(autouse=True)
def _tenancy():
    with with_tenancy():
        yield


@message("tenancy.everything")
@dataclass(frozen=True)
class Everything:
    key: str
    order_id: UUID


@message("tenancy.write")
@dataclass(frozen=True)
class Write:
    text: str
    headers: dict | None = None


@message("tenancy.written")
@dataclass(frozen=True)
class Written:
    text: str


@dataclass(frozen=True)
class Count:
    text: str


@message("tenancy.later")
@dataclass(frozen=True)
class Later:
    text: str


@business_interface
class Notes(Protocol):
    @sql_query("SELECT COUNT(*) FROM testapp_note")
    def count(self) -> int: ...

    @sql_write("INSERT INTO testapp_note (text, number) VALUES (%(text)s, 0)")
    def add(self, text: str) -> None: ...


THEMES = DocumentStore(dict, collection="tenancy.theme")


@command_handler(name="tenancy.write")
def write(command: Write) -> str | None:
    Note.objects.create(text=command.text)
    return current_tenant()


@event_handler(name="tenancy.on_written")
def on_written(event: Written):
    Note.objects.create(text=f"on {event.text}")


@event_handler(name="tenancy.on_written_later", channel="outbox")
def on_written_later(event: Written, commands: CommandBus):
    commands.dispatch(Write(f"later {event.text}"))
    commands.dispatch(Later("last"))


@command_handler(name="tenancy.later", channel="outbox")
def later(command: Later, who: CurrentTenant):
    Note.objects.create(text=f"{command.text} of {who}")


@query_handler(name="tenancy.count")
def count(query: Count):
    return Note.objects.filter(text=query.text).count()


@command_handler(name="tenancy.everything", idempotency_key="key")
def everything(  # noqa: PLR0917 - all that a handler may work with
    command: Everything,
    commands: CommandBus,
    queries: QueryBus,
    events: EventBus,
    accounts: Repository[Account],
    notes: Notes,
) -> list:
    Note.objects.create(text="direct")
    commands.dispatch(Write("nested"))
    account_id = commands.dispatch(OpenAccount("ann"))
    commands.dispatch(Deposit(account_id, 5), aggregate_id=account_id)
    account = accounts.get(account_id)
    account.balance += 1
    accounts.save(account)
    commands.dispatch(Place(command.order_id, "order"))
    THEMES.add("dark", {"colour": "black"})
    events.publish(OrderPlaced(7))
    events.publish(Written("it"))
    notes.add("sql")
    return [queries.ask(Count("nested")), notes.count()]


HANDLERS = [
    *(everything, write, on_written, on_written_later, later, count),
    *(Account, Fulfilment, DataclassOrder, Written, Write, Everything, Later),
]


def kept(using):
    """Return what a database has, by table."""
    return {
        "notes": sorted(Note.objects.using(using).values_list("text", flat=True)),
        "accounts": list(
            Account.objects.using(using).values_list("balance", flat=True)
        ),
        "sagas": Fulfilment.objects.using(using).count(),
        "documents": sorted(
            Document.objects.using(using).values_list("collection", flat=True)
        ),
        "keys": InboxEntry.objects.using(using).count(),
        "journal": sorted(
            JournalEntry.objects.using(using).values_list("endpoint", flat=True)
        ),
        "waiting": OutboxMessage.objects.using(using).count(),
    }


NOTHING = {
    "notes": [],
    "accounts": [],
    "sagas": 0,
    "documents": [],
    "keys": 0,
    "journal": [],
    "waiting": 0,
}


@pytest.mark.parametrize(
    ("name", "own", "other"),
    [("acme", "default", "other"), ("globex", "other", "default")],
)
def test_t01_1_all_that_one_message_touches_is_in_its_tenants_database(
    name, own, other
):
    """
    Commands, queries, events, aggregates, documents, sagas, SQL interfaces, outbox,
    inbox and journal of a message are in its tenant's database, and so is what comes of
    what it sends. [T01.1]
    """
    with with_tenancy(also={"JOURNAL": timedelta(days=1)}):
        registry = registry_of(*HANDLERS)
        bus = registry.command_bus

        answer = bus.dispatch(Everything("k", uuid4()), headers={"tenant": name})

        assert answer == [1, 4]
        assert kept(other) == NOTHING
        found = kept(own)
        assert found.pop("journal") != []
        assert found == {
            "notes": ["direct", "nested", "on it", "sql"],
            "accounts": [6],
            "sagas": 1,
            "documents": ["papers.dataclass_order", "tenancy.theme"],
            "keys": 1,
            "waiting": 2,
        }

        assert work(registry, using=other).taken == 0
        assert work(registry, using=own).handled == 2

        assert kept(other) == NOTHING
        found = kept(own)
        assert found["notes"] == [
            *("direct", f"last of {name}", "later it", "nested", "on it", "sql"),
        ]
        assert "tenancy.on_written_later" in found["journal"]


@pytest.mark.parametrize("using", ["default", "other"])
def test_t01_1_a_failure_is_in_the_journal_of_its_tenant(using):
    """The journal has the failure of a command where the tenant's data is. [T01.1]"""
    name = {"default": "acme", "other": "globex"}[using]

    @command_handler("fail", name="fail")
    def fail():
        Note.objects.create(text="gone")
        raise RuntimeError

    with with_tenancy(also={"JOURNAL": timedelta(days=1)}):
        bus = registry_of(fail).command_bus
        with pytest.raises(RuntimeError), tenant(name):
            bus.dispatch(route="fail")

    found = JournalEntry.objects.using(using).values_list("endpoint", "outcome")
    assert list(found) == [("fail", "failed")]
    other = {"default": "other", "other": "default"}[using]
    assert not JournalEntry.objects.using(other).exists()
    assert not Note.objects.using(using).exists()


def test_t01_1_a_fetched_object_is_the_tenants():
    """`Fetch` reads the object that the tenant has, in commands and in queries. [T01.1]"""
    for alias, owner in (("default", "a"), ("other", "g")):
        Account.objects.using(alias).create(pk=1, owner=owner)

    @query_handler("owner", name="owner")
    def owner_of(number: int, account: Annotated[Account, Fetch(lambda m: m.payload)]):
        return account.owner

    @command_handler("take", name="take")
    def take(number: int, account: Annotated[Account, Fetch(lambda m: m.payload)]):
        return account.owner

    registry = registry_of(owner_of, take)
    for name, owner in (("acme", "a"), ("globex", "g")):
        with tenant(name):
            assert registry.query_bus.ask(1, route="owner") == owner
            assert registry.command_bus.dispatch(1, route="take") == owner


def test_t01_1_a_query_that_is_read_later_reads_the_tenants_rows():
    """A QuerySet that a handler returns keeps the database of its tenant. [T01.1]"""
    Note.objects.using("other").create(text="g")

    @query_handler("notes", name="notes")
    def notes():
        return Note.objects.all()

    bus = registry_of(notes).query_bus
    found = bus.ask(route="notes", headers={"tenant": "globex"})
    assert [each.text for each in found] == ["g"]
    assert current_tenant() is None


def test_t01_2_a_message_without_a_tenant_is_refused():
    """No header: MissingTenant names it, and no handler is called. [T01.2]"""
    registry = registry_of(write, count, on_written, later, Later)
    sendings = {
        "tenancy.write": lambda: registry.command_bus.dispatch(Write("x")),
        "tenancy.count": lambda: registry.query_bus.ask(Count("x")),
        "tenancy.on_written": lambda: registry.event_bus.publish(Written("x")),
        "tenancy.later": lambda: registry.command_bus.dispatch(Later("x")),
    }
    for endpoint, send in sendings.items():
        with pytest.raises(MissingTenant) as caught:
            send()
        assert str(caught.value) == (
            f"{endpoint} was not called: its message has no header 'tenant', so its "
            "tenant is not known. Give headers={'tenant': ...}, send the message in a "
            "block `with tenant(...)`, or let REQUEST_HEADERS return the header. A "
            "handler for the part that all tenants share has tenant=False."
        )
    assert kept("default") == kept("other") == NOTHING


def test_t01_2_an_unknown_tenant_is_refused_before_anything_is_opened():
    """An unknown tenant raises UnknownTenant; no connection is opened. [T01.2]"""
    bus = registry_of(write).command_bus
    opened = []

    def databases(name):
        if name == "none":
            return None
        return {"acme": "default", "lost": "nowhere"}[name]

    with with_tenancy(databases):
        for name, text in {
            "initech": (
                "Tenant 'initech' is not known: DJANGO_CQRS['TENANCY']['DATABASES'] has "
                "no database for it. Nothing was opened."
            ),
            "none": (
                "Tenant 'none' is not known: DJANGO_CQRS['TENANCY']['DATABASES'] has no "
                "database for it. Nothing was opened."
            ),
            "lost": (
                "Tenant 'lost' has the database 'nowhere', which is not in DATABASES. "
                "Nothing was opened. Add it there."
            ),
        }.items():
            before = set(connections.all(initialized_only=True))
            with pytest.raises(UnknownTenant) as caught:
                bus.dispatch(Write("x"), headers={"tenant": name})
            assert str(caught.value) == text
            with pytest.raises(UnknownTenant), tenant(name):
                opened.append(name)
            assert set(connections.all(initialized_only=True)) == before
    assert opened == []


@pytest.mark.parametrize("name", ["", True, 1.5, "x" * 101, "a\0b"])
def test_t01_2_a_value_that_cannot_be_a_name_is_refused(name):
    """A tenant's name is a text, a number or a UUID of at most 100 characters. [T01.2]"""
    bus = registry_of(write).command_bus
    with (
        pytest.raises(UnknownTenant, match="cannot be the name of a tenant"),
        tenant(name),
    ):
        pass
    if name != "a\0b":
        with pytest.raises(UnknownTenant, match="cannot be the name of a tenant"):
            bus.dispatch(Write("x"), headers={"tenant": name})


@pytest.mark.parametrize("value", [7, UUID(int=7)])
def test_a_number_or_a_uuid_names_a_tenant_as_its_text_does(value):
    """A tenant is the same by a number or a UUID as by their texts, on a channel too."""
    registry = registry_of(write, later, Later)
    with with_tenancy({str(value): "other"}):
        registry.command_bus.dispatch(Write("x"), headers={"tenant": value})
        registry.command_bus.dispatch(Later("y"), headers={"tenant": value})
        with tenant(value):
            assert current_tenant() == str(value)
            registry.command_bus.dispatch(Write("z"), headers={"tenant": str(value)})
        assert work(registry, using="other").handled == 1
    assert kept("other")["notes"] == ["x", f"y of {value}", "z"]


def test_t01_3_a_database_that_is_named_stands_before_the_header():
    """`using=` of a call, and of a handler, stands before the tenant's. [T01.3]"""
    aliases = []

    def note_alias():
        both = ("default", "other")
        aliases.extend(each for each in both if connections[each].in_atomic_block)

    @command_handler("free", name="free")
    def free():
        note_alias()

    @command_handler("bound", name="bound", using="default")
    def bound():
        note_alias()

    @command_handler("waits", name="waits", using="default", channel="outbox")
    def waits():
        note_alias()

    registry = registry_of(free, bound, waits)
    bus = registry.command_bus
    bus.dispatch(route="free", headers={"tenant": "globex"})
    bus.dispatch(route="free", headers={"tenant": "globex"}, using="default")
    bus.dispatch(route="bound", headers={"tenant": "globex"})
    bus.dispatch(route="free", using="other")
    bus.dispatch(route="bound")
    assert aliases == ["other", "default", "default", "other", "default"]

    bus.dispatch(route="waits", headers={"tenant": "globex"})
    bus.dispatch(route="waits", headers={"tenant": "globex"}, using="other")
    assert [len(rows(alias)) for alias in ("default", "other")] == [1, 1]
    assert work(registry, using="default").handled == 1
    assert work(registry, using="other").handled == 1
    assert aliases[5:] == ["default", "default"]


@command_handler("plan", name="plan", tenant=False)
def plan(text: str, who: CurrentTenant | None) -> None:
    Note.objects.create(text=f"{text} of {who}")


def test_t01_3_a_shared_handler_works_on_the_shared_part():
    """A handler with tenant=False needs no tenant, and works for none. [T01.3]"""
    bus = registry_of(plan).command_bus
    bus.dispatch("a", route="plan")
    bus.dispatch("b", route="plan", headers={"tenant": "globex"})
    with tenant("globex"):
        bus.dispatch("c", route="plan")
        assert current_tenant() == "globex"
    assert kept("default")["notes"] == ["a of None", "b of None", "c of None"]
    assert kept("other") == NOTHING


def test_t01_3_a_shared_handler_on_a_channel_works_on_the_shared_part():
    """Its message waits with the sender's data, and is handled in the shared database. [T01.3]"""

    @command_handler("share", name="share", tenant=False, channel="outbox")
    def share(text: str):
        Note.objects.create(text=f"{text} {connections['default'].in_atomic_block}")

    @command_handler("send", name="send")
    def send(text: str, commands: CommandBus):
        commands.dispatch(text, route="share")

    registry = registry_of(share, send)
    registry.command_bus.dispatch("a", route="send", headers={"tenant": "globex"})
    registry.command_bus.dispatch("b", route="share")
    assert [len(rows(alias)) for alias in ("default", "other")] == [1, 1]
    for alias in ("default", "other"):
        assert work(registry, using=alias).handled == 1
    assert kept("default")["notes"] == ["a True", "b True"]
    assert kept("other") == NOTHING


def test_t01_3_the_shared_part_in_the_middle_of_a_tenants_message():
    """`tenant(None)` is the shared part: no message in it has a tenant. [T01.3]"""
    seen = []

    @command_handler("outer", name="outer")
    def outer(message: Message, commands: CommandBus):
        with tenant(None):
            seen.append((current_tenant(), "tenant" in message.headers))
            commands.dispatch("x", route="plan")
            with pytest.raises(MissingTenant):
                commands.dispatch(Write("y"))
            with tenant("globex"):
                seen.append(commands.dispatch(Write("z")))
            with pytest.raises(TenantSwitch), tenant("acme"):
                pass
        seen.append(commands.dispatch(Write("after")))

    bus = registry_of(outer, plan, write).command_bus
    bus.dispatch(route="outer", headers={"tenant": "globex"})
    assert seen == [(None, True), "globex", "globex"]
    assert kept("other")["notes"] == ["after", "z"]
    assert kept("default")["notes"] == ["x of None"]


def test_t01_4_a_message_of_another_tenant_is_refused_inside_of_one():
    """TenantSwitch is raised, and nothing of either tenant is kept. [T01.4]"""

    @command_handler("outer", name="outer")
    def outer(how: str, commands: CommandBus, queries: QueryBus, events: EventBus):
        Note.objects.create(text="outer")
        headers = {"tenant": "acme"}
        match how:
            case "command":
                commands.dispatch(Write("inner"), headers=headers)
            case "channel":
                commands.dispatch(Later("inner"), headers=headers)
            case "query":
                queries.ask(Count("inner"), headers=headers)
            case "event":
                events.publish(Written("inner"), headers=headers)
            case "shared":
                commands.dispatch("inner", route="plan", headers=headers)
            case "block":
                with tenant("acme"):
                    commands.dispatch(Write("inner"))

    registry = registry_of(outer, write, count, on_written, later, Later, plan)
    for how, begin in {
        "command": "tenancy.write was not called",
        "channel": "tenancy.later was not called",
        "query": "tenancy.count was not called",
        "event": "tenancy.on_written was not called",
        "shared": "plan was not called",
        "block": "tenant('acme') was not entered",
    }.items():
        with pytest.raises(TenantSwitch) as caught:
            registry.command_bus.dispatch(
                how, route="outer", headers={"tenant": "globex"}
            )
        assert str(caught.value) == (
            f"{begin}: its tenant is 'acme', but a message of tenant 'globex' is being "
            "handled. Send it where no message of a tenant is handled, such as in a "
            "handler with tenant=False whose message has no tenant."
        )
        assert kept("default") == kept("other") == NOTHING


def test_a_shared_message_may_be_followed_by_those_of_all_tenants():
    """What a handler without any tenant sends to each of them is each one's."""

    @command_handler("all", name="all", tenant=False)
    def to_all(commands: CommandBus):
        for name in all_tenants():
            with tenant(name):
                commands.dispatch(Write(name))

    bus = registry_of(to_all, write).command_bus
    bus.dispatch(route="all")
    assert kept("default")["notes"] == ["acme"]
    assert kept("other")["notes"] == ["globex"]


def test_t01_5_blocks_nest_and_end_after_an_exception():
    """`with tenant("a")` nests, and what was active before is active again. [T01.5]"""
    bus = registry_of(write).command_bus
    with tenant("acme"):
        with tenant("globex"):
            assert bus.dispatch(Write("inner")) == "globex"
            with tenant(None):
                assert current_tenant() is None
        assert bus.dispatch(Write("outer")) == "acme"
        with pytest.raises(RuntimeError), tenant("globex"):
            raise RuntimeError
        assert current_tenant() == "acme"
    assert current_tenant() is None
    with pytest.raises(MissingTenant):
        bus.dispatch(Write("none"))
    assert kept("default")["notes"] == ["outer"]
    assert kept("other")["notes"] == ["inner"]


def test_t01_5_the_tenant_of_a_message_ends_with_it_after_an_exception():
    """A handler that fails leaves no tenant behind. [T01.5]"""

    @command_handler("fail", name="fail")
    def fail():
        raise RuntimeError

    bus = registry_of(fail).command_bus
    with pytest.raises(RuntimeError):
        bus.dispatch(route="fail", headers={"tenant": "globex"})
    assert current_tenant() is None


def test_t01_5_a_block_without_the_setting_is_refused(settings):
    """`tenant(...)` without TENANCY says that the setting is missing. [T01.5]"""
    settings.DJANGO_CQRS = {
        key: value for key, value in settings.DJANGO_CQRS.items() if key != "TENANCY"
    }
    with pytest.raises(ImproperlyConfigured) as caught, tenant("acme"):
        pass
    assert str(caught.value) == (
        "tenant('acme') was called, but settings.DJANGO_CQRS has no 'TENANCY'."
    )
    assert all_tenants() == []


@pytest.mark.parametrize("channel", ["outbox", "memory"])
def test_t01_6_the_header_passes_through_channels(channel):
    """A message that waited is its tenant's, and so is what its handler sends. [T01.6]"""
    from django_cqrs.channels import channels

    @command_handler("first", name="first", channel=channel)
    def first(text: str, commands: CommandBus):
        commands.dispatch(text, route="second")

    @command_handler("second", name="second", channel=channel)
    def second(text: str, who: CurrentTenant):
        Note.objects.create(text=f"{text} of {who}")

    registry = registry_of(first, second)
    for name in ("acme", "globex"):
        registry.command_bus.dispatch("x", route="first", headers={"tenant": name})
    for _ in range(2):
        if channel == "memory":
            channels["memory"].run()
        else:
            for alias in ("default", "other"):
                work(registry, using=alias)
    assert kept("default")["notes"] == ["x of acme"]
    assert kept("other")["notes"] == ["x of globex"]


def test_a_stored_message_without_a_tenant_is_a_dead_letter_at_once():
    """A message from before TENANCY names no tenant: it is given up without retries."""
    registry = registry_of(later, Later)
    registry.command_bus.dispatch(Later("x"), headers={"tenant": "globex"})
    OutboxMessage.objects.using("other").update(headers=b"{}")

    tally = work(registry, using="other")

    assert (tally.failed, tally.dead) == (1, 1)
    [letter] = letters("other")
    assert (letter.attempts, letter.exception) == (
        1,
        "django_cqrs.exceptions.MissingTenant",
    )


def test_a_message_whose_tenant_has_moved_is_handled_in_the_new_database():
    """The header decides, not the database in which a message waits."""
    registry = registry_of(later, Later)
    registry.command_bus.dispatch(Later("x"), headers={"tenant": "globex"})
    with with_tenancy({"acme": "other", "globex": "default"}):
        assert work(registry, using="other").handled == 1
    assert kept("default")["notes"] == ["x of globex"]
    assert kept("other") == NOTHING


def test_an_aggregate_that_is_sent_to_from_the_shared_part_is_the_tenants():
    """Its message waits with the sender's data; its object is in the tenant's database."""

    @command_handler("start", name="start", tenant=False)
    def start(commands: CommandBus):
        with tenant("globex"):
            commands.dispatch(route="account.later")

    @command_handler("account.later", name="account.later", channel="outbox")
    def open_later(commands: CommandBus):
        commands.dispatch(OpenAccount("g"))

    registry = registry_of(start, open_later, Account)
    registry.command_bus.dispatch(route="start")
    assert [len(rows(alias)) for alias in ("default", "other")] == [1, 0]
    assert work(registry, using="default").handled == 1
    assert Account.objects.using("other").count() == 1
    assert Account.objects.using("default").count() == 0


def test_models_of_shared_apps_stay_in_the_shared_database():
    """The router leaves the apps in `SHARED` where they are."""
    bus = registry_of(write).command_bus
    with with_tenancy(SHARED=["testapp"]), tenant("globex"):
        bus.dispatch(Write("x"))
    assert kept("default")["notes"] == ["x"]


def test_an_object_stays_in_its_own_database():
    """What was loaded from one database is saved there, whoever is active."""
    found = Note.objects.using("default").create(text="before")
    with tenant("globex"):
        found.text = "after"
        found.save()
        Note(text="new").save()
    assert kept("default")["notes"] == ["after"]
    assert kept("other")["notes"] == ["new"]


def test_a_method_with_sql_needs_a_tenant():
    """SQL that is called where no tenant is active is refused, and nothing is read."""
    notes = implement(Notes, registry=Registry())
    with pytest.raises(MissingTenant, match="no tenant is active"):
        notes.count()
    with tenant("globex"):
        notes.add("x")
        assert notes.count() == 1
    with tenant(None):
        assert notes.count() == 0


def test_signals_tell_when_a_tenant_becomes_active_and_when_it_ends():
    """Each change of the active tenant is told, around the shared part too."""
    seen = []

    def note_in(sender, tenant, using, **more):
        seen.append(f"+{tenant} {using}")

    def note_out(sender, tenant, using, **more):
        seen.append(f"-{tenant} {using}")

    @command_handler("fail", name="fail")
    def fail(commands: CommandBus):
        commands.dispatch(Write("same"))
        commands.dispatch("x", route="plan")
        raise RuntimeError

    tenant_activated.connect(note_in)
    tenant_deactivated.connect(note_out)
    try:
        bus = registry_of(fail, plan, write).command_bus
        with pytest.raises(RuntimeError):
            bus.dispatch(route="fail", headers={"tenant": "globex"})
        assert seen == [
            "+globex other",
            "-globex other",
            "+globex other",
            "-globex other",
        ]
        seen.clear()
        with tenant("acme"), tenant("globex"):
            pass
        assert seen == [
            *("+acme default", "-acme default", "+globex other"),
            *("-globex other", "+acme default", "-acme default"),
        ]
    finally:
        tenant_activated.disconnect(note_in)
        tenant_deactivated.disconnect(note_out)


def test_a_receiver_that_fails_keeps_the_message_from_being_handled():
    """A tenant whose data could not be protected is not worked for."""

    def refuse(sender, **more):
        raise RuntimeError("no")

    tenant_activated.connect(refuse)
    try:
        bus = registry_of(write).command_bus
        with pytest.raises(RuntimeError, match="no"):
            bus.dispatch(Write("x"), headers={"tenant": "globex"})
        assert current_tenant() is None
    finally:
        tenant_activated.disconnect(refuse)
    assert kept("other") == NOTHING


def test_a_service_cannot_be_built_for_one_tenant():
    """A service lives for all messages, so its __init__ takes no CurrentTenant. [T03.5]"""
    from django_cqrs import service
    from django_cqrs.exceptions import InvalidHandler

    @service
    class Mailer:
        def __init__(self, who: CurrentTenant) -> None:
            self.who = who

    @command_handler("mail", name="mail")
    def mail(mailer: Mailer):
        pass

    bus = registry_of(mail).command_bus
    with pytest.raises(InvalidHandler, match="belongs to one message"), tenant("acme"):
        bus.dispatch(route="mail")


def test_a_thread_begins_without_a_tenant():
    """A new thread has no tenant: a message from it is refused, not given to another's."""
    bus = registry_of(write).command_bus
    caught = []

    def run():
        try:
            bus.dispatch(Write("x"))
        except MissingTenant as error:
            caught.append(error)
        finally:
            connections.close_all()

    with tenant("globex"):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_the_callers_transaction_is_the_tenants():
    """An `atomic()` of the caller's, on the tenant's database, is the one that counts."""
    bus = registry_of(write).command_bus

    def run():
        with tenant("globex"), transaction.atomic(using="other"):
            bus.dispatch(Write("x"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert kept("other") == NOTHING


@pytest.mark.parametrize("channel", [None, "outbox"])
def test_a_database_by_header_takes_no_statement_more(channel):
    """The statements are those of a call that names the database by hand."""

    @command_handler("count", name="count", channel=channel)
    def count():
        Note.objects.create(text="counted")

    registry = registry_of(count)
    bus = registry.command_bus

    def statements(**options):
        asked, elsewhere = [], []

        def noting(found):
            def note(execute, sql, parameters, many, context):
                if not str(sql).startswith("NOTIFY"):  # not more than one in 20 ms
                    found.append(VALUES.sub("?", str(sql)))
                return execute(sql, parameters, many, context)

            return note

        with (
            connections["other"].execute_wrapper(noting(asked)),
            connections["default"].execute_wrapper(noting(elsewhere)),
        ):
            bus.dispatch(route="count", **options)
            sent = len(asked)
            if channel is not None:
                work(registry, using="other")
        assert elsewhere == []
        # Its transactions, and so how often it begins one, depend on the time.
        return asked[:sent], set(asked[sent:])

    with with_tenancy():
        headers = {"tenant": "globex"}
        statements(headers=headers, using="other")
        by_hand = statements(headers=headers, using="other")
        assert statements(headers=headers) == by_hand
    assert by_hand[0]


VALUES = re.compile(r"[xX]?'(?:[^']|'')*'|\bcqrs_\w+|\b\d[\d.]*")
"""The values in a statement, which differ from call to call."""
