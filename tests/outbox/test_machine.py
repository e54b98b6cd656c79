"""Whatever happens in whatever order: nothing early, nothing lost, effects once."""

import os
from collections import Counter
from dataclasses import make_dataclass
from datetime import timedelta
from unittest import mock

import pytest
from django.db import connection, transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from django_cqrs import Registry, Retry, command_handler
from django_cqrs.messages import NAME_MARK, MessageName
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, Reason, State
from django_cqrs.outbox.store import LeaseLost, Store, replay
from django_cqrs.outbox.worker import Worker
from tests.outbox.support import examples, on_databases
from tests.testapp.models import Note

pytestmark = [*on_databases, pytest.mark.long]

# Without the search for a smaller example, which takes minutes where rows are real.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
if os.environ.get("CQRS_SHRINK") == "1":
    PHASES = list(Phase)

POLICY = Retry(attempts=3, delay=5, factor=2, jitter=False)
LEASE = timedelta(seconds=30)

messages = st.lists(
    st.fixed_dictionaries(
        {
            "how": st.sampled_from(["good", "good", "flaky", "bad", "broken"]),
            "delay": st.sampled_from([0, 0, 60]),
            "expires": st.sampled_from([None, None, 100]),
            "priority": st.sampled_from([0, 0, 1]),
            "is_undone": st.sampled_from([False, False, True]),
        }
    ),
    min_size=1,
    max_size=4,
)
batches = st.sampled_from([1, 2, 100])


def _generation(number):
    """Return the message class of one deployment, with the names it had before."""
    cls = make_dataclass("Work", [("number", int), ("how", str)], frozen=True)
    aliases = tuple(f"machine.work{n}" for n in range(1, number))
    # Not by @message: it is declared for no registry but those of this test.
    setattr(cls, NAME_MARK, MessageName(f"machine.work{number}", 1, aliases))
    return cls


GENERATIONS = [_generation(number) for number in range(1, 5)]


class Crash(BaseException):
    """The process has ended here."""


class RolledBack(Exception):
    pass


class Outbox(RuleBasedStateMachine):
    """What is committed, against what the tables and the handlers' effects say."""

    def __init__(self):
        super().__init__()
        self.offset = timedelta(0)
        real = timezone.now
        self.patch = mock.patch(
            "django.utils.timezone.now", side_effect=lambda: real() + self.offset
        )
        self.patch.start()
        self.now = real
        self.sent = {}  # of committed messages: their options
        self.undone = set()
        self.failed = Counter()
        self.replayed = set()
        self.crashed = False
        self.early = []
        self.stale = []  # claims of workers that are gone, or very late
        self.generation = 0
        self.count = 0
        self.deploy()

    # The application ----------------------------------------------------------------

    def deploy(self):
        """Declare everything anew, under new names that know the old ones."""
        self.generation += 1
        before = range(1, self.generation)
        self.message = GENERATIONS[self.generation - 1]

        def handle(command):
            self.handle(command.number, command.how)

        handle.__annotations__ = {"command": self.message}
        self.registry = Registry()
        self.registry.add(
            command_handler(
                name=f"machine.handle{self.generation}",
                aliases=[f"machine.handle{n}" for n in before],
                channel="outbox",
                retry=POLICY,
            )(handle)
        )

    def handle(self, number, how):
        options = self.sent[number]
        self.early += [number] if timezone.now() < options["due"] else []
        self.order.append((-options["priority"], number))
        Note.objects.create(text=how, number=number)
        is_mended = number in self.replayed
        if not is_mended and (
            how == "bad" or (how == "flaky" and not self.failed[number])
        ):
            self.failed[number] += 1
            raise ValueError(number)

    # Senders ------------------------------------------------------------------------

    def dispatch(self, each, sent):
        self.count += 1
        self.registry.command_bus.dispatch(
            self.message(self.count, each["how"]),
            delay=each["delay"] or None,
            expires=each["expires"],
            priority=each["priority"],
        )
        sent[self.count] = {
            **each,
            "due": timezone.now() + timedelta(seconds=each["delay"] - 1),
        }

    @rule(each=messages, is_committed=st.booleans(), is_nested=st.booleans())
    def send(self, each, is_committed, is_nested):
        sent = {}
        try:
            with transaction.atomic():
                for one in each:
                    if one["is_undone"] and is_nested:
                        self.send_in_vain(one)
                    else:
                        self.dispatch(one, sent)
                if not is_committed:
                    raise RolledBack
        except RolledBack:
            self.undone |= set(sent)
        else:
            self.sent.update(sent)
            for number, options in sent.items():
                if options["how"] == "broken":
                    self.spoil(number)

    def send_in_vain(self, one):
        sent = {}
        try:
            with transaction.atomic():
                self.dispatch(one, sent)
                raise RolledBack
        except RolledBack:
            self.undone |= set(sent)

    def spoil(self, number):
        for row in OutboxMessage.objects.all():
            if number_of(row) == number:
                text = f'{{"number":{number},"how":7}}'.encode()
                OutboxMessage.objects.filter(pk=row.pk).update(payload=text)

    # Workers ------------------------------------------------------------------------

    def worker(self, batch):
        self.order = []
        return Worker(
            self.registry, ["outbox"], using="default", batch=batch, lease=LEASE
        )

    @rule(batch=batches)
    def poll(self, batch):
        self.worker(batch).run_once()
        # Of those that were abandoned one is taken after all others.
        assert self.order[:-1] == sorted(self.order[:-1])

    @rule(batch=batches)
    def crash_before_the_settle(self, batch):
        worker = self.worker(batch)
        self.crash(worker, worker.store, "settle")

    @rule(batch=batches)
    def crash_after_the_settle(self, batch):
        worker = self.worker(batch)
        self.crash(worker, worker, "_report")

    def crash(self, worker, where, name):
        """Have a method end the process, which then gives nothing back."""
        with (
            mock.patch.object(where, name, side_effect=Crash, create=True)
            if where is worker
            else mock.patch.object(Store, name, side_effect=Crash),
            mock.patch.object(worker._handler, "give_back"),
        ):
            try:
                worker.run_once()
            except Crash:
                self.crashed = True

    @rule(batch=batches)
    def claim_and_be_late(self, batch):
        self.count += 1
        owner = f"late {self.count}"
        claimed = Store("default").claim(
            "outbox", limit=batch, owner=owner, lease=LEASE
        )
        if claimed:
            self.stale.append((owner, claimed))

    @precondition(lambda self: self.stale)
    @rule(place=st.integers(min_value=0))
    def finish_late(self, place):
        self.settle_late(place)

    @rule()
    def lose_a_lease(self):
        """A claim runs out, another worker takes it up, and then the first is done."""
        self.claim_and_be_late(100)
        self.clock_jumps(31)
        for _ in range(3):
            self.worker(100).run_once()
        if self.stale:
            self.settle_late(-1)

    def settle_late(self, place):
        """Whoever has lost its lease to another cannot settle, nor leave an effect."""
        owner, claimed = self.stale.pop(place % len(self.stale))
        keys = [each.pk for each in claimed]
        holds_all = len(Store("default").held(owner, keys)) == len(keys)
        try:
            with transaction.atomic():
                for each in claimed:
                    Note.objects.create(text="late", number=number_of(each.envelope))
                Store("default").settle(owner, keys)
        except LeaseLost:
            assert not holds_all
        else:
            assert holds_all

    # The world ----------------------------------------------------------------------

    @rule(seconds=st.sampled_from([4, 31, 61, 3600, -20]))
    def clock_jumps(self, seconds):
        self.let_pass(seconds)
        if seconds < 0:  # what was due by then stays so
            for options in self.sent.values():
                options["due"] += timedelta(seconds=seconds)

    def let_pass(self, seconds):
        """Let time pass for the worker, and for a server that counts leases itself."""
        self.offset += timedelta(seconds=seconds)
        if connection.vendor != "sqlite":
            held = OutboxMessage.objects.filter(lease_expires_at__isnull=False)
            for row in held:
                end = row.lease_expires_at - timedelta(seconds=seconds)
                held.filter(pk=row.pk).update(lease_expires_at=end)

    @precondition(lambda self: self.generation < 4)
    @rule()
    def rename(self):
        self.deploy()

    @rule()
    def replay(self):
        found = [
            letter
            for letter in DeadLetter.objects.all()
            if letter.reason != Reason.UNDECODABLE
        ]
        self.replayed |= {number_of(letter) for letter in found}
        assert replay(found, using="default") == len(found)

    # What holds ---------------------------------------------------------------------

    def places(self):
        """Return where each number is, as often as it is there."""
        effects = Counter(Note.objects.values_list("number", flat=True))
        waiting = Counter(map(number_of, OutboxMessage.objects.all()))
        dead = Counter(map(number_of, DeadLetter.objects.all()))
        return effects, waiting, dead

    @invariant()
    def every_message_is_in_one_place(self):
        effects, waiting, dead = self.places()
        everywhere = effects + waiting + dead
        assert not set(everywhere) & self.undone
        assert set(everywhere) <= set(self.sent)
        assert not everywhere or max(everywhere.values()) == 1
        for number, options in self.sent.items():
            assert number in everywhere or options["expires"], number

    @invariant()
    def nothing_is_early(self):
        assert self.early == []

    @invariant()
    def what_is_claimed_has_an_owner_and_nothing_else_has(self):
        for row in OutboxMessage.objects.all():
            is_claimed = row.state == State.CLAIMED
            assert (row.owner is not None) == is_claimed
            assert (row.lease_expires_at is not None) == is_claimed
            assert row.attempts <= POLICY.attempts + 1

    def teardown(self):
        try:
            self.drain()
        finally:
            self.patch.stop()
            for model in (Note, OutboxMessage, DeadLetter):
                model.objects.all().delete()

    def drain(self):
        """At last everything has been handled, or given up for a reason."""
        for _ in range(50):
            if not OutboxMessage.objects.exists():
                break
            self.let_pass(3600)
            while self.worker(100).run_once():
                pass
        self.every_message_is_in_one_place()
        effects, waiting, dead = self.places()
        assert not waiting
        reasons = {number_of(each): each.reason for each in DeadLetter.objects.all()}
        for number, options in self.sent.items():
            if options["expires"] and number not in effects and number not in dead:
                continue
            if options["how"] == "broken":
                assert reasons.get(number) == "undecodable" or number in effects
            elif options["how"] == "bad" and number not in self.replayed:
                assert number in dead or number in effects
            elif number in dead:
                # Only what was alone at a crash can be taken for the cause of it.
                assert self.crashed
                assert reasons[number] in ("poison", "failed")


def number_of(row):
    """The number in a payload, also of one that was made unreadable."""
    return int(bytes(row.payload).split(b":")[1].split(b",")[0])


def test_nothing_early_nothing_lost_effects_once(say):
    """Hypothesis looks for an order of events in which the outbox breaks its promise."""
    run_state_machine_as_test(
        Outbox,
        settings=settings(
            max_examples=examples(say),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        ),
    )


def test_a_crash_while_burying():
    """What Hypothesis found once: a worker dies of giving up a message, each time."""
    machine = Outbox()
    poison = {"how": "good", "delay": 0, "expires": None, "priority": 0}
    poison["is_undone"] = False
    try:
        machine.send([poison], is_committed=True, is_nested=False)
        for crashes in range(9):
            machine.crash_before_the_settle(1)
            machine.what_is_claimed_has_an_owner_and_nothing_else_has()
            machine.every_message_is_in_one_place()
            (row,) = OutboxMessage.objects.all()
            assert row.attempts == min(crashes, POLICY.attempts)
            machine.clock_jumps(31)
        machine.poll(1)
        (letter,) = DeadLetter.objects.all()
        assert (letter.reason, letter.attempts) == (Reason.POISON, POLICY.attempts)
    finally:
        machine.teardown()
