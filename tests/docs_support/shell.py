"""
The Python of a page: a ``manage.py shell`` that is told what to run.

    python -m tests.docs_support.shell DJANGO_SETTINGS_MODULE

It reads one JSON object a line from its standard input (kind, source, page, line)
and answers each with one (failure, a text or null).
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import sys
import traceback
from typing import Any

from tests.docs_support.comparison import fits


class Checker(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return fits(want, got)


def run_python(source: str, page: str, line: int, names: dict[str, Any]) -> str | None:
    """Run a block of statements; what it prints would be lost to the reader."""
    printed = io.StringIO()
    try:
        # So many empty lines that a traceback names the line of the page.
        code = compile("\n" * line + source, page, "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    except BaseException:  # noqa: BLE001 - the page may raise what it likes
        return traceback.format_exc()
    if printed.getvalue():
        return f"It prints, so make it a pycon block:\n{printed.getvalue()}"
    return None


def run_pycon(source: str, page: str, line: int, names: dict[str, Any]) -> str | None:
    """Type a block of input and compare what is printed."""
    examples = doctest.DocTestParser().get_doctest(source, {}, page, page, line)
    examples.globs = names
    report = io.StringIO()
    runner = doctest.DocTestRunner(Checker(), verbose=False)
    results = runner.run(examples, out=report.write, clear_globs=False)
    if not results.attempted:
        return "Nothing is typed here."
    return report.getvalue() if results.failed else None


def main(settings: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what slips past redirect_stdout is no answer
    os.environ["DJANGO_SETTINGS_MODULE"] = settings
    import django

    django.setup()
    names: dict[str, Any] = {"__name__": "__console__"}
    kinds = {"python": run_python, "pycon": run_pycon}
    for line in sys.stdin:
        order = json.loads(line)
        run = kinds[order["kind"]]
        failure = run(order["source"], order["page"], order["line"], names)
        print(json.dumps({"failure": failure}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
