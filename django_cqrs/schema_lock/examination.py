"""The comparison of a project's classes with its lock files."""

from __future__ import annotations

import dataclasses
import enum
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from django.apps import apps

from django_cqrs.buses.registries import Registry
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.problems import Problem, Rule
from django_cqrs.schema_lock.files import FILE, LockedBlock, LockFile, read, written
from django_cqrs.schema_lock.locked_shapes import LockedShape
from django_cqrs.schema_lock.rules import (
    ShapeChange,
    ShapeRule,
    Verdict,
    changes_between,
    remembering,
)
from django_cqrs.schema_lock.samples import sample_of
from django_cqrs.schema_lock.sources import (
    StoredClass,
    is_of_project,
    stored_classes,
)

COMMAND: Final = "manage.py cqrs_schema"


class FindingKind(enum.Enum):
    """Each kind of finding."""

    BEHIND = "the lock file does not have it yet"
    SAID = "allowed, and worth knowing"
    CHANGE = "a change that waiting payloads do not survive"
    UPCASTER = "an upcaster that is missing, or that fails"
    FILE = "a lock file that cannot be read"
    UNLOCKABLE = "a class that cannot be locked"

    @property
    def check(self) -> Rule:
        """The system check that reports it."""
        return _CHECKS.get(self, Rule.STALE_LOCK)

    @property
    def is_error(self) -> bool:
        """Whether nothing is written as long as it is there."""
        return self not in (FindingKind.BEHIND, FindingKind.SAID)


_CHECKS: Final = {
    FindingKind.CHANGE: Rule.UNLOCKED_CHANGE,
    FindingKind.UPCASTER: Rule.MISSING_UPCASTER,
    FindingKind.FILE: Rule.BROKEN_LOCK,
    FindingKind.UNLOCKABLE: Rule.UNLOCKABLE_CLASS,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the code and the lock files, with its remedy."""

    kind: FindingKind
    subject: str
    """The stored name of the class, or the file."""
    path: str
    """The path of the field; empty for the class itself."""
    rule: str
    """The rule that applies, as a clause."""
    details: str
    remedy: str
    obj: Any = None
    """The class, if there is one."""

    @property
    def message(self) -> str:
        """The finding without its remedy, as a sentence."""
        where = f"{self.subject} {self.path}".rstrip()
        details = f" ({self.details})" if self.details else ""
        return f"{where}: {self.rule}{details}."

    def __str__(self) -> str:
        """Return one line: the place, the rule, the details and the remedy."""
        return f"{self.message} {self.remedy}"


@dataclasses.dataclass(frozen=True, slots=True)
class Examination:
    """The findings, and the texts that the lock files should have."""

    findings: list[Finding]
    texts: Mapping[Path, str]
    """Only of the files that have to be written."""
    classes: list[StoredClass]
    """The classes that are locked, or should be."""
    locked: Mapping[str, LockedBlock]
    """The classes as they are locked, by their keys."""

    @property
    def errors(self) -> list[Finding]:
        """The findings that keep the files from being written."""
        return [each for each in self.findings if each.kind.is_error]

    @property
    def problems(self) -> list[Problem]:
        """The findings as system checks report them; none if all is as locked."""
        if not self.texts and not self.errors:
            return []
        return [
            Problem(each.kind.check, each.message, each.remedy, each.obj)
            for each in self.findings
        ]


def examine(
    registry: Registry,
    labels: Iterable[str] = (),
    *,
    retired: str | None = None,
    only_locked: bool = False,
) -> Examination:
    """
    Compare the classes of some apps with their lock files. Uses no database.

    Args:
        registry: the registry with the handlers.
        labels: the labels of the apps; by default all apps of the project.
        retired: the name of a class of which nothing is stored any longer.
        only_locked: whether apps without a lock file are left out.

    """
    wanted = set(labels)
    files = {
        each.label: read(Path(each.path) / FILE)
        for each in apps.get_app_configs()
        if is_of_project(each) or each.label in wanted
    }
    wanted = wanted or set(files)
    if only_locked:
        wanted = {each for each in wanted if files[each].text}
    return _Examiner(registry, files, wanted, retired).examination()


class _Examiner:
    """Compares the classes of some apps with their lock files."""

    def __init__(
        self,
        registry: Registry,
        files: dict[str, LockFile],
        wanted: set[str],
        retired: str | None,
    ) -> None:
        self._findings: list[Finding] = []
        self._files = {label: files[label] for label in sorted(wanted)}
        self._blocks: defaultdict[str, list[LockedBlock]] = defaultdict(list)
        self._holders: dict[str, str] = {}
        """The label of the app whose file has a block."""
        for label, file in files.items():
            for block in file.blocks:
                if block.key != retired:
                    self._blocks[block.key].append(block)
                    self._holders[block.key] = label
        self._all = stored_classes(registry, self._blocks)
        self._classes = sorted(
            (each for each in self._all if self._is_examined(each)),
            key=lambda each: (each.key, each.path),
        )
        self._claimed = {
            key
            for each in self._all
            if not self._is_examined(each)
            for key in each.keys
        }
        """The keys of blocks that a class still has."""
        self._unlocked: dict[str, LockedShape] = {}

    def _is_examined(self, cls: StoredClass) -> bool:
        if cls.app is None:
            return True
        file = self._files.get(cls.app.label)
        return file is not None and not file.fault

    def examination(self) -> Examination:
        for file in self._files.values():
            if file.fault:
                self._note_file(file)
        blocks: dict[str, dict[str, LockedBlock]] = {}
        keys: set[str] = set()
        for each in self._classes:
            block = self._block_of(each, is_second=each.key in keys)
            keys.add(each.key)
            if block is not None and each.app is not None:
                blocks.setdefault(each.app.label, {})[block.key] = block
        self._note_gone()
        texts = {}
        for label, file in self._files.items():
            own = blocks.get(label, {})
            text = written(own.values()) if own or file.text else ""
            if text != file.text and not file.fault:
                texts[file.path] = text
                self._note_behind(label, file, own.keys())
        locked = {key: found[0] for key, found in sorted(self._blocks.items())}
        return Examination(self._findings, texts, self._classes, locked)

    def _note(
        self,
        kind: FindingKind,
        subject: StoredClass | str,
        rule: str,
        *,
        details: str = "",
        remedy: str,
        path: str = "",
    ) -> None:
        if isinstance(subject, StoredClass):
            key, obj = subject.key, subject.cls
        else:
            key, obj = subject, None
        self._findings.append(Finding(kind, key, path, rule, details, remedy, obj))

    # --------------------------------------------------------------------- one class

    def _block_of(self, cls: StoredClass, *, is_second: bool) -> LockedBlock | None:
        """Return the block that a class should have; note the findings about it."""
        fault = _fault_of(cls, is_second=is_second)
        self._claimed.update(cls.keys)
        if fault is not None:
            self._note(
                FindingKind.UNLOCKABLE,
                cls,
                "it cannot be locked",
                details=fault[0],
                remedy=fault[1],
            )
            return None
        former = [block for key in cls.keys for block in self._blocks.get(key, ())]
        shape, version = cls.described.shape, cls.name.version
        samples: dict[int, Any] = {}
        for block in former:
            self._compare(cls, block)
            if block.version == version:
                shape = remembering(block.shape, shape)
            for number, sample in block.samples.items():
                if number <= version:
                    samples.setdefault(number, sample)
        if not former:
            self._unlocked[cls.key] = shape
            self._note(FindingKind.BEHIND, cls, "it is not locked yet", remedy=_RUN)
        if samples.get(version) is None:
            is_new = version not in samples
            samples[version] = self._sample_of(cls, is_new=is_new)
        aliases = tuple(key.removeprefix(cls.prefix) for key in cls.keys[1:])
        return LockedBlock(cls.key, version, aliases, shape, samples)

    def _sample_of(self, cls: StoredClass, *, is_new: bool) -> Any:
        sample, why = sample_of(cls.described, cls.read)
        if why and is_new:
            self._note(
                FindingKind.SAID,
                cls,
                "it has no sample, so its upcasters will not be tried",
                details=why,
                remedy="Give the field an example: "
                'Annotated[..., Field(examples=["..."])] of pydantic.',
            )
        return sample

    def _compare(self, cls: StoredClass, block: LockedBlock) -> None:
        """Note the findings about a class and one of its blocks."""
        version = cls.name.version
        for name in (block.key.removeprefix(cls.prefix), *block.aliases):
            if f"{cls.prefix}{name}" not in cls.keys:
                self._note(
                    FindingKind.CHANGE,
                    cls,
                    "a former name is gone",
                    details=f"payloads are stored as {name!r}",
                    remedy=f"Give it aliases=[{name!r}] again. {_retiring(block.key)}",
                )
        if block.version > version:
            self._note(
                FindingKind.CHANGE,
                cls,
                "the version went back",
                details=f"version {block.version} is locked, the class has {version}",
                remedy=f"Give it version={block.version} or higher. "
                f"{_retiring(block.key)}",
            )
            return
        for number in sorted(block.samples):
            if number < version:
                self._try_upcaster(cls, block, number)
        if block.version < version:
            self._note(
                FindingKind.BEHIND,
                cls,
                "it has a new version",
                details=f"version {block.version} is locked, the class has {version}",
                remedy=_RUN,
            )
            return
        changes = changes_between(block.shape, cls.described.shape)
        for change in changes:
            self._note_change(cls, change)
        if all(change.verdict.is_allowed for change in changes):
            self._try_sample(cls, block)

    def _note_change(self, cls: StoredClass, change: ShapeChange) -> None:
        if change.verdict is Verdict.FINE:
            kind, remedy = FindingKind.BEHIND, f"Waiting payloads fit. {_RUN}"
        elif change.verdict is Verdict.SAID:
            kind, remedy = FindingKind.SAID, _SAID[change.rule]
        else:
            kind, remedy = FindingKind.CHANGE, _versioning(cls.key)
        self._note(
            kind,
            cls,
            change.rule.title,
            details=change.details,
            remedy=remedy,
            path=change.path,
        )

    def _try_upcaster(self, cls: StoredClass, block: LockedBlock, number: int) -> None:
        """Note if the sample of a former version cannot be read."""
        if not cls.has_upcaster(number):
            self._note(
                FindingKind.UPCASTER,
                cls,
                f"version {number} has no upcaster",
                remedy=f"Write one: {COMMAND} --scaffold {cls.key}. "
                f"{_retiring(block.key)}",
            )
            return
        sample = block.samples[number]
        if sample is None:
            return
        try:
            cls.read_version(sample, block.key, number)
        except MessageConversionError as error:
            self._note(
                FindingKind.UPCASTER,
                cls,
                f"the locked sample of version {number} does not become version "
                f"{cls.name.version}",
                details=_fault_in(error),
                remedy="Correct the upcaster, or the class.",
                path=error.errors[0].path,
            )

    def _try_sample(self, cls: StoredClass, block: LockedBlock) -> None:
        """Note if the sample of the present version cannot be read."""
        sample = block.samples[block.version]
        if sample is None:
            return
        try:
            cls.read(sample)
        except MessageConversionError as error:
            self._note(
                FindingKind.CHANGE,
                cls,
                "it does not read the locked sample of its own version",
                details=_fault_in(error),
                remedy=_versioning(cls.key),
                path=error.errors[0].path,
            )

    # --------------------------------------------------------------------- the files

    def _note_file(self, file: LockFile) -> None:
        self._note(
            FindingKind.FILE,
            shown_path(file.path),
            "it is broken",
            details=file.fault,
            remedy="Complete the merge by hand."
            if file.is_conflicted
            else f"Restore it from the repository, then run {COMMAND}.",
        )

    def _note_gone(self) -> None:
        """Note the blocks whose classes are gone."""
        for key in sorted(self._blocks.keys() - self._claimed):
            label = self._holders[key]
            if label not in self._files:
                continue
            shapes = [block.shape for block in self._blocks[key]]
            alike = [each for each, shape in self._unlocked.items() if shape in shapes]
            hint = (
                f"{alike[0]!r} has its shape: if that is its new name, add "
                f"aliases=[{key!r}] there."
                if alike
                else f"Restore it, or give its new class aliases=[{key!r}]."
            )
            self._note(
                FindingKind.CHANGE,
                key,
                "no class has this name or alias",
                details=f"it is locked in {shown_path(self._files[label].path)}",
                remedy=f"{hint} {_retiring(key)}",
            )

    def _note_behind(self, label: str, file: LockFile, keys: Iterable[str]) -> None:
        """Note a file that has to be written, if no other finding says so."""
        held = {each for each, holder in self._holders.items() if holder == label}
        told = {each.subject for each in self._findings}
        if file.is_conflicted:
            rule = "it has the marks of a conflict"
        elif told.isdisjoint({*keys, *held}):
            rule = f"it is not as {COMMAND} writes it"
        else:
            return
        self._note(FindingKind.BEHIND, shown_path(file.path), rule, remedy=_RUN)


def _fault_of(cls: StoredClass, *, is_second: bool) -> tuple[str, str] | None:
    """Return the reason why a class cannot be locked, and the remedy."""
    if cls.app is None:
        reason = f"{cls.path} does not belong to an installed app"
        return reason, "Move it to the messages module of one."
    if is_second:
        return "another class has the same name", "Give each its own name."
    if cls.name.name.startswith("$"):
        return "its name begins with '$'", "Give it another name."
    fault = cls.adapter.fault
    if fault is None:
        return None
    return fault, "Use types that JSON can represent, or write a @converter."


_RUN: Final = f"Run {COMMAND}."
_SAID: Final = {
    ShapeRule.DEFAULT_CHANGED: (
        "Waiting payloads without the field get the new default. If that is wrong, "
        "raise the version and write an upcaster."
    ),
    ShapeRule.LOOKS_RENAMED: (
        "If it is one, waiting payloads lose the value: raise the version and write an "
        "upcaster."
    ),
}


def _versioning(key: str) -> str:
    return (
        f"Raise the version and write an upcaster: {COMMAND} --scaffold {key}. "
        f"{_retiring(key)}"
    )


def _retiring(key: str) -> str:
    return f"If nothing of it was ever stored: {COMMAND} --retire {key}."


def _fault_in(error: MessageConversionError) -> str:
    return error.errors[0].message.rstrip(".")


def shown_path(path: Path) -> str:
    """Return a path as people type it, relative to the current folder if inside."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
