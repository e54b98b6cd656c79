"""Find the mistakes in the declarations of projections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.db import models, router

from django_cqrs.annotations import name_of_type
from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.events.feeds import FeedOptions
from django_cqrs.events.handling import Handlers
from django_cqrs.events.models import StoredEvent
from django_cqrs.events.projecting import BY_STREAM, ProjectionOptions, options_of
from django_cqrs.events.rules import ProjectionRule
from django_cqrs.events.sources import place_in
from django_cqrs.events.tags import Tag
from django_cqrs.exceptions import InvalidChannel, InvalidOption
from django_cqrs.problems import Problem, add_problem_finder


@add_problem_finder
def problems_in(registry: Registry) -> Iterator[Problem]:
    """Yield the mistakes in the projections of a registry."""
    declared = [
        (owner, options)
        for owner in registry.routes.fed_owners
        if (options := options_of(owner)) is not None
    ]
    yield from _shared(declared)
    for owner, options in declared:
        yield from Handlers(registry, owner, options).problems
        yield from _channel_problems(owner, options)
        yield from _option_problems(owner, options)
        yield from _source_problems(owner, options)
        yield from _view_problems(owner, options)


Declared = list[tuple[type, ProjectionOptions]]


def _shared(declared: Declared) -> Iterator[Problem]:
    """Yield names, and views, that two projections have."""
    by_name: dict[str, type] = {}
    by_view: dict[Any, str] = {}
    for owner, options in declared:
        first = by_name.setdefault(options.name, owner)
        if first is not owner:
            yield Problem(
                ProjectionRule.DUPLICATE_PROJECTION,
                f"{name_of_type(first)} and {name_of_type(owner)} are both the "
                f"projection {options.name!r}: they would share one position.",
                "Give each a name of its own.",
                owner,
            )
            continue
        for view in options.views:
            holder = by_view.setdefault(view, options.name)
            if holder != options.name:
                label = view._meta.label if _is_model(view) else repr(view)
                yield Problem(
                    ProjectionRule.SHARED_VIEW,
                    f"{label} is a view of the projections {holder!r} and "
                    f"{options.name!r}: a rebuild of one would empty the other's rows.",
                    "Give each projection views of its own.",
                    owner,
                )


def _channel_problems(owner: type, options: ProjectionOptions) -> Iterator[Problem]:
    alias = options.channel
    if alias is None:
        return
    try:
        channel = channels[alias]
    except InvalidChannel as error:
        fault = str(error)
    else:
        if channel.supports_redelivery or channel.is_immediate:
            return
        fault = f"No worker serves {channel}."
    hint = "Name a channel that is an outbox, or use on_demand=True."
    if isinstance(options, FeedOptions):
        hint = "Name a channel that is an outbox with worker=."
    yield Problem(
        ProjectionRule.UNSERVED_CHANNEL,
        f"The projection {options.name!r} is on the channel {alias!r}. {fault}",
        hint,
        owner,
    )


def _option_problems(owner: type, options: ProjectionOptions) -> Iterator[Problem]:
    by = options.partition_by
    if options.is_inline:
        given = {
            "shards": options.shards > 1,
            "partition_by": by not in (None, BY_STREAM),
            "start": options.start == "now",
        }
        for keyword in (name for name, is_given in given.items() if is_given):
            value = getattr(options, keyword)
            yield Problem(
                ProjectionRule.BAD_INLINE,
                f"The projection {options.name!r} is inline and has "
                f"{keyword}={value!r}: it handles each stream in the transaction that "
                "appends, from the stream's first event on.",
                f"Give it a channel=, or remove {keyword}=.",
                owner,
            )
    if options.on_failure == "park" and not (
        by in (None, BY_STREAM) or isinstance(by, Tag)
    ):
        yield Problem(
            ProjectionRule.BAD_PARKING,
            f"The projection {options.name!r} parks partitions by {by!r}, by which "
            "their events cannot be found again.",
            "Partition it by stream or by a Tag, or choose another on_failure=.",
            owner,
        )


def _source_problems(owner: type, options: ProjectionOptions) -> Iterator[Problem]:
    for source in options.sources:
        try:
            place_in(source)
        except InvalidOption as error:
            yield Problem(
                ProjectionRule.BAD_SOURCE,
                f"The projection {options.name!r} has a wrong source: {error}",
                "Name an event-sourced class, a category or a stream.",
                owner,
            )


def _view_problems(owner: type, options: ProjectionOptions) -> Iterator[Problem]:
    events = router.db_for_write(StoredEvent)
    for view in filter(_is_model, options.views):
        label = view._meta.label
        for each in _pointing_to(view, options.views):
            yield Problem(
                ProjectionRule.SHARED_VIEW,
                f"{each._meta.label} has a foreign key to {label}, a view of the "
                f"projection {options.name!r}: a rebuild deletes the rows that it "
                "points to.",
                "Let it hold the value without a constraint, or make it a view too.",
                owner,
            )
        alias = router.db_for_write(view)
        if alias != events:
            yield Problem(
                ProjectionRule.DISTANT_VIEW,
                f"{label}, a view of the projection {options.name!r}, is in the "
                f"database {alias!r}, and the events are in {events!r}: rows and "
                "positions are not committed together, so that an event may be "
                "handled twice.",
                "Keep them in one database.",
                owner,
            )


def _pointing_to(view: Any, views: Iterable[Any]) -> list[Any]:
    """Return the models with a foreign key to a view that are not views themselves."""
    found = [
        relation.related_model
        for relation in view._meta.related_objects
        if getattr(relation.field, "db_constraint", True) and not relation.many_to_many
    ]
    own = set(views)
    return [
        each
        for each in dict.fromkeys(found)
        if each not in own and not each._meta.auto_created
    ]


def _is_model(view: Any) -> bool:
    return isinstance(view, type) and issubclass(view, models.Model)
