"""Collections by hand: add, update, upsert, get, find, delete, list, count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext, modify_settings

from django_cqrs import Registry, query_handler
from django_cqrs.conversion import upcaster
from django_cqrs.documents import DocumentStore, document
from django_cqrs.documents.models import Document
from django_cqrs.exceptions import (
    ConcurrencyError,
    DocumentAlreadyExists,
    DocumentNotFound,
    InvalidIdentifier,
    InvalidOption,
    MessageConversionError,
    UnknownMessage,
)

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@document("papers.theme")
@dataclass
class Theme:
    name: str
    colours: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Price:
    amount: int


themes = DocumentStore(Theme)
prices = DocumentStore(list[Price], collection="papers.prices")


class TestMethods:
    def test_add_and_get(self):
        """A value comes back equal; a key is taken once. [M11.1]"""
        themes.add("dark", Theme("Dark", ["black"]))
        with pytest.raises(DocumentAlreadyExists) as raised:
            themes.add("dark", Theme("Other"))

        assert str(raised.value) == "Theme 'dark' in 'papers.theme' exists already."
        assert themes.get("dark") == Theme("Dark", ["black"])

    def test_one_table_with_a_version(self):
        """The row: JSON, a name that is no module path, a version. [M11.1]"""
        themes.upsert("dark", Theme("Dark", ["black"]))
        themes.upsert("dark", Theme("Darker", []))

        (row,) = Document.objects.all()
        assert (row.collection, row.key, row.version, row.shape) == (
            *("papers.theme", "dark"),
            *(1, 1),
        )
        assert row.content == {"name": "Darker", "colours": []}
        assert row.updated_at > row.created_at
        assert str(row) == "dark in papers.theme"

    def test_get_and_find_nothing(self):
        """``get`` raises, ``find`` gives None. [M11.1]"""
        assert themes.find("dark") is None
        with pytest.raises(DocumentNotFound) as raised:
            themes.get("dark")

        assert str(raised.value) == "There is no Theme 'dark' in 'papers.theme'."

    def test_update(self):
        """It replaces what is there, and there must be something; the same content will do. [M11.1]"""
        with pytest.raises(DocumentNotFound):
            themes.update("dark", Theme("Dark"))
        themes.add("dark", Theme("Dark"))
        themes.update("dark", Theme("Dark"))
        themes.update("dark", Theme("Darker"))

        assert themes.get("dark") == Theme("Darker")

    def test_upsert(self):
        """It adds or replaces. [M11.1]"""
        themes.upsert("dark", Theme("Dark"))
        themes.upsert("dark", Theme("Darker"))

        assert themes.list() == [Theme("Darker")]

    def test_delete_list_count_clear(self):
        """Each collection by itself, the oldest first; what is not there is no error. [M11.1]"""
        for name in ("c", "a", "b"):
            themes.add(name, Theme(name))
        prices.add("c", [Price(1)])
        assert themes.delete("a") is True
        assert themes.delete("a") is False

        assert [each.name for each in themes.list()] == ["c", "b"]
        assert (themes.count(), prices.count()) == (2, 1)
        assert (themes.clear(), themes.clear()) == (2, 0)
        assert (themes.list(), themes.count(), prices.count()) == ([], 0, 1)

    @pytest.mark.parametrize(
        ("type_", "value"),
        [
            (list[Price], [Price(1), Price(2)]),
            (dict[str, Any], {"a": [1, None, {"b": "c"}]}),
            (list[int], [1, 2]),
            (str, "text"),
            (Price | None, None),
            (dict[UUID, Price], {UUID(int=1): Price(1)}),
        ],
    )
    def test_other_values(self, type_, value):
        """Lists, dicts and scalars come back in the form that they had. [M11.1]"""
        store = DocumentStore(type_, collection="papers.values")
        store.add(1, value)

        assert store.get(1) == value
        assert store.list() == [value]

    def test_keys(self):
        """Text, numbers and UUIDs; those of other collections and case are others."""
        for key in ("a", "A", "ä", 7, UUID(int=7)):
            themes.add(key, Theme(str(key)))

        assert themes.get("A").name == "A"
        assert themes.get(str(UUID(int=7))) == themes.get(UUID(int=7))
        assert themes.count() == 5
        for wrong in (None, "x" * 256, "a ", ["a"]):
            with pytest.raises(InvalidIdentifier):
                themes.get(wrong)

    def test_a_failed_add_leaves_a_usable_transaction(self):
        """Who catches it goes on."""
        themes.add("dark", Theme("Dark"))
        with pytest.raises(DocumentAlreadyExists):
            themes.add("dark", Theme("Dark"))
        themes.add("light", Theme("Light"))

        assert themes.count() == 2

    def test_what_would_be_lost_is_refused(self):
        """A value that its type does not say: nothing is written."""
        with pytest.raises(MessageConversionError, match=r"colours\.0"):
            themes.add("dark", Theme("Dark", [7]))
        with pytest.raises(
            MessageConversionError, match="of type Price, not exactly Theme"
        ):
            themes.add("dark", Price(1))

        assert not Document.objects.exists()

    def test_statements(self):
        """One statement for each method, where nothing is in its way."""
        with CaptureQueriesContext(connection) as captured:
            themes.add("dark", Theme("Dark"))
            themes.update("dark", themes.get("dark"))
            themes.count()
            themes.find("light")
        words = [q["sql"].split()[0] for q in captured.captured_queries]

        assert [w for w in words if w not in ("SAVEPOINT", "RELEASE")] == [
            *("INSERT", "SELECT", "UPDATE", "SELECT", "SELECT"),
        ]

    def test_another_database(self, django_db_blocker):
        """``using=`` names the alias."""
        assert DocumentStore(Theme, using="other")._alias == "other"

    def test_as_a_parameter(self):
        """``DocumentStore[Theme]`` in a handler is the collection of that class."""

        @query_handler("themes")
        def ask(store: DocumentStore[Theme]) -> str:
            return repr(store)

        registry = Registry()
        registry.add(ask)
        assert registry.query_bus.ask(route="themes") == "DocumentStore(Theme)"

    def test_without_the_app(self):
        """The error says what to add."""
        with (
            modify_settings(INSTALLED_APPS={"remove": "django_cqrs.documents"}),
            pytest.raises(ImproperlyConfigured, match=r"Add 'django_cqrs\.documents'"),
        ):
            themes.count()

    def test_without_a_name(self):
        """A collection has to be called something."""
        for nameless in (Price, list[Price]):
            with pytest.raises(InvalidOption, match="Give collection="):
                DocumentStore(nameless).count()


class TestStaleSaves:
    def test_what_was_read_before_another_save(self):
        """It raises, and leaves what the other one has written. [M11.2]"""
        themes.add("dark", Theme("Dark"))
        mine, theirs = themes.get("dark"), themes.get("dark")
        theirs.name = "theirs"
        themes.update("dark", theirs)
        mine.name = "mine"
        for save in (themes.update, themes.upsert):
            with pytest.raises(ConcurrencyError, match="changed or deleted"):
                save("dark", mine)

        assert themes.get("dark").name == "theirs"

    def test_saved_again_and_again(self):
        """Who has saved it may save it once more; one from a list too. [M11.2]"""
        theme = Theme("Dark")
        themes.add("dark", theme)
        for name in ("a", "b"):
            theme.name = name
            themes.update("dark", theme)
        (listed,) = themes.list()
        listed.name = "c"
        themes.upsert("dark", listed)

        assert themes.get("dark").name == "c"

    def test_deleted_meanwhile(self):
        """What was read and is gone is not written back. [M11.2]"""
        themes.add("dark", Theme("Dark"))
        mine = themes.get("dark")
        themes.delete("dark")
        with pytest.raises(ConcurrencyError):
            themes.update("dark", mine)

    def test_a_version_given(self):
        """A value that remembers nothing is guarded by ``version=``. [M11.2]"""
        prices.add("a", [Price(1)])
        prices.update("a", [Price(2)], version=0)
        with pytest.raises(ConcurrencyError):
            prices.update("a", [Price(3)], version=0)
        with pytest.raises(DocumentNotFound):
            prices.update("b", [Price(3)], version=0)

        assert prices.get("a") == [Price(2)]

    def test_under_another_key(self):
        """What was read under one key is new under another."""
        themes.add("dark", Theme("Dark"))
        theme = themes.get("dark")
        themes.add("copy", theme)
        theme.name = "Copy"
        themes.update("copy", theme)

        assert [each.name for each in themes.list()] == ["Dark", "Copy"]


class TestOldContent:
    @pytest.fixture(autouse=True)
    def _old(self):
        """What is there of a class that is gone."""
        for name in ("papers.skin", "papers.hide"):
            DocumentStore(Theme, collection=name).add("dark", Theme("Dark"))

    def test_a_renamed_class(self):
        """What is stored under an alias is found, counted, and renamed by its next save."""

        @document("papers.style", aliases=["papers.skin"])
        @dataclass
        class Style:
            name: str
            size: int = 3

        styles = DocumentStore(Style)
        with pytest.raises(DocumentAlreadyExists):
            styles.add("dark", Style("Other"))
        assert styles.list() == [styles.get("dark")] == [Style("Dark")]
        styles.update("dark", styles.get("dark"))

        assert styles.count() == 1
        collections = Document.objects.values_list("collection", flat=True)
        assert sorted(collections) == ["papers.hide", "papers.style"]

    def test_an_upcaster(self):
        """Content of an older version is brought to the present one."""

        @document("papers.style2", version=2, aliases=["papers.hide"])
        @dataclass
        class Style2:
            title: str

        @upcaster("papers.style2", version=1)
        def retitle(content):
            return {"title": content["name"]}

        assert DocumentStore(Style2).get("dark") == Style2("Dark")

    def test_two_classes_of_one_name(self):
        """Neither is taken for the other."""

        @document("papers.twice")
        @dataclass
        class One:
            name: str

        @document("papers.twice")
        @dataclass
        class Two:
            name: str

        assert DocumentStore(One).count() == 0
        with pytest.raises(
            InvalidOption, match=r"One is named 'papers\.twice' as well"
        ):
            DocumentStore(Two).count()

    def test_newer_content(self):
        """What newer code has stored is not guessed at."""
        themes.add("dark", Theme("Dark"))
        Document.objects.filter(collection="papers.theme").update(shape=2)
        with pytest.raises(UnknownMessage, match="this process runs older code"):
            themes.get("dark")


def test_no_migration_is_missing():
    """The models are as the migrations make them."""
    call_command("makemigrations", "django_cqrs_documents", check=True, verbosity=0)
