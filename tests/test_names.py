"""One public noun has one meaning: no two classes of the package share a name."""

import ast
from collections import defaultdict
from pathlib import Path

import django_cqrs

PACKAGE = Path(django_cqrs.__file__).parent

# Django looks for the first two by name, others are documented under both of their paths.
SHARED = {
    "Command": "a command of manage.py is called that, and so is the base of messages",
    "Migration": "each file of migrations has one",
    "Note": "what a journal keeps, and a message of the conformance suite",
    "Problem": "a mistake in a declaration, and what health checks report",
    "Registry": "the conformance suite derives its own",
    "State": "where a message of the outbox stands, and the mark of a projection's",
    "Relay": "what forwards to an engine, and a message of the conformance suite",
}


def classes():
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                name = node.name.removeprefix("_")
                found[name].append(str(path.relative_to(PACKAGE)))
    return found


def test_no_two_classes_share_a_name():
    """A name that a reader has met means the same wherever it is met again."""
    twice = {
        name: paths
        for name, paths in classes().items()
        if len(paths) > 1 and name not in SHARED
    }

    assert twice == {}


def test_only_names_that_are_shared_are_excused():
    """An excuse that nothing needs any longer is taken away."""
    found = classes()

    assert [name for name in SHARED if len(found[name]) < 2] == []
