"""Queries: one handler, no transaction, an answer in the form that is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import pydantic
import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_cqrs import (
    Header,
    Query,
    QueryBus,
    command_handler,
    event_handler,
    message,
    query_bus,
    query_handler,
    service,
)
from django_cqrs.exceptions import (
    DuplicateHandler,
    InvalidHandler,
    InvalidOption,
    MessageConversionError,
    NoHandlerFound,
)
from django_cqrs.problems import Rule
from tests.support import registry_of
from tests.testapp.messages import FindTickets
from tests.testapp.models import Note

JSON = "application/json"


@dataclass(frozen=True)
class GetNote:
    number: int = 0


@dataclass(frozen=True)
class Row:
    text: str
    number: int


@dataclass(frozen=True)
class AddNote:
    text: str


class RowModel(pydantic.BaseModel):
    text: str
    number: int


class RowTuple(NamedTuple):
    text: str
    number: int


@query_handler("notes")
def list_notes() -> list[Row]:
    return [Row("a", 1), Row("b", 2)]


@query_handler("note")
def get_note() -> Row:
    return Row("a", 1)


# B04.1 ----------------------------------------------------------------------------


def test_the_handler_of_an_installed_app_answers():
    """The global bus asks the handler that the test app's module holds. [B04.1]"""
    assert query_bus.ask(FindTickets("lamp")) == ["lamp"]


def test_a_query_is_asked_by_class():
    """The object that is asked reaches its handler, whose answer comes back as it is. [B04.1]"""
    seen = []
    answer = object()

    @query_handler
    def handle(query: GetNote) -> object:
        seen.append(query)
        return answer

    bus = registry_of(handle).query_bus
    query = GetNote(1)

    assert bus.ask(query) is answer
    assert bus.ask(query) is answer
    assert [each is query for each in seen] == [True, True]


def test_a_query_is_asked_by_key():
    """A key reaches its handler alone, with any payload or none. [B04.1]"""

    @query_handler("note.list")
    def handle(text: str | None = None) -> str:
        return f"like {text}"

    bus = registry_of(handle).query_bus

    assert bus.ask(route="note.list") == "like None"
    assert bus.ask("a", route="note.list") == "like a"
    assert bus.ask('"a"', route="note.list", content_type=JSON) == "like a"


def test_a_key_is_the_only_way_to_its_handler():
    """A query with a key is not found by its class. [B04.1]"""

    @query_handler("note.get")
    def handle(query: GetNote) -> int:
        return query.number

    bus = registry_of(handle).query_bus
    with pytest.raises(NoHandlerFound) as caught:
        bus.ask(GetNote(1))

    assert str(caught.value) == (
        "No query handler takes GetNote. Its handler is reached only by key: give "
        "route='note.get'."
    )
    assert bus.ask({"number": "1"}, route="note.get") == 1


def test_two_handlers_of_a_class_are_refused():
    """A query has one handler: a second is a check and raises. [B04.1]"""

    @query_handler
    def one(query: GetNote) -> None: ...

    @query_handler
    def two(query: GetNote) -> None: ...

    registry = registry_of(one, two)
    with pytest.raises(DuplicateHandler) as caught:
        registry.query_bus.ask(GetNote())

    assert [str(problem) for problem in registry.routes.problems] == [str(caught.value)]
    assert registry.routes.problems[0].message.startswith(
        "GetNote has more than one query handler: "
    )
    assert registry.routes.problems[0].hint == (
        "Keep one: a query has exactly one handler; only an event may have several."
    )


def test_two_handlers_of_a_key_are_refused():
    """A key has one handler: a second is a check and raises. [B04.1]"""

    @query_handler("note.list")
    def one() -> None: ...

    @query_handler("note.list")
    def two() -> None: ...

    registry = registry_of(one, two)
    with pytest.raises(DuplicateHandler) as caught:
        registry.query_bus.ask(route="note.list")

    assert [str(problem) for problem in registry.routes.problems] == [str(caught.value)]


def test_no_handler_is_an_error():
    """A query that nobody answers raises, with the bus it may belong to. [B04.1]"""

    @command_handler
    def command(command: AddNote) -> None: ...

    @event_handler("note.added")
    def event() -> None: ...

    bus = registry_of(command, event, get_note).query_bus
    with pytest.raises(NoHandlerFound) as unknown:
        bus.ask(GetNote())
    with pytest.raises(NoHandlerFound) as of_command:
        bus.ask(AddNote("x"))
    with pytest.raises(NoHandlerFound) as of_event:
        bus.ask(route="note.added")
    with pytest.raises(NoHandlerFound) as near:
        bus.ask(route="notes")

    assert str(unknown.value) == (
        "No query handler takes GetNote. Check that it is decorated and in the "
        "handlers module of an installed app."
    )
    assert str(of_command.value) == (
        "No query handler takes AddNote. It is a command: use command_bus.dispatch()."
    )
    assert str(of_event.value) == (
        "No query handler takes 'note.added'. It is an event: use event_bus.publish()."
    )
    assert str(near.value) == "No query handler takes 'notes'. Did you mean 'note'?"


def test_a_base_class_a_union_and_object_answer_too():
    """Queries are routed among classes as commands are. [B04.1]"""

    class Base: ...

    @dataclass
    class Derived(Base):
        number: int = 0

    @query_handler
    def of_base(query: Base) -> str:
        return "base"

    @query_handler
    def of_two(query: GetNote | AddNote) -> str:
        return "two"

    @query_handler
    def of_object(query: object) -> str:
        return "object"

    bus = registry_of(of_base, of_two, of_object).query_bus

    assert bus.ask(Derived()) == "base"
    assert bus.ask(AddNote("x")) == "two"
    assert bus.ask("text") == "object"


def test_a_named_class_is_asked_by_its_name():
    """A name leads to the handler of its class, with the payload made into it. [B04.1]"""

    @message("note.find")
    @dataclass
    class Find:
        text: str

    @query_handler
    def handle(query: Find) -> Find:
        return query

    bus = registry_of(handle).query_bus

    assert bus.ask({"text": "a"}, route="note.find") == Find("a")


def test_an_exception_arrives_unchanged():
    """What a query's handler raises reaches the caller as it is. [B04.1]"""
    error = PermissionError("not yours")

    @query_handler
    def handle(query: GetNote) -> None:
        raise error

    with pytest.raises(PermissionError) as caught:
        registry_of(handle).query_bus.ask(GetNote())

    assert caught.value is error


def test_a_payload_that_does_not_fit_is_refused():
    """Broken JSON and wrong types raise before the handler, with every path. [B04.1]"""

    @query_handler("note.get")
    def handle(query: GetNote) -> None:
        pytest.fail("called")

    bus = registry_of(handle).query_bus
    with pytest.raises(MessageConversionError) as broken:
        bus.ask("{", route="note.get", content_type=JSON)
    with pytest.raises(MessageConversionError) as wrong:
        bus.ask({"number": "x"}, route="note.get")

    assert str(broken.value) == (
        "Cannot convert the payload to GetNote: Invalid JSON: EOF while parsing an "
        "object at line 1 column 1."
    )
    assert str(wrong.value) == (
        "Cannot convert the payload to GetNote: number: Input should be a valid "
        "integer, unable to parse string as an integer."
    )


def test_arguments_that_do_not_fit_together_are_refused():
    """A mistake in the call names the method and what to do. [B04.1]"""
    bus = registry_of(get_note).query_bus
    with pytest.raises(InvalidOption) as nothing:
        bus.ask()
    with pytest.raises(InvalidOption) as a_class:
        bus.ask(GetNote)
    with pytest.raises(InvalidOption) as of_aggregate:
        bus.ask(route="note", aggregate_id=5)

    assert str(nothing.value) == (
        "query_bus.ask() needs a payload, or route= with an optional payload."
    )
    assert str(a_class.value) == (
        "query_bus.ask() takes an instance, GetNote(...), not the class GetNote."
    )
    assert str(of_aggregate.value) == (
        "aggregate_id= was given, but tests.test_queries.get_note is not a handler of "
        "an aggregate."
    )


def test_a_query_takes_no_channel_options():
    """What only a channel knows is no argument of `ask`, nor of its decorator. [B04.1]"""
    bus = registry_of(get_note).query_bus

    with pytest.raises(TypeError, match="unexpected keyword argument 'delay'"):
        bus.ask(route="note", delay=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'priority'"):
        query_handler("x", priority=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'using'"):
        query_handler("x", using="other")


def test_a_service_answers():
    """A service's methods answer queries, of the instance or of the class. [B04.1]"""

    @service
    class Notes:
        def __init__(self) -> None:
            self.asked = 0

        @query_handler
        def get(self, query: GetNote) -> int:
            self.asked += 1
            return self.asked

        @query_handler("notes.name")
        @classmethod
        def name(cls) -> str:
            return cls.__name__

    bus = registry_of(Notes).query_bus

    assert [bus.ask(GetNote()), bus.ask(GetNote())] == [1, 2]
    assert bus.ask(route="notes.name") == "Notes"


def test_a_query_may_say_its_answer():
    """`Query[R]` as a base changes nothing at run time. [B04.1]"""

    @dataclass(frozen=True, slots=True)
    class GetRow(Query[Row]):
        number: int

    @query_handler
    def handle(query: GetRow) -> Row:
        return Row("x", query.number)

    assert registry_of(handle).query_bus.ask(GetRow(3)) == Row("x", 3)
    assert not hasattr(GetRow(3), "__dict__")


def test_a_broken_handler_raises_its_checks_text():
    """A query whose handler's annotations cannot be read says so when it is asked. [B04.1]"""

    @query_handler
    def handle(query: GetNote, other: Missing) -> None: ...  # noqa: F821

    registry = registry_of(handle)
    with pytest.raises(InvalidHandler) as caught:
        registry.query_bus.ask(GetNote())

    assert [problem.rule for problem in registry.routes.problems] == [
        Rule.UNREADABLE_SIGNATURE
    ]
    assert str(caught.value) == (
        f"The annotations of {__name__}.{handle.__qualname__} cannot be evaluated: "
        f"name 'Missing' is not defined. Import the names they use at the top of the "
        f"module, not under TYPE_CHECKING. (django_cqrs.E006)"
    )


def test_a_class_imported_for_type_checkers_only_is_found_by_name():
    """An annotation that only a type checker can read is matched by its name. [B04.1]"""

    class Unseen: ...

    def make():
        @query_handler
        def handle(query: Unseen) -> None: ...

        return handle

    handle = make()
    registry = registry_of(handle)
    with pytest.raises(InvalidHandler) as caught:
        registry.query_bus.ask(Unseen())

    assert str(caught.value) == str(registry.routes.problems[0])
    assert "name 'Unseen' is not defined" in str(caught.value)


# B04.2 ----------------------------------------------------------------------------


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_opened():
    """Around a query's handler there is no transaction, and no statement of ours. [B04.2]"""

    @query_handler
    def handle(query: GetNote) -> bool:
        return connection.in_atomic_block

    bus = registry_of(handle).query_bus
    with CaptureQueriesContext(connection) as captured:
        is_atomic = bus.ask(GetNote())

    assert is_atomic is False
    assert captured.captured_queries == []


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_what_a_query_writes_stays():
    """A query that writes, though it should not, is not rolled back. [B04.2]"""

    @query_handler
    def handle(query: GetNote) -> None:
        Note.objects.create(text="asked")
        raise ValueError("too late")

    with pytest.raises(ValueError, match="too late"):
        registry_of(handle).query_bus.ask(GetNote())

    assert Note.objects.count() == 1


@pytest.mark.database
@pytest.mark.django_db
def test_inside_a_transaction_no_savepoint_is_made():
    """Asked inside the caller's transaction, a query adds nothing to it. [B04.2]"""

    @query_handler
    def handle(query: GetNote) -> int:
        return len(connection.savepoint_ids)

    bus = registry_of(handle).query_bus
    with transaction.atomic():
        depth = len(connection.savepoint_ids)

        assert bus.ask(GetNote()) == depth


# B04.3 ----------------------------------------------------------------------------


def test_returns_a_class():
    """`returns=` converts the answer to a dataclass, a model or a NamedTuple. [B04.3]"""
    bus = registry_of(get_note).query_bus

    assert bus.ask(route="note", returns=RowModel) == RowModel(text="a", number=1)
    assert bus.ask(route="note", returns=RowTuple) == RowTuple("a", 1)
    assert bus.ask(route="note", returns=dict[str, Any]) == {"text": "a", "number": 1}


def test_an_answer_of_the_type_is_returned_as_it_is():
    """What is of the wanted class already is not copied. [B04.3]"""
    row = Row("a", 1)

    @query_handler("row")
    def handle() -> Row:
        return row

    bus = registry_of(handle).query_bus

    assert bus.ask(route="row", returns=Row) is row
    assert bus.ask(route="row", returns=object) is row


def test_returns_a_list_of_a_class():
    """`returns=list[T]` converts every item. [B04.3]"""
    bus = registry_of(list_notes).query_bus

    assert bus.ask(route="notes", returns=list[RowModel]) == [
        RowModel(text="a", number=1),
        RowModel(text="b", number=2),
    ]
    assert bus.ask(route="notes", returns=list[Row]) == [Row("a", 1), Row("b", 2)]
    assert bus.ask(route="notes", returns=tuple[RowTuple, ...]) == (
        RowTuple("a", 1),
        RowTuple("b", 2),
    )


@pytest.mark.django_db
def test_a_queryset_becomes_rows():
    """Model instances, a queryset of them, and of values() become typed rows. [B04.3]"""

    @query_handler("models")
    def models() -> Any:
        return Note.objects.order_by("number")

    @query_handler("values")
    def values() -> Any:
        return Note.objects.order_by("number").values("text", "number")

    @query_handler("first")
    def first() -> Any:
        return Note.objects.order_by("number").first()

    Note.objects.create(text="a", number=1)
    Note.objects.create(text="b", number=2)
    bus = registry_of(models, values, first).query_bus
    rows = [Row("a", 1), Row("b", 2)]

    assert bus.ask(route="models", returns=list[Row]) == rows
    assert bus.ask(route="values", returns=list[Row]) == rows
    assert bus.ask(route="first", returns=Row) == rows[0]


def test_a_generator_becomes_a_list():
    """A lazy answer is read out for the conversion. [B04.3]"""

    @query_handler("rows")
    def handle() -> Any:
        yield Row("a", 1)
        yield {"text": "b", "number": "2"}

    bus = registry_of(handle).query_bus

    assert bus.ask(route="rows", returns=list[Row]) == [Row("a", 1), Row("b", 2)]
    assert json.loads(bus.ask(route="rows", returns=JSON)) == [
        {"text": "a", "number": 1},
        {"text": "b", "number": "2"},
    ]


def test_returns_json_text():
    """`returns="application/json"` gives the answer's JSON, whatever it is made of. [B04.3]"""

    @dataclass
    class Invoice:
        number: UUID
        total: Decimal
        rows: list[Row]

    answers = {
        "object": Invoice(UUID(int=1), Decimal("1.50"), [Row("a", 1)]),
        "list": [Row("a", 1), RowModel(text="b", number=2), RowTuple("c", 3)],
        "dict": {"total": Decimal("1.50"), 5: None},
        "none": None,
        "text": "ü",
    }

    @query_handler("answer")
    def handle(name: str) -> Any:
        return answers[name]

    bus = registry_of(handle).query_bus
    asked = {name: bus.ask(name, route="answer", returns=JSON) for name in answers}

    assert {type(text) for text in asked.values()} == {str}
    assert {name: json.loads(text) for name, text in asked.items()} == {
        "object": {
            "number": str(UUID(int=1)),
            "total": "1.50",
            "rows": [{"text": "a", "number": 1}],
        },
        "list": [
            {"text": "a", "number": 1},
            {"text": "b", "number": 2},
            {"text": "c", "number": 3},
        ],
        "dict": {"total": "1.50", "5": None},
        "none": None,
        "text": "ü",
    }


@pytest.mark.django_db
def test_model_instances_have_no_json_of_their_own():
    """A model instance is not written as JSON by guess: `values()` says what of it. [B04.3]"""

    @query_handler("values")
    def values() -> Any:
        return Note.objects.values("text", "number")

    Note.objects.create(text="a", number=1)

    assert registry_of(values).query_bus.ask(route="values", returns=JSON) == (
        '[{"text":"a","number":1}]'
    )


def test_an_answer_that_does_not_convert_is_an_error():
    """A wrong answer names the type that was wanted and every field. [B04.3]"""

    @query_handler("rows")
    def handle() -> Any:
        return [{"text": "a"}, {"number": "x", "text": "b"}]

    bus = registry_of(handle).query_bus
    with pytest.raises(MessageConversionError) as caught:
        bus.ask(route="rows", returns=list[Row])

    assert [error.path for error in caught.value.errors] == ["0.number", "1.number"]
    assert caught.value.errors[0].message == "Field required"
    assert str(caught.value).startswith("Cannot convert the answer to list[")


def test_a_lazy_answer_that_fails_speaks_for_itself():
    """What it asks and is refused is no fault of the answer. [B04.3]"""

    @query_handler("note.get")
    def get(query: GetNote) -> int:
        return query.number

    @query_handler("rows")
    def handle(bus: QueryBus) -> Any:
        yield bus.ask({"number": "x"}, route="note.get")

    with pytest.raises(MessageConversionError, match=r"^Cannot convert the payload "):
        registry_of(handle, get).query_bus.ask(route="rows", returns=JSON)


def test_an_answer_without_json_is_an_error():
    """An object that JSON cannot hold is a conversion error, not a repr. [B04.3]"""

    @query_handler("thing")
    def handle() -> Any:
        return object()

    with pytest.raises(MessageConversionError):
        registry_of(handle).query_bus.ask(route="thing", returns=JSON)


def test_no_answer_where_one_is_wanted_is_an_error():
    """None is converted to an optional type and to nothing else. [B04.3]"""

    @query_handler("nothing")
    def handle() -> Any:
        return None

    bus = registry_of(handle).query_bus

    assert bus.ask(route="nothing", returns=Row | None) is None
    assert bus.ask(route="nothing", returns=JSON) == "null"
    with pytest.raises(MessageConversionError):
        bus.ask(route="nothing", returns=Row)


def test_another_media_type_is_refused():
    """JSON is the only text that an answer becomes. [B04.3]"""
    with pytest.raises(MessageConversionError) as caught:
        registry_of(get_note).query_bus.ask(route="note", returns="text/html")

    assert str(caught.value) == (
        "Cannot convert the answer to application/json: the content type 'text/html' "
        "is not supported, application/json is."
    )


# B04.4 ----------------------------------------------------------------------------


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_inside_a_command_a_query_sees_its_uncommitted_changes():
    """Asked by a command's handler, a query reads in the command's transaction. [B04.4]"""

    @query_handler("notes.count")
    def count() -> int:
        return Note.objects.count()

    @command_handler
    def add(command: AddNote, queries: QueryBus) -> tuple[int, int]:
        before = queries.ask(route="notes.count")
        Note.objects.create(text=command.text)
        return before, queries.ask(route="notes.count")

    @command_handler("fail")
    def fail(queries: QueryBus) -> None:
        Note.objects.create(text="x")
        raise ValueError(queries.ask(route="notes.count"))

    registry = registry_of(count, add, fail)

    assert registry.command_bus.dispatch(AddNote("a")) == (0, 1)
    with pytest.raises(ValueError, match="2"):
        registry.command_bus.dispatch(route="fail")
    assert registry.query_bus.ask(route="notes.count") == 1


@pytest.mark.database
@pytest.mark.django_db
def test_a_query_inherits_the_commands_headers():
    """A query asked while a command is handled sees the command's headers. [B04.4]"""

    @query_handler("who")
    def who(executor: Annotated[int, Header("executor_id")]) -> int:
        return executor

    @command_handler
    def add(command: AddNote, queries: QueryBus) -> int:
        return queries.ask(route="who")

    bus = registry_of(who, add).command_bus

    assert bus.dispatch(AddNote("a"), headers={"executor_id": "7"}) == 7
