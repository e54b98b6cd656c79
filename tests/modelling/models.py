"""Aggregates of every shape: UUID, auto-increment, composite, unique, inherited."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from django.db import models

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.events import applies, event_stream
from django_cqrs.modelling import aggregate, saga
from django_cqrs.models import RecordsEvents, SagaModel
from tests.modelling.messages import (
    AccountChanged,
    AccountClosed,
    AccountRenamed,
    AccountReopened,
    AddVehicle,
    AssignTicket,
    BlockCard,
    BookSeat,
    CancelOrder,
    Counted,
    CounterAdded,
    CounterStarted,
    CountVisit,
    DeleteTicket,
    Deposit,
    FailTicket,
    FreeSeat,
    HurryOrder,
    ImportTicket,
    IssueCard,
    LateNews,
    LoadTruck,
    MoveTicket,
    NoteTicket,
    OpenAccount,
    OpenTicket,
    OrderPacked,
    OrderPaid,
    OrderPlaced,
    PageSeen,
    ParcelMoved,
    ParcelSent,
    PaymentDue,
    RenamePost,
    ShipOrder,
    SplitTicket,
    TicketAssigned,
    TicketDeleted,
    TicketOpened,
    TouchTicket,
    Watched,
    WritePost,
)


class OpenTickets(models.Manager["Ticket"]):
    """Loads what is not hidden, as a project's default manager might."""

    def get_queryset(self):
        return super().get_queryset().exclude(queue="hidden")


@aggregate
class Ticket(RecordsEvents, models.Model):
    ticket_id = models.UUIDField(primary_key=True)
    title = models.CharField(max_length=80, default="")
    assignee = models.CharField(max_length=80, default="")
    queue = models.CharField(max_length=20, default="")
    is_closed = models.BooleanField(default=False)
    parent = models.ForeignKey("self", models.SET_NULL, null=True, blank=True)

    objects = OpenTickets()

    @command_handler
    @classmethod
    def open(
        cls, command: OpenTicket, source: Annotated[str, Header("source")] = "web"
    ) -> Ticket:
        ticket = cls(ticket_id=command.ticket_id, title=command.title, queue=source)
        ticket.record(TicketOpened(ticket.ticket_id, ticket.title))
        return ticket

    @classmethod
    @command_handler
    def import_(cls, command: ImportTicket) -> Ticket:
        ticket = cls(ticket_id=command.ticket_id, title="imported")
        ticket.save()
        ticket.queue = "imported"
        return ticket

    @command_handler
    def assign(self, command: AssignTicket) -> str:
        before, self.assignee = self.assignee, command.assignee
        self.record(TicketAssigned(self.ticket_id, self.assignee))
        return before

    @command_handler
    def fail(self, command: FailTicket) -> None:
        self.assignee = "nobody"
        self.record(TicketAssigned(self.ticket_id, self.assignee))
        raise RuntimeError("no")

    @command_handler
    def remove(self, command: DeleteTicket) -> None:
        self.record(TicketDeleted(self.ticket_id))
        self.delete()

    @command_handler
    def split(self, command: SplitTicket) -> Ticket:
        self.title = f"{self.title} (1)"
        self.record(TicketAssigned(self.ticket_id, "split"))
        return type(self).open(OpenTicket(command.new_id, f"{self.title} (2)"))

    @command_handler
    def touch(self, command: TouchTicket) -> Ticket:
        self.title += "!"
        return self

    @command_handler
    def annotate(self, command: NoteTicket, events: EventBus) -> None:
        self.title = command.note
        self.save()
        self.record(TicketAssigned(self.ticket_id, "noted"))

    @command_handler
    def move(self, command: MoveTicket) -> None:
        self.queue = command.queue

    @command_handler("ticket.close")
    def close(self) -> None:
        self.is_closed = True
        self.record(TicketAssigned(self.ticket_id, "closed"))

    @command_handler("ticket.reopen", identifier=Header("reopened"))
    def reopen(self) -> None:
        self.is_closed = False

    @command_handler("ticket.escalate", channel="outbox", identifier=Header("which"))
    def escalate(self) -> None:
        self.queue = "second line"
        self.record(TicketAssigned(self.ticket_id, "second line"))

    @query_handler("ticket.assignee")
    def get_assignee(self) -> str:
        return self.assignee

    @query_handler("ticket.count")
    @classmethod
    def count(cls) -> int:
        return cls.objects.count()

    @event_handler(identifier="opened_by_ticket")
    def on_account_closed(self, event: AccountClosed) -> None:
        self.is_closed = True

    @event_handler(on_missing="ignore")
    def on_account_changed(self, event: AccountReopened | AccountRenamed) -> None:
        self.queue = type(event).__name__


@aggregate
class PageCount(models.Model):
    """Factory or action, by its slug-like primary key."""

    page = models.CharField(max_length=80, primary_key=True)
    visits = models.IntegerField(default=0)
    seen = models.IntegerField(default=0)

    @command_handler
    @classmethod
    def first(cls, command: CountVisit) -> PageCount:
        return cls(page=command.page, visits=command.by)

    @command_handler
    def again(self, command: CountVisit) -> int:
        self.visits += command.by
        return self.visits

    @event_handler
    @classmethod
    def first_seen(cls, event: PageSeen) -> PageCount:
        return cls(page=event.page, seen=1)

    @event_handler
    def seen_again(self, event: PageSeen) -> None:
        self.seen += 1


@aggregate
class Tally(models.Model):
    """Factory or action in the background."""

    name = models.CharField(max_length=20, primary_key=True)
    count = models.IntegerField(default=1)

    @event_handler(channel="outbox")
    @classmethod
    def first(cls, event: Counted) -> Tally:
        return cls(name=event.name)

    @event_handler
    def again(self, event: Counted) -> None:
        self.count += 1


@aggregate(version="version")
class Account(RecordsEvents, models.Model):
    """Optimistic, with an auto-increment key."""

    owner = models.CharField(max_length=80)
    balance = models.IntegerField(default=0)
    version = models.PositiveIntegerField(default=0)

    @command_handler
    @classmethod
    def open(cls, command: OpenAccount) -> Account:
        return cls(owner=command.owner)

    @command_handler
    def deposit(self, command: Deposit) -> int:
        self.balance += command.amount
        self.record(AccountChanged(self.pk, self.balance))
        return self.balance


@aggregate
class Seat(models.Model):
    """Identified by two columns together."""

    pk = models.CompositePrimaryKey("show", "seat")
    show = models.IntegerField()
    seat = models.CharField(max_length=5)
    guest = models.CharField(max_length=80, default="")

    @command_handler
    @classmethod
    def book(cls, command: BookSeat) -> Seat:
        return cls(show=command.show, seat=command.seat, guest=command.guest)

    @command_handler
    def free(self, command: FreeSeat) -> None:
        self.guest = ""

    @command_handler("seat.remove")
    def remove(self) -> None:
        self.delete()

    @query_handler("seat.guest")
    def get_guest(self) -> str:
        return self.guest


@aggregate
class Card(models.Model):
    """Identified by another object's key."""

    account = models.OneToOneField(Account, models.CASCADE, primary_key=True)
    is_blocked = models.BooleanField(default=False)

    @command_handler
    @classmethod
    def issue(cls, command: IssueCard) -> Card:
        return cls(account_id=command.account_id)

    @command_handler
    def block(self, command: BlockCard) -> None:
        self.is_blocked = True


@aggregate(identifier="slug", events="take_news", full_clean=True)
class Post(models.Model):
    """Identified by a unique field, and with events of its own making."""

    slug = models.SlugField(unique=True)
    title = models.CharField(max_length=10, default="untitled")

    news: tuple[object, ...] = ()

    def take_news(self):
        news, self.news = self.news, ()
        return news

    @command_handler
    @classmethod
    def write(cls, command: WritePost) -> Post:
        post = cls(slug=command.slug)
        post.news = (PageSeen(f"post:{command.slug}"),)
        return post

    @command_handler
    def rename(self, command: RenamePost) -> None:
        self.title = command.title
        self.news = (PageSeen(f"title:{command.title}"),)


class Vehicle(models.Model):
    plate = models.CharField(max_length=10, unique=True)


@aggregate
class Truck(Vehicle):
    """A child of a concrete model: two tables."""

    tons = models.IntegerField(default=0)

    @command_handler
    @classmethod
    def add(cls, command: AddVehicle) -> Truck:
        return cls(plate=command.plate)

    @command_handler
    def load(self, command: LoadTruck) -> None:
        self.tons += command.tons
        self.plate += "+"


@saga
class Fulfilment(SagaModel):
    """Started by an event, moved by others, ended by what it finds."""

    order_id = models.IntegerField(primary_key=True)
    is_paid = models.BooleanField(default=False)
    is_packed = models.BooleanField(default=False)
    fate = models.CharField(max_length=20, default="open")

    @event_handler
    @classmethod
    def start(cls, event: OrderPlaced) -> Fulfilment:
        process = cls(order_id=event.order_id)
        process.record(PaymentDue(event.order_id))
        return process

    @event_handler(output="order.ship")
    def on_paid(self, event: OrderPaid) -> ShipOrder | None:
        self.is_paid = True
        return ShipOrder(self.order_id) if self.is_packed else None

    @event_handler(output="order.ship", on_missing="ignore")
    def on_packed(self, event: OrderPacked) -> ShipOrder | None:
        self.is_packed = True
        return ShipOrder(self.order_id) if self.is_paid else None

    @event_handler(channel="outbox", delay=timedelta(hours=24))
    def on_payment_due(self, event: PaymentDue, commands: CommandBus) -> None:
        if not self.is_paid:
            commands.dispatch(CancelOrder(self.order_id))
            self.fate = "cancelled"
            self.complete()

    @command_handler
    def hurry(self, command: HurryOrder) -> None:
        self.fate = "hurried"

    @command_handler("fulfilment.finish")
    def finish(self) -> None:
        self.complete()

    @command_handler("fulfilment.forget")
    def forget(self) -> None:
        self.delete()

    @event_handler
    def on_late_news(self, event: LateNews) -> None:
        self.fate = "news"

    @query_handler("fulfilment.fate")
    def get_fate(self) -> str:
        return self.fate


@saga
class Watch(models.Model):
    """Another saga on the same event, alone; it has no ``complete()``."""

    order_id = models.IntegerField(primary_key=True)
    times = models.IntegerField(default=1)

    @event_handler
    @classmethod
    def start(cls, event: OrderPlaced | Watched) -> Watch:
        return cls(order_id=event.order_id)

    @event_handler
    def again(self, event: OrderPlaced | Watched) -> None:
        self.times += 1


class Sent(models.Model):
    """What the commands of the process have seen of it."""

    command = models.CharField(max_length=20)
    was_saved = models.BooleanField()


# Their tables are made with those of this module.
from tests.modelling import boxes, carts, deals, payments  # noqa: E402, F401


@aggregate
@event_stream("modelling.parcel")
class Parcel(RecordsEvents, models.Model):
    """A row, with a stream of what happened beside it."""

    place = models.CharField(max_length=20)

    @command_handler("parcel.send")
    @classmethod
    def send_off(cls, place: str) -> Parcel:
        parcel = cls(place=place)
        parcel.record(lambda: ParcelSent(parcel.pk))
        return parcel

    @command_handler("parcel.move")
    def move(self, place: str) -> None:
        self.record(ParcelMoved(self.place, place))
        self.place = place

    @command_handler("parcel.lose")
    def lose(self, place: str) -> None:
        self.record(ParcelMoved(self.place, "nowhere"))
        self.delete()

    @command_handler("parcel.touch")
    def touch(self, place: str) -> ParcelMoved:
        self.place = place
        return ParcelMoved("a result", "not an event")


@aggregate(identifier="counter_id")
@event_stream("modelling.counter", snapshot_every=2)
@dataclass
class Counter:
    """An aggregate of an app that is its events."""

    counter_id: int = 0
    total: int = 0

    @command_handler("counter.start")
    @classmethod
    def start(cls, counter_id: int) -> CounterStarted:
        return CounterStarted(counter_id)

    @command_handler("counter.add")
    def add(self, by: int) -> CounterAdded:
        return CounterAdded(by)

    @applies
    def started(self, event: CounterStarted) -> None:
        self.counter_id = event.counter_id

    @applies
    def added(self, event: CounterAdded) -> None:
        self.total += event.by
