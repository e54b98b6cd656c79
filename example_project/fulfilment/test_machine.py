"""The saga withstands what a search for mistakes comes up with."""

from __future__ import annotations

import os
import sys
from typing import ClassVar

from hypothesis import settings

from django_cqrs.testing.machines import SagaMachine, invariant
from fulfilment.models import Fulfilment
from orders.messages import CancelOrder, OrderCancelled, OrderPlaced
from payments.messages import PaymentCaptured
from shipping.messages import ShipmentSent, ShipOrder

ORDERS = (1, 2)
EXAMPLES = 500 if os.environ.get("CQRS_SOAK") == "1" else 20


class FulfilmentMachine(SagaMachine):
    """Events of two orders: in any order, twice, late, at once, after a crash."""

    saga = Fulfilment
    messages: ClassVar = [OrderPlaced, PaymentCaptured, ShipmentSent, OrderCancelled]
    identifiers = ORDERS

    @invariant()
    def each_order_ends_one_way(self) -> None:
        """It is shipped or cancelled, never both, and never twice."""
        for order_id in ORDERS:
            shipped = self.count(ShipOrder, order_id=order_id)
            cancelled = self.count(CancelOrder, order_id=order_id)
            assert shipped + cancelled <= 1

    def settled(self) -> None:
        """After the time for payment is up, nothing waits."""
        assert all(each.state != Fulfilment.State.WAITING for each in self.objects)


FulfilmentMachineTests = FulfilmentMachine.TestCase
FulfilmentMachineTests.settings = settings(
    FulfilmentMachineTests.settings, max_examples=EXAMPLES, database=None
)


def tearDownModule() -> None:
    """Say how far the machine has searched."""
    sys.stdout.write(f"{EXAMPLES} examples of the saga's machine\n")
