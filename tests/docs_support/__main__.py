"""
Write into pages what their commands print now, where that has changed.

    python -m tests.docs_support docs/reference/checks.md ...

Look at the difference before you keep it: a page that was right may have found a bug.
What is typed into a shell (pycon) is left to you.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from tests.docs_support.pages import Block, document_of
from tests.docs_support.reader import Reader, make_project
from tests.docs_support.terminal import commands_of


class Scribe(Reader):
    """Believes the terminal and not the page."""

    def _run_console(self, block: Block) -> None:
        written = ""
        for command in commands_of(block.source):
            _, printed = self.terminal.type(command.line)
            output = command.output
            if not command.is_answered_by(printed):
                printed = re.sub(r"\b0x[0-9a-f]+\b", "0x7f1c2a3b4c10", printed)
                output = printed.strip("\n") + "\n"
            written += f"$ {command.line}\n{output}"
        text = self.page.read_text()
        if written != block.source:
            self.page.write_text(text.replace(block.source, written, 1))
            print(f"{block} is written anew.")


def main(pages: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        base, readers = Path(place, "base"), Path(place, "readers")
        base.mkdir()
        make_project(base)
        for number, name in enumerate(pages):
            page = Path(name).resolve()
            scribe = Scribe(page, readers / str(number), base, {})
            try:
                for example in document_of(page, scribe.evaluate).examples():
                    example.evaluate()
            finally:
                scribe.close()


if __name__ == "__main__":
    main(sys.argv[1:])
