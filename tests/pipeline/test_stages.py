"""The stages around a handler stand in one list, and are compiled in its order."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Annotated

import pytest
from django.db import connection

from django_cqrs import CommandBus, Depends, Header, InstantRetry, command_handler
from django_cqrs.interception import RETRY, Proceed, around, pointcut
from django_cqrs.pipeline import observation
from django_cqrs.pipeline.compiler import STAGES, Mode
from tests.support import registry_of

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Pay:
    number: int


class Busy(Exception):
    pass


# What a handler that has every stage leaves in the log, by the stage that leaves it:
# before what stands inside the stage, and after it.
MARKS = {
    "with_dependencies_of_message": ("", "close message"),
    "with_outer_interceptors": ("outer, outside", "outer ends"),
    "with_retry": ("", ""),
    "with_dependencies_of_attempt": ("", "close attempt"),
    "with_middle_interceptors": ("middle, outside", "middle ends"),
    "with_transaction": ("", ""),
    "with_transaction_observers": ("observed", "observed ends"),
    "with_key_of_bus": ("", ""),
    "with_key_of_endpoint": ("", ""),
    "with_output": ("", "output"),
    "with_inner_interceptors": ("inner, in a transaction", "inner ends"),
}


@pytest.fixture
def log():
    return []


@pytest.fixture
def observed(log):
    """Have the log told what happens in a transaction."""

    def observe(run, point, alias):
        def run_observed(message):
            log.append("observed")
            result = run(message)
            log.append("observed ends")
            return result

        return run if point.endpoint.keys else run_observed

    observation.add_transaction_observer(observe)
    yield
    observation._transaction_observers.remove(observe)


def bus_of(log, failures=0):
    """Return a bus whose one handler has every stage, and fails so often at first."""
    left = [failures]

    def opened(name):
        def open_it():
            try:
                yield name
            finally:
                log.append(f"close {name}")

        return open_it

    of_message, of_attempt = opened("message"), opened("attempt")

    @command_handler(output="written", idempotency_key="number")
    def handle(command: Pay, made: Annotated[str, Depends(of_attempt)]) -> int:
        if left[0]:
            left[0] -= 1
            log.append("fail")
            raise Busy
        log.append("handle")
        return command.number

    @command_handler("written")
    def write(number: int):
        log.append("output")

    def interceptor(name, precedence):
        @around(pointcut.message(Pay), precedence=precedence)
        def note(proceed: Proceed):
            log.append(f"{name}, {where()}")
            result = proceed()
            log.append(f"{name} ends")
            return result

        return note

    @around(pointcut.message(Pay), precedence=RETRY - 1)
    def outer(proceed: Proceed, made: Annotated[str, Depends(of_message)]):
        log.append(f"outer, {where()}")
        result = proceed()
        log.append("outer ends")
        return result

    registry = registry_of(
        handle, write, outer, interceptor("middle", RETRY), interceptor("inner", 0)
    )
    return CommandBus(
        registry=registry,
        instant_retry=InstantRetry(3, on=Busy),
        idempotency_key=Header("payment"),
    )


def where():
    return "in a transaction" if connection.in_atomic_block else "outside"


def test_the_stages_are_compiled_in_the_order_of_the_list(log, observed):
    """What stands further out in the list begins earlier, and ends later."""
    assert [stage.__name__ for stage in STAGES] == list(MARKS)
    begins = [begin for begin, _ in MARKS.values() if begin]
    ends = [end for _, end in reversed(MARKS.values()) if end]

    bus_of(log).dispatch(Pay(1), headers={"payment": "p-1"})

    assert log == [*begins, "handle", *ends]


def test_a_retry_tries_again_what_stands_inside_it(log, observed):
    """What is outside of it in the list begins and ends once."""
    bus_of(log, failures=1).dispatch(Pay(1), headers={"payment": "p-1"})

    attempt = ["middle, outside", "observed", "inner, in a transaction"]
    assert log == [
        "outer, outside",
        *(*attempt, "fail", "close attempt"),
        *(*attempt, "handle", "inner ends", "output", "observed ends", "middle ends"),
        *("close attempt", "outer ends", "close message"),
    ]


@pytest.mark.parametrize(
    ("number", "payment"), [(1, "p-2"), (2, "p-1")], ids=["endpoint", "bus"]
)
def test_a_key_leaves_out_what_stands_inside_it(log, observed, number, payment):
    """A message that was handled is not handled again; what is outside still begins."""
    bus = bus_of(log)
    bus.dispatch(Pay(1), headers={"payment": "p-1"})
    log.clear()

    assert bus.dispatch(Pay(number), headers={"payment": payment}) == 1

    assert log == [
        *("outer, outside", "middle, outside", "observed"),
        *("observed ends", "middle ends", "outer ends", "close message"),
    ]


def test_the_mode_of_a_way_cannot_be_changed():
    """It is one value, made where a way begins."""
    mode = Mode(is_atomic=True)

    with pytest.raises(FrozenInstanceError):
        mode.is_atomic = False
