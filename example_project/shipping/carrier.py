"""Who carries the parcels."""

from __future__ import annotations


class Carrier:
    """
    The parcel service.

    A plain class: a handler that asks for a Carrier gets one, and a test gives it
    another.
    """

    def collect(self, shipment_id: int) -> str:
        """Have a parcel collected, and return its tracking code."""
        return f"KL{shipment_id:08d}"
