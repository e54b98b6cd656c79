"""Views whose URL gives fields: under which keys nobody may give them again."""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
from django.core.exceptions import RequestDataTooBig
from django.test import RequestFactory
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from django_cqrs import Registry, command_handler, query_handler
from django_cqrs.views import CommandView, QueryView

pytestmark = pytest.mark.django_db


class ByAlias(BaseModel):
    owner_id: int = Field(alias="ownerId")


class ByBoth(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    owner_id: int = Field(alias="ownerId")


class ByValidationAlias(BaseModel):
    owner_id: int = Field(validation_alias="ownerId")


class ByChoice(BaseModel):
    owner_id: int = Field(validation_alias=AliasChoices("ownerId", "owner"))


class ByPath(BaseModel):
    owner_id: int = Field(validation_alias=AliasPath("owner", "id"))


class ByGenerator(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    owner_id: int


class ByNameAlone(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)
    owner_id: int = Field(alias="ownerId")


@dataclass
class OfDataclass:
    owner_id: Annotated[int, Field(alias="ownerId")]


@pydantic_dataclass
class OfPydanticDataclass:
    owner_id: int = Field(alias="ownerId")


class OfTypedDict(TypedDict):
    owner_id: Annotated[int, Field(alias="ownerId")]


class Plain(BaseModel):
    owner_id: int


NAME, ALIAS = {"owner_id": 9}, {"ownerId": 9}
KEYS = {
    ByAlias: [NAME, ALIAS],
    ByBoth: [NAME, ALIAS],
    ByValidationAlias: [NAME, ALIAS],
    ByChoice: [NAME, ALIAS, {"owner": 9}],
    ByPath: [NAME, {"owner": {"id": 9}}],
    ByGenerator: [NAME, ALIAS],
    ByNameAlone: [NAME],
    OfDataclass: [NAME, ALIAS],
    OfPydanticDataclass: [NAME, ALIAS],
    OfTypedDict: [NAME, ALIAS],
    Plain: [NAME],
}


def number_of(value):
    return value["owner_id"] if isinstance(value, dict) else value.owner_id


def post(cls, body, **captured):
    """Return the status of a POST and the JSON of its answer."""
    registry = Registry()

    @command_handler("own")
    def own(command: cls) -> int:
        return number_of(command)

    registry.add(own)
    view = CommandView.as_view(route="own", bus=registry.command_bus)
    request = RequestFactory().post("/", json.dumps(body), "application/json")
    response = view(request, **captured)
    return response.status_code, json.loads(response.content)


def get(cls, query, **captured):
    """Return the status of a GET and the JSON of its answer."""
    registry = Registry()

    @query_handler("own")
    def own(asked: cls) -> int:
        return number_of(asked)

    registry.add(own)
    view = QueryView.as_view(route="own", bus=registry.query_bus)
    response = view(RequestFactory().get("/", query), **captured)
    return response.status_code, json.loads(response.content)


def refused(path):
    return 400, {
        "title": "Bad Request",
        "status": 400,
        "detail": "The request is not valid; see errors.",
        "errors": [
            {
                "path": path,
                "detail": (
                    "it is in the path of the URL and cannot also be given here"
                ),
                "code": "in_path",
            }
        ],
    }


@pytest.mark.parametrize("cls", [each for each in KEYS if each is not OfTypedDict])
def test_a_field_is_taken_from_the_path_under_its_own_name(cls):
    """Also where the payload's class takes it under an alias alone."""
    assert post(cls, {}, owner_id=5) == (200, 5)
    if cls is not ByPath:  # a query string has no values in values
        assert get(cls, {}, owner_id=5) == (200, 5)


@pytest.mark.parametrize(
    ("cls", "key"), [(cls, key) for cls, keys in KEYS.items() for key in keys]
)
def test_a_field_of_the_path_is_refused_under_every_key_that_it_has(cls, key):
    """A field that is given twice is a problem: the fields count, not their keys."""
    [(name, value)] = key.items()
    path = f"{name}.id" if isinstance(value, dict) else name

    assert post(cls, key, owner_id=5) == refused(path)
    if not isinstance(value, dict):
        assert get(cls, key, owner_id=5) == refused(path)


@pytest.mark.parametrize("cls", [ByAlias, ByBoth, ByChoice, OfDataclass])
def test_a_field_of_the_path_may_be_captured_under_its_alias(cls):
    """And is then refused under its own name as well."""
    assert post(cls, {}, ownerId=5) == (200, 5)
    assert post(cls, NAME, ownerId=5) == refused("owner_id")
    assert post(cls, ALIAS, ownerId=5) == refused("ownerId")


def test_a_key_of_another_field_is_no_rival():
    """Two fields may be read from one list."""

    class Pair(BaseModel):
        owner_id: int = Field(validation_alias=AliasPath("ids", 0))
        other_id: int = Field(validation_alias=AliasPath("ids", 1))

    assert post(Pair, {"ids": [9, 8]}, owner_id=5) == refused("ids.0")
    assert post(Plain, {"id": 9}, owner_id=5) == (200, 5)


class Tricks(BaseModel):
    tricks: list[str]


@pytest.mark.parametrize("count", [99, 100, 101, 20_000])
def test_of_many_wrong_fields_the_first_hundred_are_listed(count):
    """The answer does not grow with what is wrong; it says how many more there are."""
    status, answer = post(Tricks, {"tricks": [1] * count})

    listed = min(count, 100)
    assert status == 400
    assert [each["path"] for each in answer["errors"][:listed]] == [
        f"tricks.{number}" for number in range(listed)
    ]
    more = {
        "path": "",
        "detail": f"{count - 100} more errors are not listed",
        "code": "too_many_errors",
    }
    assert answer["errors"][listed:] == ([more] if count > 100 else [])


def test_a_list_that_is_long_enough_is_not_said_to_be_short():
    """Also where so much of it is wrong that only its beginning is looked at."""

    class Long(BaseModel):
        rows: list[Annotated[list[int], Field(min_length=150)]]

    rows = [[*range(150)]] * 100 + [["x"] * 150] * 40
    _, answer = post(Long, {"rows": rows})

    assert [each["path"] for each in answer["errors"][:2]] == [
        "rows.100.0",
        "rows.100.1",
    ]
    assert {each["code"] for each in answer["errors"]} == {
        "int_type",
        "too_many_errors",
    }


def test_the_paths_of_wrong_fields_are_bounded():
    """A key that somebody has sent may be as long as the body, and in every path."""

    class Named(BaseModel):
        names: dict[str, list[int]]

    _, answer = post(Named, {"names": {"x" * 100_000: ["no number"] * 50}})

    assert [each["path"] for each in answer["errors"]] == [f"names.{'x' * 494}..."] * 50


def test_a_body_is_bounded_as_django_bounds_it(settings):
    """Django refuses what is larger than its setting says, before it is read."""
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100

    with pytest.raises(RequestDataTooBig):
        post(Tricks, {"tricks": ["x"] * 100})
