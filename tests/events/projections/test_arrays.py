"""Arrays of PostgreSQL as text: each value comes back as it was."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as some

from django_cqrs.events.arrays import as_array
from tests.outbox.support import on_postgresql

pytestmark = [pytest.mark.database, pytest.mark.django_db]

TEXTS = some.text(
    some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
)
COLUMNS = {
    "bigint": some.integers(-(2**63), 2**63 - 1),
    "text": TEXTS,
    "boolean": some.booleans(),
    "uuid": some.uuids(),
    "numeric": some.decimals(allow_nan=False, allow_infinity=False, places=4),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_comes_back_from_the_server(kind):
    """Whatever the values of a column are, the server reads the same ones."""
    on_postgresql()

    @given(some.lists(some.none() | COLUMNS[kind], max_size=8))
    def check(values):
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT unnest(%s::{kind}[])", [as_array(values)])
            assert [each for (each,) in cursor.fetchall()] == values

    check()


def test_only_columns_of_one_plain_type_become_text():
    """Other values are left to the driver, in a list."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)

    assert as_array([1, None, 3]) == "{1,NULL,3}"
    assert as_array(['a"b', "c\\d", "NULL", ""]) == '{"a\\"b","c\\\\d","NULL",""}'
    assert as_array([True, False]) == "{True,False}"
    assert as_array([UUID(int=1)]) == f"{{{UUID(int=1)}}}"
    assert as_array([Decimal("1.50")]) == "{1.50}"
    assert as_array([1, "a"]) == [1, "a"]
    assert as_array([moment]) == [moment]
    assert as_array([None]) == [None]
    assert as_array([]) == []
