"""Conditional requests: the version of an object as ETag, If-Match, If-None-Match."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.middleware.gzip import GZipMiddleware
from django.middleware.http import ConditionalGetMiddleware
from django.test import RequestFactory
from pydantic import BaseModel, ConfigDict, Field

from django_cqrs import Registry, command_handler, message, query_handler
from django_cqrs.documents import document
from django_cqrs.documents.models import Document
from django_cqrs.exceptions import (
    AggregateNotFound,
    ConcurrencyError,
    MessageConversionError,
    PreconditionError,
)
from django_cqrs.modelling import Identifier, Repository, Version, aggregate
from django_cqrs.views import (
    AsyncCommandView,
    AsyncQueryView,
    CommandView,
    QueryView,
    aask_for,
    adispatch_for,
    ask_for,
    dispatch_for,
)
from django_cqrs.views.problem_details import problem_of

JSON = "application/json"

pytestmark = pytest.mark.django_db


@dataclass(frozen=True)
class WriteArticle:
    article_id: int
    text: str = ""


@message("views.article.edit")
@dataclass(frozen=True)
class EditArticle:
    """Which article is not said: the path does."""

    text: str
    seen: Annotated[int | None, Version()] = None


class SignArticle(BaseModel):
    model_config = ConfigDict(extra="forbid")
    article: Annotated[int, Identifier("article_id")]
    seen: Annotated[int, Version(), Field(alias="seenVersion")]


@dataclass(frozen=True)
class PublishArticle:
    article_id: int


@dataclass(frozen=True)
class ArticleRow:
    text: str
    version: Annotated[int, Version()]


@aggregate(version="version")
@document("views.article")
@dataclass
class Article:
    article_id: int
    text: str = ""
    version: int = 0

    @command_handler
    @classmethod
    def write(cls, command: WriteArticle) -> Article:
        return cls(command.article_id, command.text)

    @command_handler("article.edit")
    def edit(self, command: EditArticle) -> int | None:
        self.text = command.text
        return command.seen

    @command_handler
    def sign(self, command: SignArticle) -> int:
        self.text += f" (seen at {command.seen})"
        return self.article_id

    @command_handler("article.clear")
    def clear(self) -> None:
        self.text = ""

    @command_handler("article.delete")
    def remove(self, articles: Repository[Article]) -> None:
        articles.delete(self)

    @command_handler("article.later", channel="memory")
    def later(self, command: EditArticle) -> None:
        self.text = command.text

    @query_handler("article.text")
    def shown(self) -> str:
        return self.text

    @command_handler
    @classmethod
    def publish_new(cls, command: PublishArticle) -> Article:
        return cls(command.article_id, "new")

    @command_handler
    def publish(self, command: PublishArticle) -> None:
        self.text = "published"


@aggregate
@document("views.label")
@dataclass
class Label:
    label_id: int

    @command_handler("label.put")
    @classmethod
    def put(cls, label_id: int) -> Label:
        return cls(label_id)

    @command_handler("label.peel")
    def peel(self) -> None: ...


@query_handler("article.row")
def row(article_id: int) -> ArticleRow | None:
    text = registry.query_bus.ask(route="article.text", aggregate_id=article_id)
    return ArticleRow(text, 5) if text else None


@query_handler("article.count")
def count() -> int:
    return 1


registry = Registry()
for each in (Article, Label, row, count):
    registry.add(each)
commands, queries = registry.command_bus, registry.query_bus


@pytest.fixture(params=[False, True], ids=["view", "async view"])
def is_async(request):
    return request.param


@pytest.fixture(autouse=True)
def article():
    """Article 7 is at version 1."""
    commands.dispatch(WriteArticle(7, "first"))
    commands.dispatch({"text": "second"}, route="article.edit", aggregate_id=7)


def text_of(article_id=7):
    return queries.ask(route="article.text", aggregate_id=article_id)


def answer(response):
    body = json.loads(response.content) if response.content else None
    return response.status_code, body, response.get("ETag")


def post(body=None, if_match=None, path=None, *, is_async=False, **options):
    cls = AsyncCommandView if is_async else CommandView
    view = cls.as_view(bus=commands, **options)
    headers = {} if if_match is None else {"If-Match": if_match}
    text = "" if body is None else json.dumps(body)
    request = RequestFactory(headers=headers).post("/", text, JSON)
    view = async_to_sync(view) if is_async else view
    return answer(view(request, **({"article_id": 7} if path is None else path)))


def get(headers=None, path=None, *, is_async=False, **options):
    cls = AsyncQueryView if is_async else QueryView
    view = cls.as_view(bus=queries, **options)
    view = async_to_sync(view) if is_async else view
    request = RequestFactory(headers=headers).get("/")
    return view(request, **({"article_id": 7} if path is None else path))


def problem(status, title, detail):
    return status, {"title": title, "status": status, "detail": detail}, None


STALE = problem(
    412,
    "Precondition Failed",
    "The object is at another version than If-Match says. Load it again.",
)
FOREIGN = problem(
    412,
    "Precondition Failed",
    "If-Match names no version of this object: send its strong ETag.",
)
MALFORMED = problem(
    400,
    "Bad Request",
    'If-Match takes entity tags in quotation marks, such as "7", or *.',
)
MISSING = problem(
    428,
    "Precondition Required",
    "Say in If-Match which version of the object is meant: send its ETag.",
)
NONE = problem(404, "Not Found", "No object with this identifier exists.")


# The answers carry the version ----------------------------------------------------


def test_the_answer_of_a_command_has_the_new_version_as_etag(is_async):
    """Of a factory the first one, of an action the one after the save."""
    made = post({}, path={"article_id": 8}, message=WriteArticle, is_async=is_async)
    edited = post({"text": "x"}, route="article.edit", is_async=is_async)
    cleared = post(route="article.clear", is_async=is_async)

    assert made == (200, 8, '"0"')
    assert edited == (204, None, '"2"')
    assert cleared == (204, None, '"3"')


def test_a_deleted_object_and_one_without_a_version_have_no_etag():
    """There is nothing to compare later."""
    put = post(path={"label_id": 1}, route="label.put")

    assert put == (200, 1, None)
    assert post(path={"label_id": 1}, route="label.peel") == (204, None, None)
    assert post(route="article.delete") == (204, None, None)


def test_the_etag_of_a_query_tells_the_version_and_what_is_shown(is_async):
    """Other answers at the same version have other tags, so no cache mixes them up."""
    text = get(route="article.text", is_async=is_async)
    shown = get(route="article.row", is_async=is_async)

    assert text["ETag"].startswith('"1-')
    assert shown["ETag"].startswith('"5-')
    assert json.loads(shown.content) == {"text": "second", "version": 5}
    assert "ETag" not in get(route="article.count", path={}, is_async=is_async)


# If-Match -------------------------------------------------------------------------

MATCHES = {
    "the version": '"1"',
    "a list": '"4", "1"',
    "an empty element": ', "1",',
    "what a query said": '"1-0123456789abcdef"',
    "any": "*",
}
MISMATCHES = {
    "an old version": ('"0"', STALE),
    "a list of old versions": ('"0", "4"', STALE),
    "a weak tag": ('W/"1"', FOREIGN),
    "a tag of somebody else": ('"abc"', FOREIGN),
    "digits of another script": ('"\N{ARABIC-INDIC DIGIT ONE}"', FOREIGN),
    "no quotation marks": ("1", MALFORMED),
}


@pytest.mark.parametrize("if_match", MATCHES.values(), ids=MATCHES)
@pytest.mark.parametrize("route", ["article.clear", "article.edit"])
def test_a_request_that_names_the_present_version_is_handled(route, if_match, is_async):
    """Whether the payload has a field for the version, another, or is not read."""
    body = {"text": ""} if route == "article.edit" else None

    status, _, etag = post(body, if_match, route=route, is_async=is_async)

    assert (status // 100, etag) == (2, '"2"')
    assert text_of() == ""


@pytest.mark.parametrize(("if_match", "expected"), MISMATCHES.values(), ids=MISMATCHES)
@pytest.mark.parametrize("route", ["article.clear", "article.edit"])
def test_a_request_that_names_another_version_changes_nothing(
    route, if_match, expected, is_async
):
    """
    RFC 9110: a tag that does not match is 412; a weak one never does. A header that is
    no list of tags is 400.
    """
    if expected is FOREIGN:  # after the object was found, so the text is that of 412
        expected = STALE
    body = {"text": ""} if route == "article.edit" else None

    assert post(body, if_match, route=route, is_async=is_async) == expected
    assert text_of() == "second"


def test_a_missing_object_is_404_whatever_version_was_named():
    """A condition is ignored where the answer would be an error without it."""
    for if_match in ('"1"', '"abc"', "*"):
        said = post(None, if_match, {"article_id": 9}, route="article.clear")
        assert said == NONE


def test_the_version_becomes_the_field_of_the_message():
    """If it is exactly one, under the key that the class accepts."""
    assert post({"text": "x"}, '"1"', route="article.edit")[:2] == (200, 1)
    assert post({"text": "x"}, '"2", "9"', route="article.edit")[0] == 204
    assert post({}, '"3"', message=SignArticle) == (200, 7, '"4"')
    assert text_of() == "x (seen at 3)"


def test_a_version_that_is_given_twice_is_an_error():
    """In the header and in the body."""
    status, body, _ = post({"text": "x", "seen": 1}, '"1"', route="article.edit")

    assert (status, body["errors"]) == (
        400,
        [
            {
                "path": "seen",
                "detail": "it is in the header If-Match and cannot also be given here",
                "code": "in_if_match",
            }
        ],
    )


@pytest.mark.parametrize(
    ("if_match", "expected"),
    [
        ('"abc"', FOREIGN),
        (
            '"1", "2"',
            problem(
                400,
                "Bad Request",
                "If-Match has to name exactly one version: send the ETag of the object.",
            ),
        ),
    ],
)
def test_a_required_version_needs_a_header_that_names_one(if_match, expected):
    """The field cannot be filled from another one."""
    assert post({}, if_match, message=SignArticle) == expected


def test_a_view_may_demand_if_match(is_async):
    """Then a request without it is 428."""
    options = {"route": "article.clear", "requires_if_match": True}

    assert post(is_async=is_async, **options) == MISSING
    assert post(None, "", is_async=is_async, **options) == MISSING
    assert text_of() == "second"
    assert post(None, '"1"', is_async=is_async, **options)[0] == 204


def test_if_match_keeps_a_factory_from_creating_what_is_not_there():
    """What does not exist is at no version, with ``*`` as well."""
    for if_match in ('"1"', "*"):
        assert post({}, if_match, {"article_id": 9}, message=PublishArticle) == STALE
    assert post({}, '"1"', message=PublishArticle)[0] == 204
    assert post({}, None, {"article_id": 9}, message=PublishArticle)[0] == 200


@pytest.mark.parametrize(
    ("options", "body", "path"),
    [
        ({"route": "label.peel"}, None, {"label_id": 1}),
        ({"message": WriteArticle}, {}, {"article_id": 9}),
    ],
    ids=["no version", "a factory"],
)
def test_a_version_that_nothing_can_compare_is_412(options, body, path):
    """It is never ignored."""
    assert post(body, '"1"', path, **options) == problem(
        412,
        "Precondition Failed",
        "This message is for no object with a version that If-Match could name.",
    )


def test_a_command_for_a_channel_carries_the_version_in_its_payload():
    """What cannot carry it is refused, since it would be ignored."""
    assert post({"text": "x"}, '"1"', route="article.later") == (202, None, None)
    assert post({"text": "x"}, '"1", "2"', route="article.later") == problem(
        412,
        "Precondition Failed",
        "This message is handled later, and cannot be compared with If-Match.",
    )


def test_the_condition_is_that_of_the_first_message_alone():
    """What its handler sends on is for other objects, or for a later version."""
    own = Registry()

    @aggregate(version="version")
    @document("views.chapter")
    @dataclass
    class Chapter:
        chapter_id: int
        version: int = 0

        @command_handler("chapter.make")
        @classmethod
        def make(cls, chapter_id: int) -> Chapter:
            return cls(chapter_id)

        @command_handler("chapter.touch")
        def touch(self) -> None:
            if self.chapter_id == 1:
                own.command_bus.dispatch(route="chapter.touch", aggregate_id=2)

    own.add(Chapter)
    for number in (1, 2):
        own.command_bus.dispatch(number, route="chapter.make")
    own.command_bus.dispatch(route="chapter.touch", aggregate_id=2)
    view = CommandView.as_view(route="chapter.touch", bus=own.command_bus)
    request = RequestFactory(headers={"If-Match": '"0"'}).post("/", "", JSON)

    assert answer(view(request, chapter_id=1)) == (204, None, '"1"')


def test_a_change_between_the_comparison_and_the_save_is_412_as_well():
    """The save compares the version once more, in the same transaction."""
    own = Registry()

    @aggregate(version="version")
    @document("views.page")
    @dataclass
    class Page:
        page_id: int
        version: int = 0

        @command_handler("page.make")
        @classmethod
        def make(cls, page_id: int) -> Page:
            return cls(page_id)

        @command_handler("page.turn")
        def turn(self) -> None:
            # As another connection would: Django does not see this statement.
            table = Document._meta.db_table
            connection.connection.execute(f"UPDATE {table} SET version = version + 1")

    own.add(Page)
    own.command_bus.dispatch(1, route="page.make")
    view = CommandView.as_view(route="page.turn", bus=own.command_bus)

    def turn(**headers):
        request = RequestFactory(headers=headers).post("/", "", JSON)
        return answer(view(request, page_id=1))

    assert turn(**{"If-Match": '"0"'}) == STALE
    assert turn()[0] == 409


# Queries --------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["article.text", "article.row"])
def test_what_the_client_has_is_not_sent_again(route, is_async):
    """The weak tag that compression makes of it, a list, and ``*`` match too."""
    etag = get(route=route, is_async=is_async)["ETag"]

    for tags in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        response = get({"If-None-Match": tags}, route=route, is_async=is_async)
        assert (response.status_code, response.content) == (304, b"")
        assert response["ETag"] == etag
        assert "Content-Type" not in response


def test_what_has_changed_is_sent_again():
    """Also if only the version has."""
    etag = get(route="article.text")["ETag"]
    commands.dispatch({"text": "second"}, route="article.edit", aggregate_id=7)

    assert get({"If-None-Match": etag}, route="article.text").status_code == 200
    assert get({"If-None-Match": '"2"'}, route="article.text").status_code == 200


def test_if_match_holds_for_queries():
    """It is compared with the version that the answer shows."""
    for route, version in (("article.text", 1), ("article.row", 5)):
        matching = {"If-Match": f'"{version}"'}
        assert get(matching, route=route).status_code == 200
        assert answer(get({"If-Match": '"3"'}, route=route)) == STALE
    assert answer(get({"If-Match": "x"}, route="article.row")) == MALFORMED


def test_middleware_of_django_understands_the_tags():
    """``ConditionalGetMiddleware`` keeps it, ``GZipMiddleware`` makes it weak."""
    request = RequestFactory(headers={"Accept-Encoding": "gzip"}).get("/")
    commands.dispatch({"text": "x" * 500}, route="article.edit", aggregate_id=7)
    view = QueryView.as_view(route="article.text", bus=queries)
    etag = view(request, article_id=7)["ETag"]

    def through(middleware):
        return middleware(lambda each: view(each, article_id=7))(request)["ETag"]

    assert through(ConditionalGetMiddleware) == etag
    assert through(GZipMiddleware) == f"W/{etag}"


# Views of one's own ---------------------------------------------------------------


def request_with(**headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestFactory(headers=names).post("/")


def test_a_view_of_ones_own_dispatches_under_the_condition():
    """Of REST framework or django-ninja, with the path's identifier."""
    request = request_with(If_Match='"1"')
    where = {"bus": commands, "aggregate_id": 7}

    fields = {"text": "x"}
    edited = dispatch_for(request, fields, route="article.edit", **where)
    assert edited == (1, {"ETag": '"2"'})
    with pytest.raises(ConcurrencyError) as stale:
        dispatch_for(request, route="article.clear", **where)
    assert problem_of(stale.value)["status"] == 412
    cleared = dispatch_for(request_with(), route="article.clear", **where)
    assert cleared == (None, {"ETag": '"3"'})
    with pytest.raises(AggregateNotFound):
        dispatch_for(request, route="article.clear", bus=commands, aggregate_id=9)


def test_a_message_object_of_a_view_of_ones_own_is_compared():
    """It is sent unchanged; its version is compared as well as that of the header."""
    signing = SignArticle(article=7, seenVersion=1)

    assert dispatch_for(request_with(If_Match='"1"'), signing, bus=commands).result == 7
    with pytest.raises(ConcurrencyError):
        dispatch_for(request_with(If_Match='"1"'), signing, bus=commands)


def test_a_view_of_ones_own_gets_the_errors_of_the_header():
    """They are answered by the handlers for REST framework and django-ninja."""
    where = {"bus": commands, "aggregate_id": 7, "route": "article.clear"}
    with pytest.raises(PreconditionError) as malformed:
        dispatch_for(request_with(If_Match="7"), **where)
    with pytest.raises(PreconditionError) as missing:
        dispatch_for(request_with(), requires_if_match=True, **where)
    with pytest.raises(MessageConversionError) as twice:
        dispatch_for(
            request_with(If_Match='"1"'),
            {"text": "x", "seen": 1},
            **where | {"route": "article.edit"},
        )

    for error, expected in ((malformed, MALFORMED), (missing, MISSING)):
        assert problem_of(error.value) == expected[1]
    assert problem_of(twice.value)["status"] == 400
    assert text_of() == "second"


def test_a_view_of_ones_own_asks_with_a_tag():
    """The tag is that of the views."""
    request = RequestFactory().get("/")
    asked = ask_for(request, route="article.text", aggregate_id=7, bus=queries)

    assert asked.result == "second"
    assert asked.headers == {"ETag": get(route="article.text")["ETag"]}
    with pytest.raises(PreconditionError):
        ask_for(
            request_with(If_Match='"3"'),
            route="article.text",
            aggregate_id=7,
            bus=queries,
        )


@pytest.mark.parametrize("twin", [adispatch_for, aask_for])
def test_asynchronous_views_of_ones_own_have_twins(twin):
    """They do the same in the database's thread."""
    is_query = twin is aask_for
    given = {
        "route": "article.text" if is_query else "article.clear",
        "aggregate_id": 7,
        "bus": queries if is_query else commands,
    }

    result, headers = async_to_sync(twin)(request_with(If_Match='"1"'), **given)

    assert result == ("second" if is_query else None)
    assert headers["ETag"].startswith('"1-' if is_query else '"2"')
