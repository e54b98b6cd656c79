"""The pages and their fenced blocks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial" / "first-command.md"

FILE_LINE = re.compile(
    r"^(?:#|<!--) (?P<path>[\w./-]+\.\w+)(?P<end> \(at the end\))?(?: -->)?$"
)
NEW_PROJECT = re.compile(r"^<!-- a new project -->$", re.MULTILINE)


def pages() -> list[Path]:
    """Return every page that a reader may read."""
    built = DOCS / "_build"
    inside = [path for path in DOCS.rglob("*.md") if built not in path.parents]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(inside)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block; its source begins on the line after the fence."""

    page: Path
    line: int
    language: str
    argument: str
    source: str

    @property
    def is_directive(self) -> bool:
        """Return whether it is markup for Sphinx, such as a table of contents."""
        return self.language.startswith("{")

    @property
    def file(self) -> re.Match[str] | None:
        """Return the file that its first line names, if any."""
        return FILE_LINE.match(self.source.partition("\n")[0])

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


@dataclasses.dataclass(frozen=True)
class NewProject:
    """The place where a page begins anew."""

    line: int


def document_of(page: Path, evaluate: Callable[[Example], None]) -> Document:
    """Parse a page: every fence becomes a block, whatever its language is."""
    lexer = RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))

    def fences(document: Document) -> Iterator[Region]:
        for region in lexer(document):
            line = document.text.count("\n", 0, region.start) + 1
            language, _, argument = region.lexemes["info"].strip().partition(" ")
            source = str(region.lexemes["source"])
            region.parsed = Block(page, line, language, argument.strip(), source)
            region.evaluator = evaluate
            yield region

    def marks(document: Document) -> Iterator[Region]:
        for found in NEW_PROJECT.finditer(document.text):
            line = document.text.count("\n", 0, found.start()) + 1
            yield Region(found.start(), found.end(), NewProject(line), evaluate)

    return Document.parse(str(page), fences, marks)


def blocks_of(page: Path) -> list[Block]:
    document = document_of(page, lambda example: None)
    found = [example.parsed for example in document.examples()]
    return [block for block in found if isinstance(block, Block)]
