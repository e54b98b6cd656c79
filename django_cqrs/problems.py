"""The possible mistakes of declarations, for system checks and errors of routes."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable
from typing import Any


class CheckRule(enum.Enum):
    """The base of kinds of mistakes: the id of each one's check, and its subject."""

    def __init__(self, number: str, title: str) -> None:
        """Give each member its id and its title."""
        self.id: str = f"{self.label()}.{number}"
        self.title = title
        self.is_error: bool = number.startswith("E")

    @staticmethod
    def label() -> str:
        """Return the part of the ids before the dot."""
        return "django_cqrs"


class Rule(CheckRule):
    """Each kind of mistake of declarations, whichever apps are installed."""

    DUPLICATE_HANDLER = "E001", "Two handlers for one command or query"
    AMBIGUOUS_HANDLER = "E002", "Two handlers equally near to a message class"
    UNREGISTERED_CLASS = "E003", "A decorated method whose class is not registered"
    DUPLICATE_NAME = "E004", "One endpoint name for two handlers"
    UNFILLABLE_PARAMETER = "E005", "A parameter that cannot be filled"
    UNREADABLE_SIGNATURE = "E006", "An annotation that cannot be evaluated"
    NO_ROUTE = "E007", "A handler without a message class or a key"
    DUPLICATE_MESSAGE_NAME = "E008", "One message name for two classes"
    GLOB_KEY = "E009", "A pattern as the key of a command or query"
    SCATTERED_POLICIES = "E010", "Policies on more than one of stacked decorators"
    UNKNOWN_DATABASE = "E011", "A database alias that is not in DATABASES"
    BROKEN_CONVERTER = "E012", "A converter without its source and target types"
    BAD_SETTING = "E013", "A setting that cannot be used"
    RESULT_TYPE = "E014", "A handler that returns another type than its message says"
    CHANNELLED_RESULT = "E015", "A result promised by a message that waits in a channel"
    UNKNOWN_CHANNEL = "E016", "A channel that is not in CHANNELS or cannot be made"
    CHANNELLED_QUERY = "E017", "A query handler with a channel"
    NAMELESS_MESSAGE = "E018", "A message class without a name, on a channel"
    CHANNEL_POLICY = "E019", "A policy that needs a channel, or another channel"
    BROKEN_INTERCEPTOR = "E020", "An interceptor that cannot be called"
    BROKEN_KEY = "E021", "A key that cannot be read from a message"
    UNREMEMBERED_KEY = "E022", "An idempotency key that no app can store"
    UNKEPT_JOURNAL = "E023", "A journal that no app keeps"
    BAD_POLICY = "E024", "A policy with an invalid value"
    GENERATOR_HANDLER = "E025", "A handler that is a generator"
    UNEQUAL_PAIR = "E026", "A factory and an action whose keywords differ"
    UNSENT_COMMAND = "E027", "A returned Send that nothing sends"
    NO_IDENTIFIER = "E030", "An aggregate whose identifier names no object"
    CROWDED_FACTORY = "E031", "A factory with more than one action for its message"
    NO_STORAGE = "E032", "An aggregate without a storage"
    BAD_IDENTIFIER = "E033", "An identifier= that the message does not have"
    MISPLACED_POLICY = "E034", "A policy of aggregates on another handler"
    UNKNOWN_OUTPUT = "E035", "An output= that no command handler takes"
    BAD_VERSION = "E036", "A Version() for an aggregate without a version"
    BAD_FETCH = "E037", "A Fetch of what is neither an aggregate nor a model"
    CONSTRUCTOR_HANDLER = "E038", "A constructor as a handler"
    UNKNOWN_EVENTS = "E039", "An events= that is not a method of the aggregate"
    INTERFACE_ROUTE = "E040", "A method of a business interface without a route"
    INTERFACE_TYPE = "E041", "A business interface that does not match its route"
    SQL_PARAMETER = "E042", "SQL that does not match the parameters of its method"
    UNSTORABLE_STATE = "E043", "An aggregate whose state cannot be stored"
    NAMELESS_DOCUMENT = "E044", "A document class without a name of its own"
    FORMLESS_MESSAGE = "E045", "A message class without a JSON form, on a channel"
    INCONVERTIBLE_VIEW = "E046", "A view whose message cannot be created from a request"
    HIDDEN_HANDLER = "E047", "A handler behind a wrapper that hides it"
    USELESS_UPCASTER = "E048", "An upcaster that is never needed"
    UNKNOWN_OUTCOME_VIEW = "E049", "An outcome_view= that is not the name of a URL"
    UNKNOWN_ON_DEAD = "E050", "An on_dead= that no handler takes"
    DEAD_CYCLE = "E051", "An on_dead= that leads back to its own handler"
    INCOMPARABLE_VIEW = "E052", "A requires_if_match= that nothing compares"
    UNSCHEDULABLE_HANDLER = "E060", "A schedule on a handler that no worker can serve"
    BAD_SCHEDULE = "E061", "A schedule that cannot be used"
    DUPLICATE_SCHEDULE = "E062", "One name for two schedules"
    SCHEDULE_PAYLOAD = "E063", "A schedule whose payload does not fit its handler"
    BAD_TENANCY = "E080", "Tenants whose databases or schemas cannot be used"
    STALE_LOCK = "E100", "A lock file that is behind the code"
    UNLOCKED_CHANGE = "E101", "A change that waiting payloads do not survive"
    MISSING_UPCASTER = "E102", "An upcaster that is missing, or that fails"
    BROKEN_LOCK = "E103", "A lock file that cannot be read"
    UNLOCKABLE_CLASS = "E104", "A stored class that cannot be locked"
    UNKNOWN_SETTING = "W001", "An unknown key of DJANGO_CQRS"
    UNROUTED_HANDLER = "W002", "A decorated function outside the handlers modules"
    INCONVERTIBLE_PAYLOAD = "W003", "A payload type that cannot be created from JSON"
    UNPUBLISHED_EVENT = "W010", "An event that nobody publishes"
    UNREACHED_COMMAND = "W011", "A command that nobody sends"
    UNHANDLED_EVENT = "W012", "An event that nobody handles"
    EVENT_LOOP = "W013", "Events that lead back to themselves without a channel"
    COMPETING_ROUTER = "W080", "A router that answers before the one of tenants"
    SHARED_KEYS = "W081", "Idempotency keys that all tenants share"


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: its description, its fix and its place."""

    rule: CheckRule
    message: str
    hint: str
    obj: Any = None
    cause: str = ""
    """A fault elsewhere that each of its victims reports; one report is enough."""

    def __str__(self) -> str:
        """Return the text of the error that a broken route raises."""
        return f"{self.message} {self.hint} ({self.rule.id})"


Finder = Callable[[Any], Iterable[Problem]]

_finders: list[Finder] = []


def add_problem_finder(finder: Finder) -> Finder:
    """
    Let an app find problems of its own in the declarations of a registry.

    Args:
        finder: takes the registry and returns its problems.

    """
    _finders.append(finder)
    return finder


def other_problems(registry: Any) -> list[Problem]:
    """Return the problems that other apps find in a registry."""
    return [problem for finder in _finders for problem in finder(registry)]
