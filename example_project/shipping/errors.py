"""The reasons for which the shipping app refuses a command."""

from __future__ import annotations

from common.errors import Refused


class NothingToShip(Refused):
    """A parcel for this order is not ready."""
