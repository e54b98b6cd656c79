"""What is written down of an exception."""

from __future__ import annotations


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


def path_of(error: BaseException) -> str:
    """Return the dotted path of an exception's class."""
    return f"{type(error).__module__}.{type(error).__qualname__}"
