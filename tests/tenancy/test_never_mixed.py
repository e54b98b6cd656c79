"""What several tenants share holds nothing of one for another."""

from __future__ import annotations

import asyncio
import io
import json
import random
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command
from django.db import connections

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    Message,
    QueryBus,
    Retry,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.channels import channels
from django_cqrs.exceptions import MissingTenant
from django_cqrs.outbox.models import (
    DeadLetter,
    InboxEntry,
    JournalEntry,
    OutboxMessage,
    State,
)
from django_cqrs.outbox.statistics import statistics_of
from django_cqrs.outbox.timeline import correlations_of, timeline_of
from django_cqrs.tenancy import CurrentTenant, current_tenant, tenant
from tests.limits import LIMIT
from tests.modelling.messages import OrderPlaced, PaymentDue
from tests.modelling.models import Fulfilment
from tests.outbox.support import letters, rows, work
from tests.support import registry_of
from tests.tenancy.support import with_tenancy
from tests.testapp.models import Note

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]

SHARED = {"acme": "default", "globex": "default"}
"""Two tenants in one database, as two schemas beside one outbox would be."""


@pytest.fixture
def shared():
    with with_tenancy(SHARED, also={"JOURNAL": timedelta(days=1)}):
        yield


@message("tenancy.pay")
@dataclass(frozen=True)
class Pay:
    number: int
    fails: bool = False


@dataclass(frozen=True)
class Look:
    number: int


# ----------------------------------------------------------------------------- at once


@pytest.mark.long
def test_t03_1_threads_and_tasks_at_once_keep_to_their_tenants():  # noqa: PLR0915
    """
    Fifty threads and fifty tasks of an event loop, with ten tenants: no header, alias or
    row is that of another. [T03.1]
    """
    names = [f"tenant{number}" for number in range(10)]
    databases = {
        name: "other" if number % 2 else "default" for number, name in enumerate(names)
    }
    wrong: list[Any] = []

    @command_handler(name="pay")
    def pay(
        command: Pay,
        who: CurrentTenant,
        message: Message,
        queries: QueryBus,
        events: EventBus,
    ):
        alias = databases[who]
        own = Note.objects.create(text=who, number=command.number)
        if own._state.db != alias or message.headers["tenant"] != who:
            wrong.append((who, own._state.db))
        if queries.ask(Look(command.number)) != who:
            wrong.append((who, "query"))
        events.publish(Look(command.number))

    @query_handler(name="look")
    async def look(query: Look, who: CurrentTenant):
        await asyncio.sleep(0)
        return str(who)

    @event_handler(name="seen")
    def seen(event: Look, who: CurrentTenant):
        Note.objects.create(text=f"{who}!", number=event.number)

    registry = registry_of(pay, look, seen)
    bus = registry.command_bus

    def in_thread(place):
        chance = random.Random(place)
        try:
            start.wait(LIMIT)
            for step in range(3):
                name = chance.choice(names)
                if step % 2:
                    bus.dispatch(Pay(place), headers={"tenant": name})
                else:
                    with tenant(name):
                        bus.dispatch(Pay(place))
            if current_tenant() is not None:
                wrong.append((place, current_tenant()))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            wrong.append((place, error))
        finally:
            connections.close_all()

    async def in_task(place):
        chance = random.Random(place)
        for step in range(3):
            name = chance.choice(names)
            await asyncio.sleep(0)
            if step % 2:
                await bus.adispatch(Pay(place), headers={"tenant": name})
            else:
                with tenant(name):
                    await asyncio.sleep(0)
                    await bus.adispatch(Pay(place))
                    if current_tenant() != name:
                        wrong.append((place, name, current_tenant()))
        if current_tenant() is not None:
            wrong.append((place, current_tenant()))

    async def all_tasks():
        try:
            await asyncio.gather(*(in_task(100 + place) for place in range(50)))
        finally:
            await sync_to_async(connections.close_all)()

    with with_tenancy(databases):
        start = threading.Barrier(51)
        threads = [threading.Thread(target=in_thread, args=(n,)) for n in range(50)]
        for each in threads:
            each.start()
        start.wait(LIMIT)
        asyncio.run(all_tasks())
        for each in threads:
            each.join(LIMIT)

    assert wrong == []
    found = {
        alias: set(Note.objects.using(alias).values_list("text", flat=True))
        for alias in ("default", "other")
    }
    for alias, texts in found.items():
        assert {databases[text.rstrip("!")] for text in texts} == {alias}
    assert sum(Note.objects.using(each).count() for each in found) == 600


def test_t03_1_a_cancelled_task_leaves_no_tenant_behind():
    """A task that is cancelled while its command runs has no tenant afterwards. [T03.1]"""
    begun, go_on = threading.Event(), threading.Event()

    @command_handler("wait", name="wait")
    def wait():
        begun.set()
        go_on.wait(LIMIT)

    bus = registry_of(wait).command_bus
    seen = []

    async def send():
        try:
            await bus.adispatch(route="wait", headers={"tenant": "acme"})
        except asyncio.CancelledError:
            seen.append(current_tenant())
            raise

    async def cancel():
        task = asyncio.create_task(send())
        await asyncio.to_thread(begun.wait, LIMIT)
        task.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await sync_to_async(connections.close_all)()

    with with_tenancy():
        asyncio.run(cancel())
    assert seen == [None]


# -------------------------------------------------------------------------------- keys


def test_t03_2_one_idempotency_key_in_two_tenants_is_two(shared):
    """Both messages are handled, and each sender gets its own answer. [T03.2]"""

    @command_handler("pay", name="pay", idempotency_key=Header("payment"))
    def pay(amount: int, who: CurrentTenant) -> str:
        Note.objects.create(text=who, number=amount)
        return f"{who} {amount}"

    bus = registry_of(pay).command_bus
    for _ in range(2):
        for amount, name in enumerate(SHARED):
            headers = {"tenant": name, "payment": "k"}
            assert bus.dispatch(amount, route="pay", headers=headers) == (
                f"{name} {amount}"
            )
    assert sorted(Note.objects.values_list("text", flat=True)) == ["acme", "globex"]
    assert InboxEntry.objects.count() == 2


def test_t03_2_a_buss_key_is_the_tenants_too(shared):
    """A bus with `idempotency_key=` keeps the tenants apart, on channels too. [T03.2]"""

    @command_handler("pay", name="pay")
    def pay(amount: int, who: CurrentTenant) -> str:
        return f"{who} {amount}"

    @command_handler(name="later", channel="outbox")
    def later(command: Pay):
        pass

    registry = registry_of(pay, later, Pay)
    bus = CommandBus(registry=registry, idempotency_key=Header("payment"))
    for _ in range(2):
        for amount, name in enumerate(SHARED):
            headers = {"tenant": name, "payment": "k"}
            answer = bus.dispatch(amount, route="pay", headers=headers)
            assert answer == f"{name} {amount}"
            bus.dispatch(Pay(1), headers=headers)
    assert [row.tenant for row in rows()] == ["acme", "globex"]


def test_t03_2_a_long_key_is_the_tenants_too(shared):
    """A key that is stored as a hash has its tenant in it. [T03.2]"""

    @command_handler("pay", name="pay", idempotency_key=Header("payment"))
    def pay(amount: int, who: CurrentTenant) -> str:
        return f"{who}"

    bus = registry_of(pay).command_bus
    for name in SHARED:
        headers = {"tenant": name, "payment": "k" * 300}
        assert bus.dispatch(1, route="pay", headers=headers) == name
    assert InboxEntry.objects.count() == 2


def test_t03_3_one_ordering_key_in_two_tenants_is_two(shared):
    """A dead letter of one tenant lets the messages of the other go on. [T03.3]"""

    @command_handler(
        name="pay",
        channel="outbox",
        ordering_key=lambda message: "k",
        retry=Retry(attempts=1),
    )
    def pay(command: Pay, who: CurrentTenant):
        if command.fails:
            raise RuntimeError
        Note.objects.create(text=who, number=command.number)

    registry = registry_of(pay, Pay)
    with tenant("acme"):
        registry.command_bus.dispatch(Pay(1, fails=True))
        registry.command_bus.dispatch(Pay(2))
    with tenant("globex"):
        registry.command_bus.dispatch(Pay(1))
        registry.command_bus.dispatch(Pay(2))

    work(registry)

    assert list(Note.objects.order_by("number").values_list("text", "number")) == [
        ("globex", 1),
        ("globex", 2),
    ]
    assert [(row.tenant, State(row.state)) for row in rows()] == [
        ("acme", State.PARKED)
    ]
    assert [letter.tenant for letter in letters()] == ["acme"]


@pytest.mark.parametrize("channel", ["outbox", "memory"])
def test_a_saga_that_ends_cancels_no_timer_of_another_tenant(shared, channel, settings):
    """Timers of one identifier in two tenants are two: one saga ends, the other waits."""
    kinds = settings.DJANGO_CQRS["CHANNELS"]
    settings.DJANGO_CQRS = {
        **settings.DJANGO_CQRS,
        "CHANNELS": {**kinds, "outbox": kinds[channel]},
    }
    registry = registry_of(Fulfilment)

    @registry.add
    @command_handler("forget", name="forget", tenant=False)
    def forget_rows():
        Fulfilment.objects.all().delete()

    def waiting():
        if channel == "outbox":
            return sorted(str(row.tenant) for row in rows())
        held = channels["outbox"]._held()
        return sorted(str(each.envelope.tenant) for each, _ in held)

    for name in SHARED:  # one table of sagas, so that one must go before the other
        with tenant(name):
            registry.event_bus.publish(OrderPlaced(7))
        if name == "acme":
            registry.command_bus.dispatch(route="forget")
    assert waiting() == ["acme", "globex"]
    with tenant("globex"):
        registry.command_bus.dispatch(route="fulfilment.finish", aggregate_id=7)
    assert waiting() == ["acme"]


def test_t03_5_nothing_that_is_kept_belongs_to_a_tenant(shared):
    """Compiled runs, services and notes of one message are right for the next. [T03.5]"""
    from django_cqrs import service

    @service
    class Desk:
        def __init__(self):
            self.calls = 0

        def whose(self):
            self.calls += 1
            return current_tenant()

    @command_handler(name="pay", idempotency_key="number")
    def pay(command: Pay, desk: Desk, who: CurrentTenant) -> list:
        return [who, desk.whose(), desk.calls]

    bus = registry_of(pay).command_bus
    seen = [
        bus.dispatch(Pay(number), headers={"tenant": name})
        for number, name in enumerate(("acme", "globex", "acme"))
    ]
    assert seen == [["acme", "acme", 1], ["globex", "globex", 2], ["acme", "acme", 3]]
    assert list(
        JournalEntry.objects.order_by("pk").values_list("tenant", flat=True)
    ) == [
        *("acme", "globex", "acme"),
    ]


# ------------------------------------------------------------------- what people look at


@command_handler(name="pay.later", channel="outbox", retry=Retry(attempts=1))
def pay_later(command: Pay):
    if command.fails:
        raise RuntimeError(f"secret of {current_tenant()}")


@pytest.fixture
def mixed(shared):
    """Give each tenant two dead letters, one waiting message and two that were handled."""
    registry = registry_of(pay_later, Pay)
    for name in SHARED:
        with tenant(name):
            for number in range(4):
                registry.command_bus.dispatch(Pay(number, fails=number % 2 == 1))
    work(registry)
    for name in SHARED:
        with tenant(name):
            registry.command_bus.dispatch(Pay(9))
    return registry


def run(*arguments):
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_t03_4_cqrs_failed_shows_and_changes_one_tenant(mixed):
    """`list`, `show`, `replay` and `delete` with `--tenant` are of that tenant alone. [T03.4]"""
    for name, other in (("acme", "globex"), ("globex", "acme")):
        found = json.loads(
            run("cqrs_failed", "list", "--format", "json", "--tenant", name)
        )
        own = DeadLetter.objects.filter(tenant=name).values_list("pk", flat=True)
        assert sorted(each["id"] for each in found) == sorted(own)
        [theirs, *_] = DeadLetter.objects.filter(tenant=other)
        with pytest.raises(CommandError, match="Dead letter not found"):
            run("cqrs_failed", "show", str(theirs.pk), "--tenant", name)
        with pytest.raises(CommandError, match="Dead letter not found"):
            run("cqrs_failed", "replay", str(theirs.pk), "--tenant", name)
    assert run("cqrs_failed", "replay", "--all", "--tenant", "acme") == "Replayed 2.\n"
    assert run("cqrs_failed", "delete", "--all", "--no-input", "--tenant", "acme") == (
        "Deleted 0.\n"
    )
    assert [letter.tenant for letter in letters()] == ["globex", "globex"]
    assert [row.tenant for row in rows()].count("acme") == 3


def test_t03_4_cqrs_failed_waiting_shows_one_tenant(mixed):
    """Messages that wait for another attempt are of that tenant alone. [T03.4]"""
    OutboxMessage.objects.update(
        state=State.DELAYED, last_error="no", available_at="2100-01-01T00:00:00Z"
    )
    text = run("cqrs_failed", "waiting", "--tenant", "acme")
    assert text.count("pay.later") == 1


def test_t03_4_cqrs_stats_counts_one_tenant(mixed):
    """The figures are of that tenant; handled messages are not counted by tenant. [T03.4]"""
    [figures] = statistics_of("default", ["outbox"], tenant="acme")
    assert (figures.pending, figures.dead, figures.handled) == (1, 2, {})
    [everybody] = statistics_of("default", ["outbox"])
    assert (everybody.pending, everybody.dead) == (2, 4)
    text = run("cqrs_stats", "outbox", "--tenant", "acme")
    assert text.splitlines()[0].split() == [
        *("Channel", "Pending", "Oldest", "Delayed", "Dead"),
    ]
    found = json.loads(run("cqrs_stats", "--format", "json", "--tenant", "acme"))
    assert found["tenant"] == "acme"
    assert [each["dead"] for each in found["channels"]] == [2]


def test_t03_4_cqrs_prune_deletes_rows_of_one_tenant(mixed):
    """Tables that say whose a row is are pruned; keys and counts are not. [T03.4]"""
    DeadLetter.objects.update(failed_at="2000-01-01T00:00:00Z")
    JournalEntry.objects.update(at="2000-01-01T00:00:00Z")
    InboxEntry.objects.create(
        endpoint="x", key="k", message_id="0" * 32, created_at="2000-01-01T00:00:00Z"
    )
    run("cqrs_prune", "--dead-letters-older-than", "30d", "--tenant", "acme")
    assert [letter.tenant for letter in letters()] == ["globex", "globex"]
    assert set(JournalEntry.objects.values_list("tenant", flat=True)) == {"globex"}
    assert InboxEntry.objects.count() == 1


def test_t03_4_cqrs_check_deployed_counts_one_tenant(mixed):
    """Messages of other tenants are not counted. [T03.4]"""
    with pytest.raises(CommandError, match="cannot handle 1 of 1 stored messages"):
        run("cqrs_check_deployed", "--tenant", "acme")
    with pytest.raises(CommandError, match="cannot handle 3 of 3 stored messages"):
        run("cqrs_check_deployed", "--tenant", "acme", "--dead-letters")


@pytest.mark.parametrize(
    ("arguments", "begin"),
    [
        (("cqrs_channels", "pause", "outbox"), "outbox cannot be paused or resumed"),
        (("cqrs_channels", "resume", "outbox"), "outbox cannot be paused or resumed"),
        (("cqrs_worker", "outbox", "--until-empty"), "Messages cannot be handled"),
    ],
)
def test_what_cannot_be_done_for_one_of_several_is_refused(shared, arguments, begin):
    """A channel in a shared table is everybody's: the error says what to do instead."""
    with pytest.raises(CommandError) as caught:
        run(*arguments, "--tenant", "acme")
    assert str(caught.value) == (
        f"{begin} for tenant 'acme' alone, since several tenants share the tables in "
        "'default'. Use --database default, for all of them."
    )


def test_a_tenant_with_a_database_of_its_own_is_that_database():
    """`--tenant` then means all rows of its database, and everything can be done."""
    registry = registry_of(pay_later, Pay)
    with with_tenancy():
        with tenant("globex"):
            registry.command_bus.dispatch(Pay(1))
        OutboxMessage.objects.using("other").update(tenant=None)
        assert "Paused" in run("cqrs_channels", "pause", "outbox", "--tenant", "globex")
        assert "Resumed" in run(
            "cqrs_channels", "resume", "outbox", "--tenant", "globex"
        )
        assert "outbox" in run("cqrs_channels", "list", "--tenant", "globex")
        found = json.loads(run("cqrs_stats", "--format", "json", "--tenant", "globex"))
        assert (found["database"], "tenant" in found) == ("other", False)
        assert [each["pending"] for each in found["channels"]] == [1]
        OutboxMessage.objects.using("other").all().delete()
        text = run("cqrs_worker", "outbox", "--until-empty", "--tenant", "globex")
        assert "Handling outbox of 'other'." in text


def test_a_callable_that_lists_no_tenants_is_taken_for_shared():
    """Where nobody says which tenants there are, only the tenant's own rows are shown."""
    registry = registry_of(pay_later, Pay)
    with with_tenancy(lambda name: "other"):
        with tenant("globex"):
            registry.command_bus.dispatch(Pay(1))
        for name, count in (("globex", 1), ("acme", 0)):
            found = json.loads(run("cqrs_stats", "--format", "json", "--tenant", name))
            assert [each["pending"] for each in found["channels"]] == [count]


def test_a_command_for_a_tenant_that_is_not_known_is_refused():
    """The error is that of a message; without TENANCY, it names the setting."""
    with with_tenancy(), pytest.raises(CommandError, match="'initech' is not known"):
        run("cqrs_stats", "--tenant", "initech")
    with pytest.raises(CommandError) as caught:
        run("cqrs_stats", "--tenant", "acme")
    assert str(caught.value) == "--tenant needs DJANGO_CQRS['TENANCY'] in the settings."
    with with_tenancy(), pytest.raises(CommandError, match="not allowed with"):
        run("cqrs_stats", "--tenant", "acme", "--database", "other")


def test_cqrs_routes_shows_the_databases_of_one_tenant():
    """`cqrs_routes --tenant` shows aliases where the list says "tenant's"."""
    with with_tenancy():
        text = run("cqrs_routes", "--tenant", "globex", "--format", "json")
    assert "tenant's" not in text


def test_t03_4_the_timeline_shows_one_tenant(mixed):
    """Rows of another tenant are not shown, even with the same id or object. [T03.4]"""
    ids = list(JournalEntry.objects.values_list("correlation_id", flat=True))
    found = timeline_of(ids, using="default", tenant="acme")
    errors = {each.error for each in found.happenings if each.error}
    assert "secret of acme" in errors
    assert "secret of globex" not in errors
    assert len(list(found.happenings)) == 6  # four outcomes, and two dead letters
    JournalEntry.objects.update(subject="shop.Order:7")
    for name in SHARED:
        own = set(
            JournalEntry.objects.filter(tenant=name).values_list(
                "correlation_id", flat=True
            )
        )
        assert set(correlations_of("shop.Order:7", using="default", tenant=name)) == own


def test_a_message_of_no_tenant_is_nobodys(shared):
    """A row of the shared part has no tenant, and no tenant sees it."""

    @command_handler("share", name="share", tenant=False, channel="outbox")
    def share():
        pass

    registry = registry_of(share)
    registry.command_bus.dispatch(route="share")
    assert [row.tenant for row in rows()] == [None]
    [figures] = statistics_of("default", ["outbox"], tenant="acme")
    assert figures.pending == 0
    assert work(registry).handled == 1


def test_many_messages_of_one_command_have_their_tenant(shared):
    """Rows that are stored together, delayed and keyed ones too, say whose they are."""

    @command_handler("send", name="send")
    def send(commands: CommandBus):
        for number in range(3):
            commands.dispatch(Pay(number), delay=60)
        commands.dispatch(Pay(3))

    registry = registry_of(send, pay_later, Pay)
    for name in SHARED:
        registry.command_bus.dispatch(route="send", headers={"tenant": name})
    assert [row.tenant for row in rows()] == ["acme"] * 4 + ["globex"] * 4
    with pytest.raises(MissingTenant):
        registry.event_bus.publish(PaymentDue(1)) or registry.command_bus.dispatch(
            Pay(1)
        )


def test_t03_4_projections_are_those_of_the_tenants_database(shared):
    """Positions in a shared database are everybody's, so one tenant is refused. [T03.4]"""
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("cqrs_projections", "list", tenant="acme", stdout=out)
    assert str(caught.value) == (
        "cqrs_projections list cannot run for tenant 'acme' alone, since several "
        "tenants share the tables in 'default'. Use --database default, for all of them."
    )
    with with_tenancy():
        call_command("cqrs_projections", "list", tenant="globex", stdout=out)
    assert out.getvalue().splitlines()[-1].startswith("Settled position ")
