"""The verdicts against the truth: what a drawn class wrote, another one reads or not."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal, InvalidOperation

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from django_cqrs.conversion.adapters import Adapter
from django_cqrs.conversion.schemas import core_schema_of
from django_cqrs.conversion.stored import to_stored_json
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.schema_lock.locked_shapes import described, shown
from django_cqrs.schema_lock.rules import changes_between
from tests.outbox.support import SOAKS
from tests.schema_lock.drawn import pairs

EXAMPLES = 4_000 if SOAKS else 100


def is_same(stored, again):
    """Return whether JSON holds the same values, where it has the same fields."""
    if isinstance(stored, dict) and isinstance(again, dict):
        return all(is_same(stored[k], again[k]) for k in stored if k in again)
    if isinstance(stored, list) and isinstance(again, list):
        in_order = all(map(is_same, stored, again))
        sets = [sorted(map(json.dumps, each)) for each in (stored, again)]
        return len(stored) == len(again) and (in_order or sets[0] == sets[1])
    if isinstance(stored, (int, float)) and not isinstance(stored, bool):
        try:  # as a float or a Decimal, which is text
            return Decimal(str(stored)) == Decimal(str(again)) or (
                float(stored) == float(again)
            )
        except (InvalidOperation, ValueError):
            return False
    return stored == again


def read_again(former, present, values):
    """Return how many values the former class stores, and how many are read."""
    stored = read = 0
    for value in values:
        try:
            text = to_stored_json(former, value)
        except MessageConversionError:
            continue  # no channel has ever stored it
        stored += 1
        try:
            back = present.from_stored_json(text)
        except MessageConversionError:
            continue
        again = present.to_exact_json(back) or present.to_json(back)
        read += is_same(json.loads(text), json.loads(again))
    return stored, read


@pytest.mark.long
def test_g01_4_no_pair_of_classes_is_wrongly_called_fine(say):
    """Each payload of the old class is read by the new one wherever the rules say so."""
    seen = Counter()
    wrong = []

    @settings(
        max_examples=EXAMPLES,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=not SOAKS,
        database=None,
    )
    @given(pairs())
    def compare(pair):
        old, new, values = pair
        former, present = Adapter(old), Adapter(new)
        if former.fault or present.fault:
            return
        shapes = [described(core_schema_of(each)).shape for each in (old, new)]
        found = changes_between(*shapes)
        stored, read = read_again(former, present, values)
        is_fine = all(each.verdict.is_allowed for each in found)
        if is_fine and read < stored:
            wrong.append((*map(shown, shapes), [(c.path, c.rule) for c in found]))
        seen["fine" if is_fine else "not fine"] += stored > 0
        seen["refused, yet read"] += not is_fine and 0 < stored == read
        seen["payloads"] += stored

    compare()
    say(f"{EXAMPLES} pairs of classes: {dict(seen)}, {len(wrong)} wrongly fine.")

    assert wrong == []
    assert seen["fine"] > EXAMPLES / 10
    assert seen["not fine"] > EXAMPLES / 10
