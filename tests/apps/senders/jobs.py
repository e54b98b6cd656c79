"""Nothing imports it, and what it calls is elsewhere."""

from . import services
from .services import lend_all

KEY = "book.return"
raise RuntimeError("imported")


def nightly():
    lend_all([3])


def weekly(bus):
    services.lend_all([4])
    bus.dispatch(1, route=KEY)


def one(count):
    services.lend_all([count])
    other(count)


def other(count):
    one(count - 1)
