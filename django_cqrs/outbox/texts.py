"""What is written down of an exception."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Final


def described(error: BaseException) -> str:
    """Return the text of an exception, as a database takes it."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an error that cannot even be described
        text = f"<{type(error).__name__} without a text>"
    return storable(text)


def storable(text: str) -> str:
    """Return a text that every database takes: without NUL and lone surrogates."""
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("\x00", "\\x00")


LONGEST: Final = {"error": 2**14, "traceback": 2**16}
"""How many characters of an exception's texts are kept."""


def shortened(text: str, longest: int) -> str:
    """Return a text, of a longer one its beginning, its end and how long it was."""
    if len(text) <= longest:
        return text
    end = longest // 4
    mark = f"\n[... {len(text):,} characters, of which {longest:,} are kept ...]\n"
    return f"{text[: longest - end]}{mark}{text[-end:]}"


def path_of(error: BaseException) -> str:
    """Return the dotted path of an exception's class."""
    return f"{type(error).__module__}.{type(error).__qualname__}"


def masked(error: BaseException, redact: Callable[[str], str]) -> BaseException:
    """
    Return an exception that may leave by the log: its text masked, its frames empty.

    A tracker of errors sends the local variables of every frame of a traceback, and
    among them the message. So the frames are made anew, with their files, names and
    lines and nothing else.

    Args:
        error: what was raised.
        redact: masks what is sensitive in a text.

    """
    first: BaseException | None = None
    last: BaseException | None = None
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        kind = type(each)
        own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        copy = type(kind.__name__, (Exception,), own)(redact(described(each)))
        copy.__traceback__ = _without_locals(each.__traceback__)
        copy.__suppress_context__ = True
        if last is None:
            first = copy
        else:
            last.__cause__ = copy
        last = copy
        before = None if each.__suppress_context__ else each.__context__
        each = each.__cause__ or before
    return first or error


def _without_locals(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback of the same places, whose frames hold nothing."""
    made: TracebackType | None = None
    places = [
        (frame.f_code, frame.f_globals.get("__name__", ""), number)
        for frame, number in traceback.walk_tb(trace)
    ]
    for code, module, number in reversed(places):
        source = "\n" * (number - 1) + "raise Exception"
        empty = compile(source, code.co_filename, "exec").replace(
            co_name=code.co_name, co_qualname=code.co_qualname
        )
        try:
            exec(empty, {"__name__": module}, {})  # noqa: S102 - our own line, for its frame
        except Exception as raised:  # noqa: BLE001 - the one of that line
            own = raised.__traceback__
            if own is not None and own.tb_next is not None:
                own = own.tb_next
                made = TracebackType(made, own.tb_frame, own.tb_lasti, number)
    return made
