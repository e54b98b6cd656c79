"""The channels of the settings, by alias."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from django_cqrs import conf
from django_cqrs.channels.channel import Channel
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.signals import tell_change


class ChannelHandler:
    """The channels of ``DJANGO_CQRS["CHANNELS"]``, by alias, each created once."""

    def __init__(self) -> None:
        """Start without channels."""
        self._channels: dict[str, Channel] = {}
        self._substitute: type[Channel] | None = None
        self._lock = threading.Lock()

    def __getitem__(self, alias: str) -> Channel:
        """
        Return the channel of an alias.

        Raises:
            InvalidChannel: there is no such alias, or its backend cannot be created.

        """
        try:
            return self._channels[alias]
        except KeyError:
            with self._lock:
                if alias not in self._channels:
                    self._channels[alias] = self._make(alias)
                return self._channels[alias]

    def __iter__(self) -> Iterator[str]:
        """Yield the aliases."""
        return iter(_configured())

    def _make(self, alias: str) -> Channel:
        backend, options = _read(alias)
        if self._substitute is not None:
            backend, options = self._substitute, {}
        try:
            return backend(alias, options)
        except InvalidChannel:
            raise
        except ImproperlyConfigured as error:
            msg = f"Channel {alias!r} cannot be created: {error}"
            raise InvalidChannel(msg) from error

    def reset(self) -> None:
        """Forget the channels: they are created again from the settings."""
        with self._lock:
            self._channels = {}

    @contextmanager
    def replaced(self, backend: type[Channel], /) -> Iterator[None]:
        """
        Make all channels objects of one class inside a ``with`` block, for a test.

        Args:
            backend: takes the place of each ``BACKEND``; it gets no ``OPTIONS``.

        """
        before, outer = self._channels, self._substitute
        inside = self._replace({}, backend)
        try:
            yield
        finally:
            # The settings may have changed inside: then the earlier ones are outdated.
            is_reset = self._channels is not inside
            self._replace({} if is_reset else before, outer)

    def _replace(
        self, made: dict[str, Channel], substitute: type[Channel] | None
    ) -> dict[str, Channel]:
        with self._lock:
            self._channels, self._substitute = made, substitute
        tell_change()  # compiled runs hold channels
        return made


def _configured() -> Mapping[str, Any]:
    configured = conf.current().CHANNELS
    # A check reports other values.
    return configured if isinstance(configured, Mapping) else {}


def _read(alias: str) -> tuple[type[Channel], dict[str, Any]]:
    """
    Return the class and the options of an alias in the settings.

    Raises:
        InvalidChannel: it is missing, or its value is not a channel.

    """
    configured = _configured()
    if alias not in configured:
        near = difflib.get_close_matches(str(alias), map(str, configured), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        msg = f"Channel {alias!r} is not in {conf.NAME}['CHANNELS'].{hint}"
        raise InvalidChannel(msg)
    config = configured[alias]
    config = dict(config) if isinstance(config, Mapping) else {"": config}
    path, options = config.pop("BACKEND", None), config.pop("OPTIONS", {})
    if config or not isinstance(path, str) or not isinstance(options, dict):
        msg = (
            f"The channel {alias!r} must be a dictionary with BACKEND (the path of a "
            "class) and, optionally, OPTIONS (a dictionary)."
        )
        raise InvalidChannel(msg)
    try:
        backend = import_string(path)
    except ImportError as error:
        msg = f"The channel {alias!r} has a BACKEND that cannot be imported: {error}."
        raise InvalidChannel(msg) from error
    if not (isinstance(backend, type) and issubclass(backend, Channel)):
        msg = f"The channel {alias!r} has the BACKEND {path}, which is not a Channel."
        raise InvalidChannel(msg)
    return backend, options


channels: ChannelHandler = ChannelHandler()


def _reset(*, setting: str, **_kwargs: Any) -> None:
    if setting == conf.NAME:
        channels.reset()


setting_changed.connect(_reset, dispatch_uid="django_cqrs.channels")
