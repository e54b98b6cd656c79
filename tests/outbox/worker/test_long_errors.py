"""The error and the traceback of a dead letter: as long as somebody reads, no longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from django_cqrs import Registry, Retry, Sensitive, command_handler, message
from django_cqrs.outbox.journal import LONGEST, shortened
from tests.outbox.support import letters, on_databases, work

pytestmark = on_databases


@message("long_errors.login")
@dataclass(frozen=True)
class Login:
    password: Annotated[str, Sensitive()]
    before: int


@pytest.mark.parametrize("length", [10, 2**14, 9_000_000])
def test_the_error_of_a_dead_letter_is_as_long_as_is_kept(length):
    """Of a longer one its beginning, its end and the length are stored, and once."""
    calls = []

    @command_handler("fail", name="fail", channel="outbox", retry=Retry(attempts=1))
    def fail(text: str) -> None:
        calls.append(text)
        raise ValueError("a" * (length - 1) + "z")

    registry = Registry()
    registry.add(fail)
    registry.command_bus.dispatch("x", route="fail")
    work(registry)

    (letter,) = letters()
    assert calls == ["x"]
    assert letter.error == shortened("a" * (length - 1) + "z", LONGEST["error"])
    assert letter.error.endswith("z")
    if length > 2**14:
        said = "\n[... 9,000,000 characters, of which 16,384 are kept ...]\n"
        assert len(letter.error) == 2**14 + len(said)
        assert said in letter.error
    assert letter.traceback.startswith("Traceback (most recent call last):\n")
    assert len(letter.traceback) < 2**16 + 100
    assert letter.traceback.endswith("z\n")


@pytest.mark.parametrize("before", range(2**14 * 3 // 4 - 12, 2**14 * 3 // 4, 3))
def test_what_is_sensitive_is_masked_before_a_text_is_cut(before):
    """No half of a value is left where the text was cut."""

    @command_handler(name="login", channel="outbox", retry=Retry(attempts=1))
    def login(command: Login) -> None:
        raise ValueError(f"{'.' * command.before}{command.password}{'.' * 2**15}")

    registry = Registry()
    registry.add(login)
    registry.command_bus.dispatch(Login("qqxxzzwwkkvv", before))
    work(registry)

    (letter,) = letters()
    for piece in ("qq", "xx", "zz", "ww", "kk", "vv"):
        assert piece not in letter.error
        assert piece not in letter.traceback


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("12345678", "12345678"),
        ("123456789", "123456\n[... 9 characters, of which 8 are kept ...]\n89"),
    ],
)
def test_a_text_that_is_shortened_says_how_long_it_was(text, expected):
    """Three quarters of what is kept are its beginning."""
    assert shortened(text, 8) == expected
