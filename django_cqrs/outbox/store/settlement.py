"""Leases, and the ways a message ends: settled, delayed, given back, dead."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, QuerySet

from django_cqrs.clock import now
from django_cqrs.exceptions import CQRSError
from django_cqrs.leases import LeaseEnd
from django_cqrs.outbox.models import (
    MOST_ATTEMPTS,
    DeadLetter,
    OutboxMessage,
    Reason,
    State,
)
from django_cqrs.outbox.store.dialects import among
from django_cqrs.outbox.store.rows import Claimed, values_of
from django_cqrs.outbox.store.table import Table


class LeaseLost(CQRSError):
    """Somebody else has taken over messages after their lease expired."""


class Settlement(Table):
    """Renews leases, and records how messages end."""

    def renew(self, owner: str, keys: Sequence[int], lease: timedelta) -> int:
        """Extend a lease; return the number of messages that the owner still holds."""
        held = self._held(owner, keys)
        with transaction.atomic(using=self.using):
            if self.connection.features.has_select_for_update_skip_locked:
                # A message being settled needs no lease, so do not wait for it.
                locked = held.select_for_update(skip_locked=True)
                keys = list(locked.values_list("pk", flat=True))
            return self._held(owner, keys).update(lease_expires_at=LeaseEnd(lease))

    def load(self, owner: str, claimed: Sequence[Claimed]) -> list[Claimed]:
        """
        Read the payloads and headers that were too large for the claim.

        Args:
            owner: the name of the claim.
            claimed: messages of that claim.

        Returns:
            The messages that the owner still holds, in the same order.

        """
        rows = self._held(owner, [each.pk for each in claimed])
        read = rows.values_list("pk", "payload", "headers")
        there = {pk: (bytes(payload), bytes(headers)) for pk, payload, headers in read}
        found = []
        for each in claimed:
            if each.pk not in there:
                continue
            payload, headers = there.pop(each.pk)
            envelope = dataclasses.replace(
                each.envelope, payload=payload, headers=headers
            )
            found.append(dataclasses.replace(each, envelope=envelope, is_loaded=True))
        return found

    def held(self, owner: str, keys: Sequence[int]) -> set[int]:
        """Return the messages that an owner still holds."""
        return set(self._held(owner, keys).values_list("pk", flat=True))

    def recover(self, lost: Iterable[Claimed]) -> int:
        """
        Make ready the messages that a living worker lost and nobody has tried since.

        An abandoned message is tried alone and counted, since it may have killed its
        worker. These have not, because their worker is alive: an attempt that was
        counted by the claim is taken off again.

        Args:
            lost: the messages, as they were claimed.

        Returns:
            The number that is ready again. Somebody else has the others now.

        """
        alike: dict[tuple[int, bool], list[int]] = {}
        for each in lost:
            alike.setdefault((each.attempts, each.is_counted), []).append(each.pk)
        found = 0
        self._fronts.forget()
        for (attempts, is_counted), keys in alike.items():
            rows = self.rows().filter(pk__in=keys)
            if is_counted:  # and somebody else has claimed it since
                rows.filter(attempts__gt=attempts).update(attempts=F("attempts") - 1)
            # Trying an abandoned message counts it: with this count, nobody has.
            found += rows.filter(state=State.ABANDONED, attempts=attempts).update(
                state=State.READY,
                attempts=attempts - is_counted,
                owner=None,
                lease_expires_at=None,
            )
        return found

    def abandon_expired(self, channels: Sequence[str], *, limit: int = 1000) -> int:
        """Mark the messages of dead workers, to be claimed again one by one."""
        return self._move(
            self.rows()
            .filter(
                channel__in=channels,
                state=State.CLAIMED,
                lease_expires_at__lt=LeaseEnd(),
            )
            .order_by("pk"),
            limit,
            state=State.ABANDONED,
            owner=None,
            lease_expires_at=None,
        )

    def release_due(self, channels: Sequence[str], *, limit: int = 1000) -> int:
        """Make ready the delayed messages that are due."""
        return self._move(
            self.rows()
            .filter(
                channel__in=channels,
                state=State.DELAYED,
                available_at__lte=now(),
            )
            .order_by("available_at"),
            limit,
            state=State.READY,
        )

    def settle(self, owner: str, keys: Sequence[int]) -> None:
        """
        Delete handled messages, in the transaction of their handlers' writes.

        Raises:
            LeaseLost: somebody else has one of them now; roll back.

        """
        if not keys:
            return
        one_of, ids = among(self.connection, keys)
        statement = (
            f"DELETE FROM {self._table} WHERE id {one_of} "  # noqa: S608 - no value in it
            f"AND owner = %s AND state = {State.CLAIMED.value}"
        )
        with self.connection.cursor() as cursor:
            cursor.execute(statement, [*ids, owner])
            deleted = cursor.rowcount
        self._ensure_all(deleted, keys)

    def delay(
        self,
        owner: str,
        claimed: Claimed,
        *,
        until: datetime,
        attempts: int,
        error: str = "",
    ) -> None:
        """
        Schedule another attempt for a failed message.

        Raises:
            LeaseLost: somebody else has it now; roll back.

        """
        changed = self._held(owner, [claimed.pk]).update(
            state=State.DELAYED,
            available_at=until,
            attempts=min(attempts, MOST_ATTEMPTS),
            last_error=error,
            owner=None,
            lease_expires_at=None,
        )
        self._ensure_all(changed, [claimed.pk])

    def give_back(self, owner: str, keys: Sequence[int], state: State) -> int:
        """Release the messages of a claim that it still holds."""
        held = self._held(owner, keys)
        self._fronts.forget()
        return held.update(state=state, owner=None, lease_expires_at=None)

    def bury(
        self,
        owner: str,
        claimed: Claimed,
        *,
        reason: Reason,
        attempts: int,
        endpoint: str = "",
        exception: str = "",
        error: str = "",
        traceback: str = "",
    ) -> DeadLetter:
        """
        Move a message to the dead letters, its bytes unchanged.

        Args:
            owner: the owner of the message.
            claimed: the message.
            reason: the reason why it is given up.
            attempts: the number of attempts.
            endpoint: the name of the handler that ran, if it differs from the name that
                the message was stored under.
            exception: the dotted path of the exception's class.
            error: its text.
            traceback: the traceback as text.

        Raises:
            LeaseLost: somebody else has it now; roll back.

        """
        self.settle(owner, [claimed.pk])
        return self.write_letter(
            claimed,
            reason=reason,
            attempts=attempts,
            endpoint=endpoint,
            exception=exception,
            error=error,
            traceback=traceback,
        )

    def write_letter(
        self,
        claimed: Claimed,
        *,
        reason: Reason,
        attempts: int,
        endpoint: str = "",
        exception: str = "",
        error: str = "",
        traceback: str = "",
    ) -> DeadLetter:
        """Write a dead letter; see :meth:`bury`."""
        envelope = claimed.envelope
        return DeadLetter.objects.using(self.using).create(
            channel=claimed.channel,
            **(values_of(envelope) | {"endpoint": endpoint or envelope.endpoint}),
            attempts=min(attempts, MOST_ATTEMPTS),
            reason=reason,
            exception=exception[:255],
            error=error,
            traceback=traceback,
            failed_at=now(),
        )

    def _held(self, owner: str, keys: Sequence[int]) -> QuerySet[OutboxMessage]:
        return self.rows().filter(pk__in=keys, owner=owner, state=State.CLAIMED)

    def _ensure_all(self, changed: int, keys: Sequence[int]) -> None:
        if changed != len(keys):
            msg = (
                f"{len(keys) - changed} of {len(keys)} messages were taken over by "
                "another worker after their lease expired."
            )
            raise LeaseLost(msg)
