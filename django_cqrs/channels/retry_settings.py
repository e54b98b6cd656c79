"""The policies that settings give for messages whose handling failed."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from django_cqrs import conf
from django_cqrs.retries import InstantRetry, Retry

P = TypeVar("P", Retry, InstantRetry)


@functools.cache
def project_retry() -> Retry | None:
    """
    Return the policy in ``RETRY``, None without the setting.

    Raises:
        ImproperlyConfigured: the setting is not a policy.

    """
    return read_policy(Retry, conf.current().RETRY, f"{conf.NAME}['RETRY']")


@functools.cache
def project_instant_retry() -> InstantRetry | None:
    """
    Return the policy in ``INSTANT_RETRY``, None without the setting.

    Raises:
        ImproperlyConfigured: the setting is not a policy.

    """
    given = conf.current().INSTANT_RETRY
    return read_policy(InstantRetry, given, f"{conf.NAME}['INSTANT_RETRY']")


def read_policy(cls: type[P], given: Any, where: str) -> P | None:
    """
    Return the policy that a setting holds, None if it holds None.

    Args:
        cls: the class of the policy.
        given: such a policy, or a dictionary of its arguments, in which ``on`` may
            have dotted paths.
        where: the setting, for errors.

    Raises:
        ImproperlyConfigured: it is neither, or an argument is invalid.

    """
    if given is None or isinstance(given, cls):
        return given
    name = cls.__name__
    if not isinstance(given, Mapping):
        msg = (
            f"{where} = {given!r} is neither None, nor {name}(...), nor a dictionary "
            "of its values."
        )
        raise ImproperlyConfigured(msg)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"{where}: {name} has no argument {key!r}.{hint}"
            raise ImproperlyConfigured(msg)
    arguments = dict(given)
    try:
        if "on" in arguments:
            arguments["on"] = _imported(arguments["on"])
        return cls(**arguments)
    except (ImportError, TypeError, ValueError) as error:
        msg = f"{where}: {error}"
        raise ImproperlyConfigured(msg) from error


def _imported(on: Any) -> Any:
    """Return the value of ``on``, with dotted paths imported."""
    if isinstance(on, (list, tuple)):
        return tuple(map(_imported, on))
    return import_string(on) if isinstance(on, str) else on


def _reset(*, setting: str, **_kwargs: Any) -> None:
    if setting == conf.NAME:
        project_retry.cache_clear()
        project_instant_retry.cache_clear()


setting_changed.connect(_reset, dispatch_uid="django_cqrs.channels.retry_settings")
