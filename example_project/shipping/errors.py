"""The reasons for which the shipping app says no."""

from __future__ import annotations

from common.errors import Refused


class NothingToShip(Refused):
    """No parcel lies ready for this order."""
