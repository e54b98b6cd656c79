"""The English of the code and the documentation: words that a native would not use."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

WORDS = {
    "Tell whether": r"\btell whether\b",
    "is no": r"\b(?<!there )is no\b(?! (?:longer|less|more)\b)",
    "are no": r"\b(?<!there )are no\b(?! (?:longer|less|more)\b)",
    "by now": r"\bby now\b",
    "at the most": r"\bat the most\b",
    "any more": r"\bany more\b",
    "for ever": r"\bfor ever\b",
    "mend": r"\bmend(?:s|ed|ing)?\b",
}

# A clause that stands for a noun: "Return what a handler is given" is its arguments.
CLAUSE = re.compile(
    r"^(?:Return|Yield|Find|Say|Tell) (?:what|whatever|who|whoever|how|where|that)\b"
    r"|^(?:What|Who|Whoever|How many|How often)\b"
    r"|\b(?:of|for|from|with|in) (?:what|whatever|whoever)\b"
    r"|\bwhat (?:is|was|are|were) (?:said|given|known|to be)\b"
)

# The guide's own list of these words, and a variable of this name.
ALLOWED = {
    "CONTRIBUTING.md": {"Tell whether", "is no", "by now", "at the most", "any more"}
    | {"for ever", "mend"},
}


def pages():
    """Return the texts that people read: the package's, and the documentation."""
    return [
        *sorted((ROOT / "django_cqrs").rglob("*.py")),
        *sorted((ROOT / "django_cqrs").rglob("*.html")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted(ROOT.glob("*.md")),
    ]


def found_in(text: str, pattern: str) -> list[str]:
    """Return the places of a word, also where it stands at the end of a line."""
    plain = re.sub(r"[ \t]*\n[ \t]*(?:# )?", " ", re.sub(r'"\s*\n\s*f?"', "", text))
    return [
        plain[max(match.start() - 30, 0) : match.end() + 30]
        for match in re.finditer(pattern, plain, re.IGNORECASE)
    ]


@pytest.mark.parametrize("word", WORDS)
def test_the_words_of_the_style_sheet_are_kept_to(word):
    """CONTRIBUTING's style sheet names words to avoid: no text has one of them."""
    faults = {
        str(page.relative_to(ROOT)): places
        for page in pages()
        if word not in ALLOWED.get(page.name, ())
        and (places := found_in(page.read_text(encoding="utf-8"), WORDS[word]))
    }

    assert faults == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is no number.", ["is no"]),
        ("There is no handler, and it is no longer one.", []),
        ("They are\n    # no numbers.", ["are no"]),
        ('"Nothing is there any "\n    "more."', ["any more"]),
        ("Mend it, at the most\nonce.", ["at the most", "mend"]),
        ("for everybody, recommend, by nowhere", []),
    ],
)
def test_the_words_are_found_across_lines(text, words):
    """A word is found in comments and in joined strings, and not inside another."""
    assert [word for word, rule in WORDS.items() if found_in(text, rule)] == words


def first_lines(source: str) -> list[str]:
    """Return the first lines of docstrings, those of attributes included."""
    return [
        node.value.value.strip().partition("\n")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def test_docstrings_begin_with_nouns():
    """The first line of a docstring names things, and does not paraphrase them."""
    modules = sorted((ROOT / "django_cqrs").rglob("*.py"))
    faults = {
        str(module.relative_to(ROOT)): lines
        for module in modules
        if (
            lines := [
                line
                for line in first_lines(module.read_text(encoding="utf-8"))
                if CLAUSE.search(line)
            ]
        )
    }

    assert faults == {}


@pytest.mark.parametrize(
    ("line", "is_clause"),
    [
        ("Return what a handler is given.", True),
        ("Return the handler's arguments.", False),
        ("Yield where a value stands.", True),
        ("What is known of a message.", True),
        ("Decide by what was said of it.", True),
        ("Return whether a value fits.", False),
        ("Return why a class has no name.", False),
        ("Whether the worker stops.", False),
    ],
)
def test_a_clause_is_told_from_a_noun(line, is_clause):
    """A docstring may begin with whether and why, which no noun says as briefly."""
    source = f'def f():\n    """{line}"""\n\n    x = 1\n    """{line}"""\n'

    assert first_lines(source) == [line, line]
    assert bool(CLAUSE.search(line)) is is_clause
