"""Trees of the messages of a test: each with its handlers, and those they sent."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django_cqrs.annotations import is_value_type
from django_cqrs.declaration.declarations import Kind
from django_cqrs.messages import Message, handling_of, name_run
from django_cqrs.pipeline.observation import Step
from django_cqrs.routing.endpoint import JoinPoint, Run
from django_cqrs.testing.delays import delay_of

LONGEST_VALUE: Final = 200
"""The number of characters of a payload that a tree shows."""

MOST_LINES: Final = 200
"""The number of lines of a tree that are shown."""


class Progression(enum.Enum):
    """The state of the handling of a message by one handler."""

    WAITS = "waits"
    RUNS = "runs"
    DONE = "done"
    FAILED = "failed"
    LEFT = "left"
    """It was given up, or dropped, without another attempt."""


@dataclasses.dataclass(slots=True, eq=False)
class TreeMessage:
    """A message that was sent, and its handling by each handler."""

    kind: Kind
    payload: Any
    message: Message | None = None
    """The message itself, None if another process sent it."""
    parent: TreeHandling | None = None
    """The handling that sent it."""
    is_given: bool = False
    """Whether a test has sent it, and not the code that is tested."""
    handlings: list[TreeHandling] = dataclasses.field(default_factory=list)
    label: str = ""
    """Its name, if its payload is not known."""

    @property
    def is_undone(self) -> bool:
        """Whether it was sent in a transaction that was rolled back."""
        return self.parent is not None and self.parent.is_undone

    @property
    def text(self) -> str:
        """The kind and the payload, on one line."""
        said = self.label or _shortened(repr(self.payload))
        return f"{self.kind} {said}"


@dataclasses.dataclass(slots=True, eq=False)
class TreeHandling:
    """The handling of a message by one handler, once."""

    message: TreeMessage
    endpoint: str
    channel: str | None = None
    """The channel that the message came from; None if the sender called the handler."""
    attempt: int = 1
    delay: timedelta | None = None
    """The delay with which it was sent."""
    state: Progression = Progression.RUNS
    error: BaseException | None = None
    is_atomic: bool = False
    """Whether a failure rolls back its messages."""
    is_repeated: bool = False
    """Whether the test has repeated it."""
    sent: list[TreeMessage] = dataclasses.field(default_factory=list)
    note: str = ""
    """The remark of another process."""

    @property
    def is_undone(self) -> bool:
        """Whether its writes, and the messages that it sent, were rolled back."""
        has_failed = self.state in (Progression.FAILED, Progression.LEFT)
        if has_failed and self.is_atomic:
            return True
        # What came out of a channel has a transaction of its own.
        return self.channel is None and self.message.is_undone

    @property
    def text(self) -> str:
        """The handler and the outcome, on one line."""
        said = [self.endpoint]
        if self.state is Progression.WAITS:
            due = f", due after {self.delay}" if self.delay else ""
            return f"{self.endpoint}: waits in {self.channel!r}{due}"
        if self.channel is not None:
            said.append(f"from {self.channel!r}")
        if self.attempt > 1:
            said.append(f"attempt {self.attempt}")
        if self.is_repeated:
            said.append("repeated by the test")
        if self.note:
            said.append(self.note)
        text = ", ".join(said)
        if self.error is not None:
            text += f": failed with {_shortened(repr(self.error))}"
            if self.state is Progression.LEFT:
                text += ", and was given up"
        return text


class Tree:
    """
    Everything that happened: each message with its handlers, and what those sent.

    ``str(tree)`` shows it. It yields its messages, each before those it has caused.
    """

    def __init__(self, roots: Collection[TreeMessage]) -> None:
        """Take the messages that none of the others has caused."""
        self.roots = tuple(roots)

    def __iter__(self) -> Iterator[TreeMessage]:
        """Yield the messages, each before those that it has caused."""
        todo = list(reversed(self.roots))
        while todo:
            message = todo.pop()
            yield message
            for handling in reversed(message.handlings):
                todo += reversed(handling.sent)

    def __len__(self) -> int:
        """Return the number of messages."""
        return sum(1 for _ in self)

    @property
    def handlings(self) -> Iterator[TreeHandling]:
        """Yield the handlings, each before those that it has caused."""
        for message in self:
            yield from message.handlings

    @property
    def sent(self) -> list[Any]:
        """The commands, those excluded that were rolled back."""
        return self._payloads(Kind.COMMAND)

    @property
    def published(self) -> list[Any]:
        """The events, those excluded that were rolled back."""
        return self._payloads(Kind.EVENT)

    @property
    def failures(self) -> list[BaseException]:
        """The exceptions of handlers, those of messages handled later included."""
        return [each.error for each in self.handlings if each.error is not None]

    def _payloads(self, kind: Kind) -> list[Any]:
        return [
            each.payload for each in self if each.kind is kind and not each.is_undone
        ]

    def __str__(self) -> str:
        """Return the tree as text."""
        return self.render()

    def __repr__(self) -> str:
        """Return the number of messages."""
        return f"<Tree of {len(self)} messages>"

    def render(self, marks: Mapping[TreeMessage, str] | None = None) -> str:
        """
        Return the tree as text.

        Args:
            marks: a remark for some of the messages, at the end of their lines.

        """
        lines: list[str] = []
        for root in self.roots:
            lines += _lines_of(root, marks or {})
        if not lines:
            return "(nothing happened)"
        if len(lines) > MOST_LINES:
            more = len(lines) - MOST_LINES
            lines = [*lines[:MOST_LINES], f"... and {more} more lines"]
        return "\n".join(lines)


def _lines_of(message: TreeMessage, marks: Mapping[TreeMessage, str]) -> list[str]:
    said = message.text
    if message.is_undone:
        said += " (rolled back)"
    if message in marks:
        said += f"   <-- {marks[message]}"
    lines = [said]
    for place, handling in enumerate(message.handlings):
        is_last = place == len(message.handlings) - 1
        below = [handling.text]
        for number, each in enumerate(handling.sent):
            nested = _lines_of(each, marks)
            below += _branch(nested, is_last=number == len(handling.sent) - 1)
        lines += _branch(below, is_last=is_last)
    return lines


def _branch(lines: list[str], *, is_last: bool) -> list[str]:
    first, rest = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
    return [first + lines[0], *(rest + each for each in lines[1:])]


def is_value(payload: Any) -> bool:
    """Return whether a payload is a plain value, whose class says nothing."""
    return is_value_type(type(payload))


def _shortened(text: str) -> str:
    line = " ".join(text.split("\n"))
    if len(line) <= LONGEST_VALUE:
        return line
    return f"{line[: LONGEST_VALUE - 3]}..."


# -------------------------------------------------------------------------- recording


_NOTHING: Final[Mapping[int, TreeHandling]] = {}

_current: ContextVar[Mapping[int, TreeHandling]] = ContextVar(
    "django_cqrs.testing", default=_NOTHING
)
"""The present handling, by the id of the recorder: there may be several."""


class TreeRecorder:
    """Records the messages of one registry as a tree: a tap, and an observer."""

    def __init__(self, registry: Any) -> None:
        """Take the registry."""
        self._registry = registry
        self.messages: list[TreeMessage] = []
        """All messages, in the order of sending."""
        self.facts: list[TreeMessage | TreeHandling] = []
        """The messages as they were sent, and delayed ones as they fell due."""
        self.consumed = 0
        """The number of handlings of messages from channels, failures included."""
        self._unnamed: list[TreeMessage] = []
        self._by_id: dict[UUID, TreeMessage] = {}
        self._last: TreeHandling | None = None

    @property
    def tree(self) -> Tree:
        """The tree of all messages."""
        return self.since(0)

    def since(self, start: int) -> Tree:
        """Return the tree of the messages from a place in :attr:`messages` on."""
        new = self.messages[start:]
        known = set(new)
        return Tree(
            [
                each
                for each in new
                if each.parent is None or each.parent.message not in known
            ]
        )

    def note_given_up(self, waiting: Collection[tuple[UUID, str]]) -> set[int]:
        """
        Note the failed handlings that no other attempt follows.

        Args:
            waiting: the ids and endpoints of the messages that wait.

        Returns:
            The ids of the exceptions that another attempt follows, or has followed.

        """
        kept: set[int] = set()
        for node in self.messages:
            failed = [each for each in node.handlings if each.error is not None]
            for each in failed:
                if each.channel is None:
                    kept.add(id(each.error))
                    continue
                others = node.handlings[node.handlings.index(each) + 1 :]
                is_tried = any(other.endpoint == each.endpoint for other in others)
                own = node.message and node.message.message_id
                if is_tried or (own, each.endpoint) in waiting:
                    kept.add(id(each.error))
                else:
                    each.state = Progression.LEFT
        return kept

    def node(self, message_id: UUID) -> TreeMessage | None:
        """Return the record of a message, None if there is none."""
        self._name_all()
        return self._by_id.get(message_id)

    def add(self, message_id: UUID, node: TreeMessage) -> None:
        """Add the record of a message that another process has sent."""
        self._by_id[message_id] = node
        self.messages.append(node)
        if node.parent is not None:
            node.parent.sent.append(node)

    def end_waiting(
        self, chains: Collection[UUID], waiting: Collection[tuple[UUID, str]]
    ) -> None:
        """
        Note that messages were handled, because they no longer wait.

        Args:
            chains: the correlation ids of the messages.
            waiting: the ids and endpoints of those that still wait.

        """
        self._name_all()
        for own, node in self._by_id.items():
            message = node.message
            if message is None or message.correlation_id not in chains:
                continue
            for each in node.handlings:
                is_ended = (own, each.endpoint) not in waiting
                if each.state is Progression.WAITS and is_ended:
                    each.state = Progression.DONE

    def loop(self) -> list[str]:
        """Return the names of the messages that led to the last one, at most a loop."""
        names: list[str] = []
        handling = self._last
        while handling is not None:
            payload = handling.message.payload
            name = handling.endpoint if is_value(payload) else type(payload).__name__
            is_again = name in names
            names.append(name)
            if is_again:
                break
            handling = handling.message.parent
        return names[::-1]

    def tap(self, kind: Kind, message: Message) -> None:
        """Record a message that passes a bus."""
        parent = _current.get().get(id(self))
        node = TreeMessage(kind, message.payload, message, parent)
        if parent is not None:
            parent.sent.append(node)
        self._unnamed.append(node)
        self.messages.append(node)
        self.facts.append(node)

    def observe(self, run: Run, point: JoinPoint, step: Step) -> Run:
        """Return a run that records itself."""
        if point.bus.registry is not self._registry:
            return run
        return (
            self._sending(run, point)
            if step is Step.SEND
            else self._handling(run, point, step)
        )

    def _sending(self, run: Run, point: JoinPoint) -> Run:
        endpoint = point.endpoint

        def run_sending(message: Message) -> Any:
            result = run(message)
            options = handling_of(message).options
            delay = getattr(options, "delay", None)
            if delay is None:
                delay = endpoint.policies.delay
            node = self._node_of(message, endpoint.kind)
            node.handlings.append(
                TreeHandling(
                    node,
                    endpoint.name,
                    endpoint.channel,
                    delay=delay_of(delay, message) or None,
                    state=Progression.WAITS,
                )
            )
            return result

        return run_sending

    def _handling(self, run: Run, point: JoinPoint, step: Step) -> Run:
        endpoint = point.endpoint
        is_consumed = step is Step.CONSUME
        channel = endpoint.channel if is_consumed else None
        is_atomic = endpoint.is_atomic or is_consumed

        def run_recorded(message: Message) -> Any:
            node = self._node_of(message, endpoint.kind)
            handling = self._begun(node, endpoint.name, endpoint.names, channel)
            handling.attempt, handling.is_atomic = message._attempt or 1, is_atomic
            if is_consumed:
                self.consumed += 1
                self._last = handling
            token = _current.set({**_current.get(), id(self): handling})
            try:
                result = run(message)
            except BaseException as error:
                handling.error, handling.state = error, Progression.FAILED
                raise
            else:
                handling.state = Progression.DONE
                return result
            finally:
                handling.endpoint = name_run(message, endpoint.name)
                _current.reset(token)

        return run_recorded

    def _begun(
        self,
        node: TreeMessage,
        name: str,
        names: Collection[str],
        channel: str | None,
    ) -> TreeHandling:
        """Return the handling that begins: that of a waiting message, or a new one."""
        if channel is not None:
            for each in node.handlings:
                if each.state is Progression.WAITS and each.endpoint in names:
                    each.state = Progression.RUNS
                    if each.delay:
                        self.facts.append(each)
                    return each
        handling = TreeHandling(node, name, channel)
        handling.is_repeated = any(
            each.endpoint in names and each.state is Progression.DONE
            for each in node.handlings
        )
        node.handlings.append(handling)
        return handling

    def _node_of(self, message: Message, kind: Kind) -> TreeMessage:
        """Return the record of a message; a new one if it was sent unrecorded."""
        own = message.message_id
        self._name_all()
        node = self._by_id.get(own)
        if node is None:
            node = TreeMessage(kind, message.payload, message, is_given=True)
            self._by_id[own] = node
            self.messages.append(node)
        return node

    def _name_all(self) -> None:
        """Find recorded messages by their ids, which are made when they are read."""
        while self._unnamed:
            node = self._unnamed.pop()
            if node.message is not None:
                self._by_id[node.message.message_id] = node
