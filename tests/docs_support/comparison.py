"""What was printed beside what the page says."""

from __future__ import annotations

import difflib
import doctest
import re

# What differs from run to run, and the word that stands for it on both sides. A page may
# have ``...`` in place of a count of tests or of a time.
VARYING = [
    (
        re.compile(r"\bStarting WSGI development server\b"),
        "Starting development server",
    ),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"\b0x[0-9a-f]+\b"), "<address>"),
    (re.compile(r"\bWEB-[0-9A-F]{8}\b"), "<order>"),
    (
        re.compile(r"^=+ (?:\d+|\.{3}) passed\b.* =+$", re.MULTILINE),
        "<tests passed>",
    ),
    (re.compile(r"\b\d+\.\d+ ?s(?:econds)?\b|\.{3} seconds\b"), "<seconds>"),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
]


def normal(text: str) -> str:
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text.strip("\n") + "\n"


def fits(wanted: str, printed: str) -> bool:
    """Return whether something was printed as the page says; ``...`` is anything."""
    checker = doctest.OutputChecker()
    return checker.check_output(normal(wanted), normal(printed), doctest.ELLIPSIS)


def difference(wanted: str, printed: str) -> str:
    lines = difflib.unified_diff(
        normal(wanted).splitlines(),
        normal(printed).splitlines(),
        "the page says",
        "printed",
        lineterm="",
    )
    return "\n".join([*lines, "", "Printed in full:", printed])
