"""Exceptions in a form that a log, and a database, accept."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType


def described(error: BaseException) -> str:
    """Return the text of an exception, in a form that a database accepts."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an error that cannot even be described
        text = f"<{type(error).__name__} without a text>"
    return storable(text)


def storable(text: str) -> str:
    """Return a text that every database accepts: without NUL and lone surrogates."""
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("\x00", "\\x00")


def writable(text: str) -> str:
    """Return a text that UTF-8 can hold: lone surrogates are escaped."""
    return text.encode(errors="backslashreplace").decode()


def loggable(error: BaseException) -> BaseException:
    """
    Return an exception for the log: a copy, if UTF-8 cannot hold its text.

    A log file in UTF-8 refuses the whole record for a lone surrogate.
    """
    text = "".join(traceback.format_exception(error))
    return error if writable(text) == text else masked(error, writable)


def masked(error: BaseException, redact: Callable[[str], str]) -> BaseException:
    """
    Return a copy of an exception for the log: text masked, frames empty.

    An error tracker sends the local variables of every frame of a traceback, and the
    message is among them. So the frames are replaced by ones that have only their
    files, names and lines.

    Args:
        error: the exception.
        redact: masks sensitive data in a text.

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
    """Return a traceback of the same places, with empty frames."""
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
