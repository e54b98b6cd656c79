"""
Lock files: one block for each class, sorted, so that two branches merge cleanly.

No line of a block depends on another block, and neither the first nor the last line of
the file is one of a block.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from django_cqrs.schema_lock.locked_shapes import (
    OBJECT,
    OF,
    ONE,
    SEVERAL,
    TYPES,
    UNION,
    LockedShape,
    mapped,
    short,
)

FILE: Final = "messages.lock.json"
FORMAT: Final = 1

_ABOUT: Final = "$about"
_FORMAT: Final = "$format"
_TEXT: Final = "Written by manage.py cqrs_schema. Commit this file, and do not edit it."
_KEYS: Final = frozenset({"aliases", "samples", "shape", "version"})


@dataclasses.dataclass(frozen=True, slots=True)
class LockedBlock:
    """A class as it was locked."""

    key: str
    """The stored name of the class; that of a document after ``document:``."""
    version: int
    aliases: tuple[str, ...]
    shape: LockedShape
    samples: dict[int, Any]
    """One payload for each version; None where none could be made."""


@dataclasses.dataclass(frozen=True, slots=True)
class LockFile:
    """A lock file as it was read."""

    path: Path
    text: str = ""
    """Empty if there is no file."""
    blocks: tuple[LockedBlock, ...] = ()
    """Two of one class if both sides of a conflict have changed it."""
    fault: str = ""
    """The reason why it cannot be read."""
    is_conflicted: bool = False
    """Whether it has the marks of a merge that git could not complete."""


class _LockFault(ValueError):
    """A part of the file that is not as it is written."""


def read(path: Path) -> LockFile:
    """Return the content of a lock file; its fault if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return LockFile(path)
    except (OSError, UnicodeDecodeError) as error:
        return LockFile(path, fault=f"it cannot be read ({error})")
    sides = list(_sides(text))
    try:
        found = [block for side in sides for block in _blocks(side)]
    except _LockFault as error:
        return LockFile(path, text, fault=str(error), is_conflicted=len(sides) > 1)
    return LockFile(path, text, tuple(_different(found)), is_conflicted=len(sides) > 1)


def _different(blocks: Iterable[LockedBlock]) -> Iterator[LockedBlock]:
    """Yield the blocks that differ: both sides of a conflict have most of them."""
    known: defaultdict[str, list[LockedBlock]] = defaultdict(list)
    for each in blocks:
        if each not in known[each.key]:
            known[each.key].append(each)
            yield each


def written(blocks: Iterable[LockedBlock]) -> str:
    """Return the text of a lock file."""
    parts: dict[str, Any] = {_ABOUT: _TEXT}
    for block in sorted(blocks, key=lambda each: each.key):
        part = {
            "aliases": sorted(block.aliases),
            "samples": {str(n): block.samples[n] for n in sorted(block.samples)},
            "shape": short(block.shape),
            "version": block.version,
        }
        if not block.aliases:
            del part["aliases"]
        parts[block.key] = _sorted(part)
    parts[_FORMAT] = FORMAT
    return json.dumps(parts, indent=2, ensure_ascii=False) + "\n"


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return list(map(_sorted, value)) if isinstance(value, list) else value


def write(path: Path, text: str) -> None:
    """
    Replace a lock file at once.

    Raises:
        OSError: it cannot be written.

    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


# ---------------------------------------------------------------------------- reading

_OURS, _BASE, _BETWEEN, _THEIRS = "<<<<<<<", "|||||||", "=======", ">>>>>>>"


def _sides(text: str) -> Iterator[str]:
    """Yield the text, or both sides of it if it has the marks of a conflict."""
    lines = text.splitlines(keepends=True)
    if not any(line.startswith((_OURS, _THEIRS)) for line in lines):
        yield text
        return
    for wanted in (_OURS, _BETWEEN):
        inside, kept = "", []
        for line in lines:
            mark = next((m for m in _MARKS if line.startswith(m)), "")
            if mark:
                inside = "" if mark == _THEIRS else mark
            elif inside in ("", wanted):
                kept.append(line)
        yield "".join(kept)


_MARKS: Final = (_OURS, _BASE, _BETWEEN, _THEIRS)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"it has {twice!r} twice, as after a merge by hand"
        raise _LockFault(msg)
    return found


def _blocks(text: str) -> Iterator[LockedBlock]:
    try:
        parts = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        msg = f"it is not valid JSON (line {error.lineno}: {error.msg})"
        raise _LockFault(msg) from error
    if not isinstance(parts, dict) or _FORMAT not in parts:
        msg = f"it has no {_FORMAT!r}, so it is not a lock file"
        raise _LockFault(msg)
    if parts[_FORMAT] != FORMAT:
        msg = (
            f"it has the format {parts[_FORMAT]!r}, and this version of django_cqrs "
            f"reads {FORMAT}"
        )
        raise _LockFault(msg)
    for key, part in parts.items():
        if key not in (_ABOUT, _FORMAT):
            yield _block(key, part)


def _block(key: str, part: Any) -> LockedBlock:
    if not isinstance(part, dict) or not _KEYS - {"aliases"} <= part.keys() <= _KEYS:
        msg = f"the block of {key!r} does not have exactly the keys of a block"
        raise _LockFault(msg)
    version, aliases, samples = (
        part["version"],
        part.get("aliases", []),
        part["samples"],
    )
    if type(version) is not int or version < 1:
        msg = f"the block of {key!r} has the version {version!r}"
        raise _LockFault(msg)
    if not isinstance(aliases, list) or not all(isinstance(a, str) for a in aliases):
        msg = f"the aliases of {key!r} are not a list of names"
        raise _LockFault(msg)
    if not isinstance(samples, dict) or not all(map(_is_version, samples)):
        msg = f"the samples of {key!r} are not one for each version"
        raise _LockFault(msg)
    found = {int(number): sample for number, sample in samples.items()}
    if version not in found or max(found) > version:
        msg = f"the samples of {key!r} do not end with one of version {version}"
        raise _LockFault(msg)
    try:
        shape = _long(part["shape"])
    except (_LockFault, AttributeError, KeyError, TypeError) as error:
        msg = f"the shape of {key!r} is not one of its words ({error})"
        raise _LockFault(msg) from error
    return LockedBlock(key, version, tuple(aliases), shape, found)


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdigit() and text == str(int(text)) and text != "0"


def _long(value: Any) -> LockedShape:
    """Return a shape in its full form."""
    shape = {"type": value} if isinstance(value, str) else value
    if not isinstance(shape, dict) or shape.get("type") not in TYPES:
        msg = f"{value!r} is not a shape"
        raise _LockFault(msg)
    kind = shape["type"]
    missing = _NEEDED.get(kind, frozenset()) - shape.keys()
    if missing:
        msg = f"a shape of the type {kind!r} lacks {min(missing)!r}"
        raise _LockFault(msg)
    inner = shape.get(OF)
    if inner is not None and isinstance(inner, list) is not (kind in _LISTS):
        msg = f"{OF!r} of a shape of the type {kind!r} is wrong"
        raise _LockFault(msg)
    for key in (*ONE, *SEVERAL):
        if key in shape and key not in _NEEDED.get(kind, ()) and key != "extras":
            msg = f"a shape of the type {kind!r} has {key!r}"
            raise _LockFault(msg)
    return mapped(_long, shape)


_LISTS: Final = frozenset({"other", "tuple", UNION})
_NEEDED: Final[dict[str, frozenset[str]]] = {
    "code": frozenset({"name"}),
    "converted": frozenset({OF, "to"}),
    "dict": frozenset({"keys", "values"}),
    "json": frozenset({OF}),
    "list": frozenset({OF}),
    OBJECT: frozenset({"fields"}),
    "one_of": frozenset({"choices"}),
    "set": frozenset({OF}),
    "tagged": frozenset({"by", "tags"}),
    "tuple": frozenset({OF}),
    UNION: frozenset({OF}),
}
