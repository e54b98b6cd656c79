"""Operate projections: set up, run, pause, retry, wait for, and cut into shards."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from django.db import connections, router, transaction
from django.db.models import F

from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as projects
from django_cqrs.channels.channel import Seconds, as_timedelta
from django_cqrs.events import building, failures, settling, shards
from django_cqrs.events.followers import new_owner
from django_cqrs.events.generations import (
    add_shards,
    live_generation,
    note_names,
    set_up,
)
from django_cqrs.events.handling import Handlers, projections_of
from django_cqrs.events.models import (
    Generation,
    Partition,
    ProjectionFailure,
    Shard,
    Status,
    StoredEvent,
)
from django_cqrs.events.partitions import place_named
from django_cqrs.events.runner import ProjectionRunner, ShardTurn, refuse_future
from django_cqrs.events.shards import ShardPlace
from django_cqrs.events.states import StateType
from django_cqrs.events.status import ProjectionStatus, status_of, statuses_of
from django_cqrs.events.waking import last_appended
from django_cqrs.exceptions import (
    InvalidOption,
    ProjectionBehind,
    ProjectionBusy,
    ProjectionNotFound,
)
from django_cqrs.pipeline.stages import is_inside_transaction
from django_cqrs.sync import in_thread, twin_of

_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.05


class Projections:
    """
    The projections of one database, by their names.

    ``projections`` is the one of the project.
    """

    def __init__(
        self, using: str | None = None, *, registry: Registry | None = None
    ) -> None:
        """
        Define the database and the registry.

        Args:
            using: the database alias, by default the router's.
            registry: the registry with the projections, by default the project's.

        """
        self._using = using
        self._registry = registry

    @property
    def using(self) -> str:
        """The alias of the database with the events."""
        if self._using is not None:
            return self._using
        alias: str = router.db_for_write(StoredEvent)
        return alias

    @property
    def registry(self) -> Registry:
        """The registry with the projections."""
        return projects if self._registry is None else self._registry

    def names(self) -> list[str]:
        """Return the names of all projections, in order of registration."""
        return list(projections_of(self.registry))

    def handlers(self, name: str) -> Handlers:
        """
        Return the compiled handlers of a projection.

        Raises:
            ProjectionNotFound: there is none of this name.

        """
        found = projections_of(self.registry)
        if name in found:
            return found[name]
        near = difflib.get_close_matches(str(name), found, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        msg = f"There is no projection {name!r}.{hint}"
        raise ProjectionNotFound(msg)

    def _generation(self, name: str) -> Generation:
        """
        Return the live generation of a projection.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.

        """
        self.handlers(name)
        found = live_generation(name, self.using)
        if found is None:
            msg = (
                f"The projection {name!r} is not set up in the database "
                f"{self.using!r}: a worker does so, or manage.py cqrs_projections init."
            )
            raise ProjectionNotFound(msg)
        return found

    # Status ---------------------------------------------------------------------------

    def status(self, name: str) -> ProjectionStatus:
        """
        Return the progress of a projection.

        Raises:
            ProjectionNotFound: there is none of this name.

        """
        return status_of(self.handlers(name), self.using)

    def statuses(self) -> list[ProjectionStatus]:
        """Return the progress of all projections."""
        return statuses_of(projections_of(self.registry).values(), self.using)

    def is_live(self, name: str) -> bool:
        """
        Return whether a projection is set up and is neither paused nor retired.

        Raises:
            ProjectionNotFound: there is none of this name.

        """
        self.handlers(name)
        found = live_generation(name, self.using)
        return found is not None and found.status == Status.LIVE

    def state(self, name: str, *, partition: str | None = None) -> Any:
        """
        Return the state of a projection, or of one partition.

        Args:
            name: of the projection.
            partition: the name of a stream, or the key, as ``partition_by=`` says.

        Returns:
            The state; None if there is none yet.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.
            InvalidOption: it has no state, or has one for each partition.

        """
        handlers = self.handlers(name)
        if not handlers.has_state:
            msg = f"The projection {name!r} has no handler that takes a State."
            raise InvalidOption(msg)
        if handlers.has_partition_state is (partition is None):
            needs = "needs" if partition is None else "does not take"
            msg = f"The state of the projection {name!r} {needs} partition=."
            raise InvalidOption(msg)
        generation = self._generation(name)
        if partition is None:
            rows = Shard.objects.using(self.using).filter(
                generation_id=generation.pk, number=0
            )
            stored = rows.values_list("state", flat=True).first()
        else:
            place = place_named(handlers.options, partition, self.using)
            if place is None:
                return None
            stream_id, key = place
            found = Partition.objects.using(self.using).filter(
                generation_id=generation.pk, stream_id=stream_id, key=key
            )
            stored = found.values_list("state", flat=True).first()
        if stored is None:
            return None
        return StateType(handlers.state_types[0]).read_form(stored)

    # Operation ------------------------------------------------------------------------

    def init(self, name: str) -> bool:
        """
        Set a projection up, if it is not, and let a manual one start.

        Returns:
            Whether it was not set up yet.

        Raises:
            ProjectionNotFound: there is none of this name.

        """
        return set_up(self.handlers(name), self.using)

    def run(
        self,
        name: str,
        *,
        until: int | None = None,
        at_batch: Callable[[], object] | None = None,
    ) -> int:
        """
        Bring a projection up to the settled position, in this thread.

        A worker that has a shard of it is waited for. An event that fails is tried
        again at once if it is then skipped or parked.

        Args:
            name: of the projection.
            until: a position at which to stop.
            at_batch: called after each transaction.

        Returns:
            The number of events that were handled here.

        Raises:
            ProjectionNotFound: there is none of this name.
            InvalidOption: it is inline.
            ProjectionBusy: it is paused.
            StoreWentBack: the store was set back below its position.
            Exception: the exception of a handler; the batch was rolled back.

        """
        handlers = self.handlers(name)
        if handlers.options.is_inline:
            msg = (
                f"The projection {name!r} is inline: it runs in the transaction that "
                "appends."
            )
            raise InvalidOption(msg)
        set_up(handlers, self.using)
        generation = self._generation(name)
        if generation.status != Status.LIVE:
            msg = f"The projection {name!r} is {generation.status}: resume it first."
            raise ProjectionBusy(msg)
        note_names(handlers, generation, self.using)
        runner = ProjectionRunner(handlers, self.using, new_owner(), by_hand=True)
        bound = settling.settled(connections[self.using])
        self._refuse_future(name, bound)
        end = bound if until is None else min(until, bound)
        pause = _FIRST_PAUSE
        try:
            while behind := self._behind(generation, end):
                turns = [self._turn(runner, each, end) for each in behind]
                if at_batch is not None:
                    at_batch()
                if all(turn is ShardTurn.TAKEN for turn in turns):
                    time.sleep(pause)
                    pause = min(_LONGEST_PAUSE, pause * 2)
                elif any(
                    turn in (ShardTurn.ENDED, ShardTurn.WAITING) for turn in turns
                ):
                    break
        finally:
            if runner.keeps_some:
                shards.give_back(connections[self.using], runner.owner)
        return runner.handled

    def _refuse_future(self, name: str, bound: int) -> None:
        position = self._position(name)
        if position is not None and position > bound:
            refuse_future(connections[self.using], name, position)

    @staticmethod
    def _turn(runner: ProjectionRunner, candidate: ShardPlace, end: int) -> ShardTurn:
        turn = runner.turn(candidate, end)
        is_stopped = runner.options.on_failure == "stop"
        if turn is ShardTurn.FAILED and runner.error is not None and is_stopped:
            raise runner.error
        return turn

    def _behind(self, generation: Generation, end: int) -> list[ShardPlace]:
        rows = list(
            Shard.objects.using(self.using)
            .filter(generation_id=generation.pk)
            .order_by("position", "number")
        )
        return [
            ShardPlace(
                each.pk,
                generation.projection,
                each.number,
                each.position,
                len(rows),
                is_held=False,
            )
            for each in rows
            if each.position < end
        ]

    def pause(self, name: str) -> bool:
        """
        Pause a projection: the batch in hand is finished, and no other begins.

        Returns:
            Whether it was not paused.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.

        """
        return self._change(name, Status.LIVE, Status.PAUSED)

    def resume(self, name: str) -> bool:
        """
        Let a projection go on where it has stopped.

        It also frees one whose rebuild, or other long action, has died with its
        process.

        Returns:
            Whether it was paused, or had a long action to wait for.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.

        """
        generation = self._generation(name)
        rows = Generation.objects.using(self.using).filter(pk=generation.pk)
        has_waited = rows.exclude(wanted="").update(wanted="")
        return (
            self._change(name, Status.PAUSED, Status.LIVE)
            or self._change(name, Status.BUILDING, Status.LIVE)
            or bool(has_waited)
        )

    def _change(self, name: str, before: Status, after: Status) -> bool:
        generation = self._generation(name)
        rows = Generation.objects.using(self.using).filter(
            pk=generation.pk, status=before
        )
        return bool(rows.update(status=after))

    # Filling anew ---------------------------------------------------------------------

    def backfill(
        self,
        name: str,
        *,
        batch: int = 100,
        at_batch: Callable[[int], object] | None = None,
    ) -> int:
        """
        Give an inline projection the events that it has missed, stream by stream.

        Args:
            name: of the projection.
            batch: the number of streams in one transaction.
            at_batch: called after each transaction, with the number of its streams.

        Returns:
            The number of events that were read.

        Raises:
            ProjectionNotFound: it does not exist, or starts by hand and was not set up.
            InvalidOption: the number is not positive, or the projection is not inline.
            Exception: the exception of a handler; earlier transactions stay.

        """
        handlers = self.handlers(name)
        return building.backfill(
            handlers, using=self.using, batch=batch, at_batch=at_batch
        )

    def rebuild(self, name: str, *, partition: str | None = None) -> int:
        """
        Replace the rows of the views: handle all events again, in one transaction.

        Readers see the old rows until it commits. Nothing is emitted or sent.

        Args:
            name: of the projection.
            partition: the name of a stream, or the key, as ``partition_by=`` says, if
                only its rows are made anew; ``on_reset`` then deletes the old ones.

        Returns:
            The number of events that were handled.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.
            ProjectionBusy: it is being rebuilt already.
            StreamNotFound: the partition is a stream that does not exist.
            InvalidOption: no ``on_reset`` takes a ``PartitionName``, or one state is
                kept for all partitions.
            ReplayForbidden: a handler sends a message, or writes to a table other than
                those of the views.
            Exception: the exception of a handler; the views are as they were.

        """
        handlers = self.handlers(name)
        return building.rebuild(handlers, using=self.using, partition=partition)

    def reset(self, name: str) -> None:
        """
        Empty the views of a projection, and set it back to its beginning.

        Args:
            name: of the projection.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.
            ProjectionBusy: it is being rebuilt.

        """
        building.reset(self.handlers(name), using=self.using)

    def delete(self, name: str) -> None:
        """
        Delete the rows of a projection's views, its states and its positions.

        Events that it has emitted stay.

        Args:
            name: of the projection.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.
            ProjectionBusy: it is being rebuilt.

        """
        building.delete(self.handlers(name), using=self.using)

    # Failures -------------------------------------------------------------------------

    def failures(self, name: str) -> list[ProjectionFailure]:
        """
        Return the events that a projection has skipped or parked, the oldest first.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.

        """
        return failures.failures_of(self._generation(name), self.using)

    def retry(self, name: str, *keys: int) -> int:
        """
        Handle again what has failed: the failures of some keys, by default all.

        Without keys, a projection that has stopped at an event tries it again at once.

        Args:
            name: of the projection.
            keys: the keys of failures.

        Returns:
            The number of failures that are no more, and of shards that try again.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.
            InvalidOption: it has no failure of such a key.
            Exception: the exception of a handler; the failure stays.

        """
        handlers, generation = self.handlers(name), self._generation(name)
        found = failures.failures_of(generation, self.using, keys or None)
        failures.refuse_unknown(keys, found)
        count = 0 if keys else failures.retry_current(generation, self.using)
        for each in found:
            failures.retry(handlers, each, self.using)
            count += 1
        return count

    def skip(self, name: str, *keys: int) -> int:
        """
        Give up what has failed: the failures of some keys are removed.

        The other events of a parked partition are handled. Without keys, a projection
        that has stopped at an event goes on without it, which becomes a failure.

        Args:
            name: of the projection.
            keys: the keys of failures.

        Returns:
            The number of events that were given up.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.
            InvalidOption: it has no failure of such a key.
            Exception: the exception of a handler of another event.

        """
        handlers, generation = self.handlers(name), self._generation(name)
        if not keys:
            return failures.skip_current(handlers, generation, self.using)
        found = failures.failures_of(generation, self.using, keys)
        failures.refuse_unknown(keys, found)
        for each in found:
            failures.skip(handlers, each, self.using)
        return len(found)

    # Shards ---------------------------------------------------------------------------

    def reshard(self, name: str, count: int) -> None:
        """
        Cut a projection into another number of shards, while its workers run.

        In one transaction all shards are locked, brought to one position, and replaced.

        Args:
            name: of the projection.
            count: the number of shards.

        Raises:
            ProjectionNotFound: it does not exist, or is not set up.
            InvalidOption: the number cannot be used.
            ProjectionBusy: a shard has stopped at an event that fails.
            Exception: the exception of a handler; nothing was changed.

        """
        handlers = self.handlers(name)
        options = handlers.options
        if type(count) is not int or count < 1:
            msg = f"A projection has a number of shards of at least 1, not {count!r}."
            raise InvalidOption(msg)
        if options.is_inline:
            msg = f"The projection {name!r} is inline, so it has no shards."
            raise InvalidOption(msg)
        if count > 1 and handlers.has_state and options.partition_by is None:
            msg = (
                f"The projection {name!r} has one State, which several shards cannot "
                "share. Give it partition_by=."
            )
            raise InvalidOption(msg)
        generation = self._generation(name)
        note_names(handlers, generation, self.using)
        runner = ProjectionRunner(handlers, self.using, new_owner(), by_hand=True)
        self._catch_up(runner, generation)

        def cut() -> None:
            with transaction.atomic(using=self.using):
                self._cut(runner, generation, count)

        building.whole(cut, self.using)

    def _catch_up(self, runner: ProjectionRunner, generation: Generation) -> None:
        """Bring the hindmost shards near the foremost, in transactions of their own."""
        for _ in range(_MOST_ROUNDS):
            rows = Shard.objects.using(self.using).filter(generation_id=generation.pk)
            positions = list(rows.values_list("position", flat=True))
            if not positions or max(positions) - min(positions) <= runner.most:
                return
            end = max(positions)
            behind = self._behind(generation, end)
            try:
                turns = [self._turn(runner, each, end) for each in behind]
            finally:  # workers go on meanwhile
                if runner.keeps_some:
                    shards.give_back(connections[self.using], runner.owner)
            if all(turn in (ShardTurn.TAKEN, ShardTurn.ENDED) for turn in turns):
                time.sleep(_LONGEST_PAUSE)

    def _cut(
        self, runner: ProjectionRunner, generation: Generation, count: int
    ) -> None:
        """Replace the shards, in the open transaction."""
        rows = Shard.objects.using(self.using).filter(generation_id=generation.pk)
        if not connections[self.using].features.has_select_for_update:
            rows.update(token=F("token"))  # a write lock, before anything is read
        found = list(rows.select_for_update().order_by("number"))
        if not found:
            msg = f"The projection {runner.name!r} is no longer set up."
            raise ProjectionBusy(msg)
        if any(each.failed_position is not None and each.attempts for each in found):
            msg = (
                f"A shard of the projection {runner.name!r} has stopped at an event "
                "that fails. Retry it, or skip it, first."
            )
            raise ProjectionBusy(msg)
        # Their leases: this transaction has the locks.
        rows.update(owner="", lease_expires_at=None)
        end = max(each.position for each in found)
        while behind := self._behind(generation, end):
            for each in behind:
                turn = self._turn(runner, each, end)
                if turn not in (ShardTurn.DONE, ShardTurn.MORE):
                    msg = (
                        f"The shards of the projection {runner.name!r} cannot be "
                        f"brought to one position: {turn.value}."
                    )
                    raise ProjectionBusy(msg)
        state = rows.filter(number=0).values_list("state", flat=True).first()
        rows.delete()
        add_shards(generation.pk, count, end, self.using, state)
        ProjectionFailure.objects.using(self.using).filter(
            generation_id=generation.pk
        ).update(shard=0)

    # Waiting --------------------------------------------------------------------------

    def wait_for(
        self, name: str, *, timeout: Seconds = 2, position: int | None = None
    ) -> None:
        """
        Wait until a projection has handled what was appended.

        Args:
            name: of the projection.
            timeout: the longest time to wait, in seconds or a timedelta.
            position: of the last event to wait for; by default the one that this
                thread, or this task, has appended last. Without one nothing is waited
                for.

        Raises:
            ProjectionNotFound: there is none of this name.
            ProjectionBehind: it was not there in time.
            InvalidOption: a transaction is open, whose events nobody else can see.

        """
        handlers = self.handlers(name)
        span = as_timedelta(timeout, "timeout")
        connection = connections[self.using]
        wanted = last_appended.get().get(self.using) if position is None else position
        if wanted is None or handlers.options.is_inline:
            return
        if is_inside_transaction(connection):
            msg = (
                f"wait_for({name!r}) was called inside a transaction: the projection "
                "cannot see its events before the commit."
            )
            raise InvalidOption(msg)
        if position is None:  # what was rolled back never comes
            wanted = min(wanted, settling.head(connection))
        self._wait(name, wanted, span)

    def _wait(self, name: str, wanted: int, span: timedelta) -> None:
        end = time.monotonic() + span.total_seconds()
        pause = _FIRST_PAUSE
        while True:
            here = self._position(name)
            if here is not None and here >= wanted:
                return
            left = end - time.monotonic()
            if left <= 0:
                place = "not set up" if here is None else f"at position {here}"
                msg = (
                    f"The projection {name!r} is {place} after {span}, and position "
                    f"{wanted} was waited for."
                )
                raise ProjectionBehind(msg)
            time.sleep(min(pause, left))
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _position(self, name: str) -> int | None:
        """Return the position of the hindmost shard."""
        rows = Shard.objects.using(self.using).filter(
            generation_id__in=Generation.objects.using(self.using)
            .filter(projection=name, is_live=True)
            .values("pk")
        )
        return rows.order_by("position").values_list("position", flat=True).first()

    @twin_of(wait_for)
    async def await_for(self, name: str, **keywords: Any) -> None:
        """Do the same as :meth:`wait_for`, in one hop to the database's thread."""
        await in_thread(self.wait_for)(name, **keywords)

    def __repr__(self) -> str:
        """Return the constructor call."""
        using = "" if self._using is None else repr(self._using)
        return f"Projections({using})"


_MOST_ROUNDS: Final = 100_000

projections: Final = Projections()
"""The projections of the project's registry, in the database that the router names."""
