"""The URLconf as path templates: ``/tickets/{ticket_id}/``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from django.conf import settings
from django.urls import URLPattern, URLResolver, converters
from django.urls.resolvers import LocalePrefixPattern, RegexPattern

LANGUAGE: Final = "language"
"""The name of the parameter for the prefix of ``i18n_patterns()``."""


@dataclasses.dataclass(frozen=True, slots=True)
class PathTemplate:
    """One URL pattern of a view."""

    path: str
    """The path, with its parameters in braces."""
    parameters: Mapping[str, dict[str, Any]]
    """The JSON schema of each parameter."""
    captured: frozenset[str]
    """The keyword arguments of the view: the parameters, and those of the pattern."""
    view: Callable[..., Any]
    name: str
    """The name of the URL with its namespaces; empty without one."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Prefix:
    """The part of a path that encloses a pattern."""

    path: str = ""
    parameters: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    defaults: frozenset[str] = frozenset()
    namespace: str = ""

    def extended(
        self, pattern: Any, defaults: Iterable[str], namespace: str | None = None
    ) -> Iterator[_Prefix]:
        """Yield this prefix with the pattern of a resolver or a view after it."""
        for path, parameters in _templates_of(pattern, self.parameters):
            yield _Prefix(
                self.path + path,
                {**self.parameters, **parameters},
                self.defaults.union(defaults),
                f"{self.namespace}{namespace}:" if namespace else self.namespace,
            )


def path_templates(
    patterns: Iterable[Any], prefix: _Prefix = _Prefix()
) -> Iterator[PathTemplate]:
    """
    Yield all views of a URLconf, in the order in which Django looks for them.

    Args:
        patterns: its patterns.
        prefix: the path that encloses them.

    """
    for each in patterns:
        if isinstance(each, URLResolver):
            defaults = each.default_kwargs
            for inner in prefix.extended(each.pattern, defaults, each.namespace):
                yield from path_templates(each.url_patterns, inner)
        elif isinstance(each, URLPattern):
            for whole in prefix.extended(each.pattern, each.default_args):
                yield PathTemplate(
                    "/" + whole.path.removeprefix("/"),
                    whole.parameters,
                    whole.defaults.union(whole.parameters) - {LANGUAGE},
                    each.callback,
                    f"{whole.namespace}{each.name}" if each.name else "",
                )


Template = tuple[str, dict[str, dict[str, Any]]]


def _templates_of(pattern: Any, known: Mapping[str, Any]) -> Iterator[Template]:
    if isinstance(pattern, LocalePrefixPattern):
        yield from _language_prefixes(pattern)
    elif isinstance(pattern, RegexPattern):
        yield _of_regex(str(pattern), known)
    else:
        yield _of_route(str(pattern), pattern.converters)


def _language_prefixes(pattern: LocalePrefixPattern) -> Iterator[Template]:
    """Yield the prefix of a language, and none where the default language has none."""
    codes = [code for code, _ in settings.LANGUAGES]
    if not pattern.prefix_default_language:
        yield "", {}
        codes = [code for code in codes if code != settings.LANGUAGE_CODE]
    if codes:
        schema = {"type": "string", "enum": codes}
        yield f"{{{LANGUAGE}}}/", {LANGUAGE: schema}


_PARAMETER: Final = re.compile(r"<(?:[^>:]+:)?([^>]+)>")


def _of_route(route: str, found: Mapping[str, Any]) -> Template:
    parameters = {name: _schema_of(each) for name, each in found.items()}
    return _PARAMETER.sub(r"{\1}", route), parameters


_SCHEMAS: Final[dict[type, dict[str, Any]]] = {
    converters.IntConverter: {"type": "integer", "minimum": 0},
    converters.PathConverter: {"type": "string", "minLength": 1},
    converters.StringConverter: {"type": "string", "minLength": 1},
    converters.UUIDConverter: {"type": "string", "format": "uuid"},
}


def _schema_of(converter: Any) -> dict[str, Any]:
    """Return the JSON schema of the values that a path converter accepts."""
    known = _SCHEMAS.get(type(converter))
    return dict(known) if known is not None else _matching(converter.regex)


def _matching(regex: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^(?:{regex})$"}


_GROUP: Final = re.compile(r"\((?:\?P<(?P<name>\w+)>|(?P<special>\?[:=!<][=!]?))?")
_QUANTIFIER: Final = re.compile(r"[*+?]|\{\d*,?\d*\}")
_EDGES: Final = frozenset("AbBZz")


def _of_regex(regex: str, known: Mapping[str, Any]) -> Template:
    """
    Return the template of ``re_path()``, like those that Django's admindocs shows.

    A group is a parameter, ``var`` if it has no name. The content of a group that
    captures nothing is taken as it stands.
    """
    parameters: dict[str, dict[str, Any]] = {}
    path, at = "", 0
    while at < len(regex):
        group = _GROUP.match(regex, at)
        if group is not None and group["special"] is not None:
            end = _end_of_group(regex, group.end())
            if group["special"] == "?:":
                inner, found = _of_regex(
                    regex[group.end() : end], {**known, **parameters}
                )
                path, parameters = path + inner, {**parameters, **found}
            at = end + 1
        elif group is not None:
            end = _end_of_group(regex, group.end())
            name, number = group["name"] or "var", 2
            while name in parameters or name in known:
                name, number = f"var{number}", number + 1
            parameters[name] = _matching(regex[group.end() : end])
            path += f"{{{name}}}"
            at = end + 1
        elif regex[at] == "\\":
            sign = regex[at + 1 : at + 2]
            if sign not in _EDGES:
                path += f"\\{sign}" if sign.isalnum() else sign
            at += 2
        else:
            quantifier = _QUANTIFIER.match(regex, at)
            if quantifier is None and regex[at] not in "^$":
                path += regex[at]
            at += 1 if quantifier is None else len(quantifier[0])
    return path, parameters


def _end_of_group(regex: str, begin: int) -> int:
    """Return the place of the parenthesis that closes a group."""
    depth, end, is_set = 1, begin, False
    while end < len(regex):
        sign = regex[end]
        if sign == "\\":
            end += 1
        elif is_set:
            is_set = sign != "]"
        elif sign == "[":
            is_set = True
        else:
            depth += {"(": 1, ")": -1}.get(sign, 0)
            if depth == 0:
                break
        end += 1
    return end
