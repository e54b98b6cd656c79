"""
Tests that Hypothesis writes: messages, and the machines that disturb their handling.

Install Hypothesis with ``pip install "django-cqrs-kit[testing]"``.
"""

from __future__ import annotations

from hypothesis.stateful import initialize, invariant, precondition, rule

from django_cqrs.testing.machines.histories import EventMachine
from django_cqrs.testing.machines.objects import AggregateMachine, SagaMachine
from django_cqrs.testing.machines.once import assert_once
from django_cqrs.testing.machines.payloads import check_payloads
from django_cqrs.testing.machines.strategies import messages_of

__all__ = [
    "AggregateMachine",
    "EventMachine",
    "SagaMachine",
    "assert_once",
    "check_payloads",
    "initialize",
    "invariant",
    "messages_of",
    "precondition",
    "rule",
]
