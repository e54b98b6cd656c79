"""What is found in the installed apps, and that nothing stale is left behind."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.test import modify_settings, override_settings

from django_cqrs import command_bus, event_bus, query_bus
from django_cqrs.buses import registry
from django_cqrs.checks import check_routes, check_settings
from django_cqrs.exceptions import (
    CQRSError,
    DuplicateHandler,
    InvalidHandler,
    NoHandlerFound,
    UnknownMessage,
)
from django_cqrs.problems import Rule
from tests.testapp.messages import FindTickets


@pytest.fixture
def make_app(tmp_path, monkeypatch):
    """Return what writes a Django app: its name, and its files by path."""
    made = set()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, **files):
        made.add(name)
        files.setdefault("__init__", "")
        for path, text in files.items():
            file = tmp_path / name / f"{path.replace('__in__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return name

    yield make
    for module in list(sys.modules):
        if module.partition(".")[0] in made:
            del sys.modules[module]
    registry.reset()


@contextmanager
def installed(*names):
    with modify_settings(INSTALLED_APPS={"append": list(names)}):
        yield


def problems_of(*rules):
    return [str(each) for each in registry.routes.problems if each.rule in rules]


def names_of(app):
    return [e.name for e in registry.routes.endpoints if e.name.startswith(f"{app}.")]


SHOP = """
    from dataclasses import dataclass

    from django_cqrs import query_handler

    @dataclass
    class GetPrice:
        name: str = ""

    @query_handler
    def get_price(query: GetPrice) -> str:
        return "first"
"""


# What is found --------------------------------------------------------------------


def test_any_installed_apps_handlers_module(make_app):
    """A handler in an app's `handlers.py` is called with the object, and only there. [B01.1]"""
    with installed(make_app("shop", handlers=SHOP)):
        import shop.handlers

        query = shop.handlers.GetPrice()
        assert query_bus.ask(query) == "first"
        assert names_of("shop") == ["shop.get_price"]

    with pytest.raises(NoHandlerFound):
        query_bus.ask(query)


def test_an_app_needs_no_handlers_module(make_app):
    """An app with messages alone, or with neither, is passed over. [B01.1]"""
    bare = make_app("bare")
    spoken = make_app("spoken", messages="from dataclasses import dataclass\n")

    with installed(bare, spoken):
        assert names_of("bare") == []
        assert "spoken.messages" in sys.modules


def test_messages_are_imported_before_handlers_of_any_app(make_app):
    """First the messages of every app, then the handlers of every app. [B01.1]"""
    one = make_app("one", handlers="", messages="")
    two = make_app("two", handlers="", messages="")
    with installed(one, two):
        order = [name for name in sys.modules if name.startswith(("one.", "two."))]

    assert order == ["one.messages", "two.messages", "one.handlers", "two.handlers"]


def test_handlers_may_import_each_other(make_app):
    """Two apps' handlers modules may import one another's messages and handlers. [B01.1]"""
    one = make_app(
        "one",
        messages="class Ask: pass",
        handlers="""
            from django_cqrs import query_handler
            from one.messages import Ask

            @query_handler
            def answer(query: Ask) -> str:
                return "one"
        """,
    )
    two = make_app("two", handlers="from one.handlers import answer, Ask")
    with installed(two, one):
        import one.messages

        assert query_bus.ask(one.messages.Ask()) == "one"
        assert names_of("one") == ["one.answer"]
        assert names_of("two") == []


def test_an_imported_handler_belongs_to_the_app_that_imports_it(make_app):
    """What a handlers module imports from elsewhere is routed, once. [B01.1]"""
    one = make_app(
        "one",
        services="""
            from django_cqrs import query_handler, service

            @service
            class Prices:
                @query_handler("price")
                def get(self) -> int:
                    return 5

            @query_handler("name")
            def name() -> str:
                return "lamp"
        """,
        handlers="""
            from one.services import Prices, name
            from one.services import Prices as AlsoPrices
        """,
    )
    with installed(one):
        assert names_of("one") == ["one.Prices.get", "one.name"]
        assert query_bus.ask(route="price") == 5
        assert query_bus.ask(route="name") == "lamp"
        assert problems_of(*Rule) == []


def test_a_handler_that_two_apps_import_is_one_handler(make_app):
    """The first app that imports a handler from elsewhere has it. [B01.1]"""
    make_app(
        "shared",
        services="""
            from django_cqrs import query_handler

            @query_handler("price")
            def price() -> int:
                return 5
        """,
    )
    text = "from shared.services import price"
    one, two = make_app("one", handlers=text), make_app("two", handlers=text)
    with installed(one, two):
        assert names_of("one") == ["one.price"]
        assert names_of("two") == []
        assert query_bus.ask(route="price") == 5


def test_a_service_inside_a_class(make_app):
    """A nested class marked with @service is registered under its whole name. [B01.1]"""
    make_app(
        "shop",
        handlers="""
            from django_cqrs import query_handler, service

            class Outer:
                @service
                class Prices:
                    @query_handler("price")
                    def get(self) -> int:
                        return 5
        """,
    )
    with installed("shop"):
        assert problems_of(*Rule) == []
        assert names_of("shop") == ["shop.Outer.Prices.get"]
        assert query_bus.ask(route="price") == 5


def test_an_imported_service_without_handlers_is_no_mistake(make_app):
    """A class marked with @service only to be given to handlers may be imported. [B01.1]"""
    one = make_app(
        "one",
        services="""
            from django_cqrs import service

            @service
            class Clock:
                def now(self):
                    return 12
        """,
        handlers="""
            from django_cqrs import query_handler, service
            from one.services import Clock

            @service
            class Own:
                pass

            @query_handler("time")
            def time(clock: Clock, own: Own) -> int:
                return clock.now()
        """,
    )
    with installed(one):
        assert query_bus.ask(route="time") == 12
        assert names_of("one") == ["one.time"]


def test_the_label_names_the_endpoint(make_app):
    """An endpoint is named by its app's label, which need not be the module's name. [B01.1]"""
    make_app(
        "plain",
        apps="""
            from django.apps import AppConfig

            class PlainConfig(AppConfig):
                name = "plain"
                label = "fancy"
        """,
        handlers=SHOP,
    )
    with installed("plain.apps.PlainConfig"):
        assert names_of("fancy") == ["fancy.get_price"]
        assert names_of("plain") == []


def test_two_apps_may_use_one_function_name(make_app):
    """The same qualified name in two apps makes two endpoint names. [B01.1]"""
    one, two = make_app("one", handlers=SHOP), make_app("two", handlers=SHOP)
    with installed(one, two):
        assert names_of("one") == ["one.get_price"]
        assert names_of("two") == ["two.get_price"]
        assert problems_of(*Rule) == []


def test_the_order_of_registration_is_that_of_the_text(make_app):
    """Apps in their order; in each, functions and classes as they are written. [B01.1]"""
    text = """
        from django_cqrs import event_handler, service

        calls = []

        @event_handler
        def zulu(event: str) -> None:
            calls.append("zulu")

        @service
        class Yankee:
            @event_handler
            def second(self, event: str) -> None:
                calls.append("second")

            @event_handler
            def first(self, event: str) -> None:
                calls.append("first")

        @event_handler
        def alpha(event: str) -> None:
            calls.append("alpha")
    """
    one, two = make_app("one", handlers=text), make_app("two", handlers=text)
    with installed(two, one):
        import one.handlers
        import two.handlers

        one.handlers.calls = two.handlers.calls
        event_bus.publish("event")

        assert two.handlers.calls == ["zulu", "second", "first", "alpha"] * 2
        order = [e.name for e in registry.routes.endpoints]
        assert order.index("two.alpha") < order.index("one.zulu")


def test_inherited_handlers_do_not_move_a_service(make_app):
    """A service stands where it is written, wherever its base's handlers stand. [B06.3]"""
    make_app(
        "one",
        base="\n" * 100
        + textwrap.dedent("""
            from django_cqrs import event_handler

            class Base:
                @event_handler
                def inherited(self, event: str) -> None:
                    self.calls.append("inherited")
        """),
        handlers="""
            from django_cqrs import event_handler, service
            from one.base import Base

            @service
            class Derived(Base):
                calls = []

            @event_handler
            def last(event: str) -> None:
                Derived.calls.append("last")
        """,
    )
    with installed("one"):
        import one.handlers

        event_bus.publish("event")

        assert one.handlers.Derived.calls == ["inherited", "last"]
        assert problems_of(*Rule) == []


# Packages -------------------------------------------------------------------------

PACKAGE = {
    "messages__in____init__": "from packaged.messages.orders import Ask as Ask",
    "messages__in__orders": "class Ask: pass",
    "handlers__in____init__": """
        from django_cqrs import query_handler

        @query_handler("top")
        def top() -> str:
            return "top"
    """,
    "handlers__in__orders": """
        from django_cqrs import query_handler
        from packaged.messages import Ask

        @query_handler
        def answer(query: Ask) -> str:
            return "orders"
    """,
    "handlers__in__deep__in____init__": "",
    "handlers__in__deep__in__deeper": """
        from django_cqrs import query_handler

        @query_handler("deep")
        def deep() -> str:
            return "deep"
    """,
    "handlers__in___private": "raise RuntimeError('imported')",
}


def test_a_package_works_as_a_module_does(make_app):
    """Every module of a handlers package is imported, but those that begin with `_`. [B01.2]"""
    with installed(make_app("packaged", **PACKAGE)):
        import packaged.messages

        assert query_bus.ask(route="top") == "top"
        assert query_bus.ask(route="deep") == "deep"
        assert query_bus.ask(packaged.messages.Ask()) == "orders"
        assert names_of("packaged") == [
            "packaged.top",
            "packaged.deep",
            "packaged.answer",
        ]
        assert "packaged.handlers._private" not in sys.modules


def test_a_package_that_imports_its_own_modules_registers_once(make_app):
    """Re-exports in a package's `__init__`, and between its modules, count once. [B01.2]"""
    files = {
        **PACKAGE,
        "handlers__in____init__": "from packaged.handlers.orders import answer",
        "handlers__in__zz": "from packaged.handlers.orders import *",
    }
    with installed(make_app("packaged", **files)):
        import packaged.messages

        assert query_bus.ask(packaged.messages.Ask()) == "orders"
        assert names_of("packaged") == ["packaged.deep", "packaged.answer"]
        assert problems_of(*Rule) == []


def test_a_package_without_init(make_app):
    """A folder `handlers` without `__init__.py` is a package too. [B01.2]"""
    files = {k: v for k, v in PACKAGE.items() if k != "handlers__in____init__"}
    with installed(make_app("packaged", **files)):
        assert names_of("packaged") == ["packaged.deep", "packaged.answer"]


def test_one_function_name_in_two_modules_of_a_package(make_app):
    """Two modules of one package that use one function name are a check. [B01.7]"""
    text = """
        from django_cqrs import query_handler

        @query_handler("{0}")
        def answer() -> str:
            return "{0}"
    """
    files = {
        "handlers__in____init__": "",
        "handlers__in__one": text.format("one"),
        "handlers__in__two": text.format("two"),
    }
    with installed(make_app("packaged", **files)):
        (problem,) = problems_of(Rule.DUPLICATE_NAME)

        assert problem.startswith(
            "Two handlers have the endpoint name 'packaged.answer': "
            "packaged.handlers.one.answer ("
        )
        assert " and packaged.handlers.two.answer (" in problem
        with pytest.raises(InvalidHandler) as caught:
            query_bus.ask(route="one")
        assert str(caught.value) == problem


# Errors while importing -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "import nothing_there",
            ModuleNotFoundError,
            "No module named 'nothing_there'",
        ),
        ("from failing import nope", ImportError, "cannot import name 'nope'"),
        ("import failing.missing", ModuleNotFoundError, "named 'failing.missing'"),
        ("1 / 0", ZeroDivisionError, "division by zero"),
        ("def broken(:", SyntaxError, "invalid syntax"),
        ("raise RuntimeError('own')", RuntimeError, "own"),
    ],
    ids=["module", "name", "submodule", "runtime", "syntax", "own"],
)
@pytest.mark.parametrize("module", ["handlers", "messages"])
def test_an_error_inside_a_module_surfaces_unchanged(
    make_app, module, text, error, message
):
    """What importing handlers or messages raises stops Django's start, as it is. [B01.2]"""
    make_app("failing", **{module: text})
    before = registry.routes.endpoints
    with pytest.raises(error, match=message) as caught:
        apps.set_installed_apps(["django_cqrs", "failing"])
    apps.unset_installed_apps()
    registry.reset()

    assert type(caught.value) is error
    assert [e.name for e in registry.routes.endpoints] == [e.name for e in before]
    assert query_bus.ask(FindTickets("x")) == ["x"]


def test_an_error_inside_a_package_surfaces_unchanged(make_app):
    """An ImportError in one module of a handlers package is not passed over either. [B01.2]"""
    files = {**PACKAGE, "handlers__in__broken": "import nothing_there"}
    make_app("packaged", **files)
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'nothing_there'"),
        installed("packaged"),
    ):
        pass


def test_a_module_that_failed_and_was_mended_registers_once(make_app):
    """What was decorated before the error is not kept beside the second import."""
    make_app("failing", handlers=SHOP + "\n    import nothing_there")
    with (
        pytest.raises(ModuleNotFoundError),
        installed("failing"),
    ):
        pass
    make_app("failing", handlers=SHOP)

    with installed("failing"):
        assert names_of("failing") == ["failing.get_price"]
        assert problems_of(*Rule) == []


def test_a_bus_used_while_handlers_are_imported_is_refused(make_app):
    """Using a bus at the top of a handlers module says so, and leaves no lock behind."""
    make_app(
        "eager",
        handlers="""
            from django_cqrs import query_bus

            query_bus.ask("text")
        """,
    )
    with pytest.raises(CQRSError) as caught, installed("eager"):
        pass

    assert str(caught.value) == (
        "A bus was used while the handlers were being imported. Use a bus inside a "
        "function, not at the top of a module."
    )
    assert query_bus.ask(FindTickets("x")) == ["x"]


# Again and again ------------------------------------------------------------------


def test_a_second_ready_registers_once():
    """`ready()` a second time changes nothing. [B01.2]"""
    before = [(e.name, e.function) for e in registry.routes.endpoints]

    apps.get_app_config("django_cqrs").ready()

    assert [(e.name, e.function) for e in registry.routes.endpoints] == before
    assert query_bus.ask(FindTickets("x")) == ["x"]


def test_a_reloaded_module_registers_once(make_app):
    """After importlib.reload the new functions count, and the old ones are gone. [B01.2]"""
    make_app("shop", handlers=SHOP)
    with installed("shop"):
        import shop.handlers

        assert query_bus.ask(shop.handlers.GetPrice()) == "first"
        old = shop.handlers.get_price
        make_app("shop", handlers=SHOP.replace('"first"', '"second"'))
        importlib.reload(shop.handlers)
        registry.reset()

        assert problems_of(*Rule) == []
        assert names_of("shop") == ["shop.get_price"]
        assert query_bus.ask(shop.handlers.GetPrice()) == "second"
        assert old is not shop.handlers.get_price


def test_a_handler_that_a_reload_takes_away_is_gone(make_app):
    """A function that is no longer in the text handles nothing. [B01.2]"""
    make_app(
        "shop",
        handlers=SHOP
        + """
    @query_handler("gone")
    def gone() -> None: ...
""",
    )
    with installed("shop"):
        import shop.handlers

        assert names_of("shop") == ["shop.get_price", "shop.gone"]
        make_app("shop", handlers=SHOP)
        importlib.reload(shop.handlers)
        registry.reset()

        # importlib.reload keeps the old names in the module: it is the text that counts.
        assert hasattr(shop.handlers, "gone")
        assert names_of("shop") == ["shop.get_price"]


def test_a_module_imported_anew_registers_once(make_app):
    """A module taken out of sys.modules and imported again replaces itself. [B01.2]"""
    make_app("shop", handlers=SHOP)
    with installed("shop"):
        first = importlib.import_module("shop.handlers")
        del sys.modules["shop.handlers"]
        second = importlib.import_module("shop.handlers")
        registry.reset()

        assert second is not first
        assert names_of("shop") == ["shop.get_price"]
        assert query_bus.ask(second.GetPrice()) == "first"
        with pytest.raises(NoHandlerFound, match=r"Did you mean shop\.handlers"):
            query_bus.ask(first.GetPrice())


def test_a_service_reloaded_is_one_service(make_app):
    """A reloaded class replaces itself, and its instance is built anew. [B01.2]"""
    text = """
        from django_cqrs import query_handler, service

        @service
        class Counter:
            def __init__(self):
                self.asked = 0

            @query_handler("count")
            def count(self) -> int:
                self.asked += 1
                return self.asked
    """
    make_app("shop", handlers=text)
    with installed("shop"):
        import shop.handlers

        assert query_bus.ask(route="count") == 1
        importlib.reload(shop.handlers)
        registry.reset()

        assert names_of("shop") == ["shop.Counter.count"]
        assert query_bus.ask(route="count") == 1


def test_messages_reloaded_do_not_clash(make_app):
    """A named class that was loaded twice is one class: the newer. [B01.2]"""
    text = """
        from dataclasses import dataclass

        from django_cqrs import event_handler, message

        seen = []

        class Happened: pass

        @message("shop.sold")
        @dataclass
        class Sold(Happened):
            number: int = 0

        @event_handler
        def on_happened(event: Happened) -> None:
            seen.append(event)
    """
    make_app("shop", handlers=text)
    with installed("shop"):
        import shop.handlers

        importlib.reload(shop.handlers)
        registry.reset()
        event_bus.publish({"number": 1}, route="shop.sold")

        assert problems_of(*Rule) == []
        assert shop.handlers.seen == [shop.handlers.Sold(1)]


# Settings -------------------------------------------------------------------------


def test_installed_apps_overridden_leave_nothing_stale(make_app):
    """In a block an app's handlers are there; after it they are not; and again."""
    make_app("shop", handlers=SHOP)
    before = [e.name for e in registry.routes.endpoints]
    for _ in range(3):
        with installed("shop"):
            import shop.handlers

            assert names_of("shop") == ["shop.get_price"]
            assert query_bus.ask(shop.handlers.GetPrice()) == "first"

        assert [e.name for e in registry.routes.endpoints] == before
        with pytest.raises(NoHandlerFound):
            query_bus.ask(shop.handlers.GetPrice())


def test_an_app_taken_away_is_gone():
    """Without the test app in INSTALLED_APPS its handlers are not reached."""
    assert query_bus.ask(FindTickets("x")) == ["x"]

    with modify_settings(INSTALLED_APPS={"remove": ["tests.testapp"]}):
        with pytest.raises(NoHandlerFound):
            query_bus.ask(FindTickets("x"))
        assert names_of("testapp") == []

    assert query_bus.ask(FindTickets("x")) == ["x"]


def test_without_our_app_the_error_says_so():
    """Where 'django_cqrs' is not installed and nothing is found, that is the hint."""
    with (
        override_settings(INSTALLED_APPS=["django.contrib.contenttypes"]),
        pytest.raises(NoHandlerFound) as caught,
    ):
        query_bus.ask(FindTickets("x"))

    assert str(caught.value) == (
        "No query handler takes FindTickets. 'django_cqrs' is not in INSTALLED_APPS."
    )


def test_handlers_module_may_have_another_name(make_app):
    """HANDLERS_MODULE and MESSAGES_MODULE name the modules, and no others are read."""
    make_app(
        "shop",
        handlers=SHOP.replace('"first"', '"handlers"'),
        operations=SHOP.replace('"first"', '"operations"'),
        contracts="",
        messages="raise RuntimeError('imported')",
    )
    names = {"HANDLERS_MODULE": "operations", "MESSAGES_MODULE": "contracts"}
    with override_settings(DJANGO_CQRS=names), installed("shop"):
        import shop.operations

        assert "shop.contracts" in sys.modules
        assert "shop.handlers" not in sys.modules
        assert names_of("shop") == ["shop.get_price"]
        assert query_bus.ask(shop.operations.GetPrice()) == "operations"
        with pytest.raises(NoHandlerFound):
            query_bus.ask(FindTickets("x"))

    assert query_bus.ask(FindTickets("x")) == ["x"]


def test_a_module_name_that_is_none_is_left_to_the_check():
    """The start goes on without handlers, and the check E013 says why."""
    with override_settings(DJANGO_CQRS={"HANDLERS_MODULE": 5}):
        with pytest.raises(NoHandlerFound):
            query_bus.ask(FindTickets("x"))
        assert [each.id for each in check_settings()] == ["django_cqrs.E013"]


def test_a_setting_changed_inside_a_block_counts_there(make_app):
    """The settings in force are read anew each time they change."""
    make_app(
        "shop",
        handlers=SHOP.replace('"first"', '"handlers"'),
        operations=SHOP.replace('"first"', '"operations"'),
    )
    with installed("shop"):
        import shop.handlers

        assert query_bus.ask(shop.handlers.GetPrice()) == "handlers"
        with override_settings(DJANGO_CQRS={"HANDLERS_MODULE": "operations"}):
            import shop.operations

            assert query_bus.ask(shop.operations.GetPrice()) == "operations"
            with pytest.raises(NoHandlerFound):
                query_bus.ask(shop.handlers.GetPrice())
        assert query_bus.ask(shop.handlers.GetPrice()) == "handlers"
        with pytest.raises(NoHandlerFound):
            query_bus.ask(shop.operations.GetPrice())


@pytest.mark.parametrize("value", [None, [], "handlers", 5], ids=repr)
def test_settings_that_are_no_dictionary_are_refused(value):
    """DJANGO_CQRS of another type is one clear error where it is first read."""
    with (
        override_settings(DJANGO_CQRS=value),
        pytest.raises(ImproperlyConfigured) as caught,
    ):
        query_bus.ask(FindTickets("x"))

    assert str(caught.value) == (
        f"settings.DJANGO_CQRS must be a dictionary, not {type(value).__name__}."
    )
    assert query_bus.ask(FindTickets("x")) == ["x"]


# Broken declarations --------------------------------------------------------------

BROKEN = """
    from __future__ import annotations

    from typing import TYPE_CHECKING

    from django_cqrs import command_handler, event_handler, query_handler, service
    from broken.messages import Close, Open, Opened, Reopen

    if TYPE_CHECKING:
        from broken.messages import Unseen

    @query_handler("sound")
    def sound() -> str:
        return "sound"

    @command_handler
    def unfillable(command: Open, number: int) -> None: ...

    @command_handler
    def unreadable(command: Unseen) -> None: ...

    @event_handler
    def unreadable_event(event: Opened, other: Unseen) -> None: ...

    @command_handler
    def leads_nowhere() -> None: ...

    @command_handler("close")
    def one(command: Close) -> None: ...

    @command_handler("close")
    def two(command: Close) -> None: ...

    @command_handler(using="nowhere")
    def no_database(command: Reopen) -> None: ...

    class Forgotten:
        @query_handler("forgotten")
        def by_key(self) -> None: ...

        @command_handler
        def by_class(self, command: Close) -> None: ...

        @event_handler
        def by_event(self, event: Close) -> None: ...

        @event_handler("forgotten.*")
        def by_pattern(self) -> None: ...
"""
BROKEN_MESSAGES = """
    class Open: pass
    class Opened: pass
    class Close: pass
    class Reopen: pass
    class Unseen: pass
"""


@pytest.fixture
def broken(make_app):
    make_app("broken", handlers=BROKEN, messages=BROKEN_MESSAGES)
    with installed("broken"):
        yield importlib.import_module("broken.messages")


def test_broken_declarations_do_not_break_the_start(broken):
    """Django starts, and what is sound works: each mistake is a check."""
    assert query_bus.ask(route="sound") == "sound"
    assert query_bus.ask(FindTickets("x")) == ["x"]
    assert sorted(each.rule.name for each in registry.routes.problems) == [
        "DUPLICATE_HANDLER",
        "NO_ROUTE",
        "UNFILLABLE_PARAMETER",
        "UNKNOWN_DATABASE",
        "UNREADABLE_SIGNATURE",
        "UNREADABLE_SIGNATURE",
        "UNREGISTERED_CLASS",
        "UNREGISTERED_CLASS",
        "UNREGISTERED_CLASS",
        "UNREGISTERED_CLASS",
    ]


@pytest.mark.parametrize(
    ("send", "rule", "text"),
    [
        (
            lambda m: command_bus.dispatch(m.Open()),
            Rule.UNFILLABLE_PARAMETER,
            "Nothing can fill the parameter 'number' of broken.handlers.unfillable: ",
        ),
        (
            lambda m: command_bus.dispatch(m.Unseen()),
            Rule.UNREADABLE_SIGNATURE,
            "The annotations of broken.handlers.unreadable cannot be evaluated: ",
        ),
        (
            lambda m: event_bus.publish(m.Opened()),
            Rule.UNREADABLE_SIGNATURE,
            "The annotations of broken.handlers.unreadable_event cannot be evaluated: ",
        ),
        (
            lambda m: command_bus.dispatch(m.Close(), route="close"),
            Rule.DUPLICATE_HANDLER,
            "'close' has more than one command handler: broken.handlers.one (",
        ),
        (
            lambda m: command_bus.dispatch(m.Reopen()),
            Rule.UNKNOWN_DATABASE,
            "broken.handlers.no_database uses the database 'nowhere', which is not ",
        ),
        (
            lambda m: query_bus.ask(route="forgotten"),
            Rule.UNREGISTERED_CLASS,
            "broken.handlers.Forgotten.by_key is decorated, but its class Forgotten is ",
        ),
        (
            lambda m: command_bus.dispatch(m.Close()),
            Rule.UNREGISTERED_CLASS,
            "broken.handlers.Forgotten.by_class is decorated, but its class ",
        ),
        (
            lambda m: event_bus.publish(m.Close()),
            Rule.UNREGISTERED_CLASS,
            "broken.handlers.Forgotten.by_event is decorated, but its class ",
        ),
        (
            lambda m: event_bus.publish(route="forgotten.now"),
            Rule.UNREGISTERED_CLASS,
            "broken.handlers.Forgotten.by_pattern is decorated, but its class ",
        ),
    ],
    ids=[
        "unfillable",
        "unreadable",
        "unreadable event",
        "duplicate",
        "database",
        "forgotten by key",
        "forgotten by class",
        "forgotten by event",
        "forgotten by pattern",
    ],
)
def test_a_broken_declarations_route_raises_the_checks_text(broken, send, rule, text):
    """At first use, and ever after, the route raises what the check says."""
    for _ in range(2):
        with pytest.raises(InvalidHandler) as caught:
            send(broken)

        assert str(caught.value).startswith(text)
        assert str(caught.value) in problems_of(rule)


def test_duplicates_raise_whether_or_not_checks_ran(broken):
    """DuplicateHandler comes from the table, not from a check. [B01.4]"""
    with pytest.raises(DuplicateHandler):
        command_bus.dispatch(broken.Close(), route="close")


def test_a_class_that_was_never_registered_is_a_check(make_app):
    """A decorated method whose class has no @service is named with its class. [B01.7]"""
    make_app(
        "shop",
        handlers="""
            from django_cqrs import query_handler

            class Outer:
                class Prices:
                    @query_handler("price")
                    def get(self) -> int:
                        return 5
        """,
    )
    with installed("shop"):
        assert problems_of(*Rule) == [
            (
                "shop.handlers.Outer.Prices.get is decorated, but its class Outer.Prices "
                "is not registered. Decorate the class with @service, or with @aggregate or @saga, outermost. "
                "(django_cqrs.E003)"
            )
        ]


def test_a_base_class_of_a_registered_class_is_registered_by_it(make_app):
    """Handlers of an unmarked base are no stray where a registered class inherits. [B01.7]"""
    make_app(
        "shop",
        handlers="""
            from django_cqrs import query_handler, service

            class Base:
                @query_handler("price")
                def get(self) -> int:
                    return 5

            @service
            class Prices(Base):
                pass
        """,
    )
    with installed("shop"):
        assert problems_of(*Rule) == []
        assert names_of("shop") == ["shop.Prices.get"]


def test_a_decorated_function_outside_the_handlers_module_is_pointed_out(make_app):
    """What no handlers module holds is a warning, and the hint of the error."""
    make_app(
        "shop",
        models="from shop.elsewhere import Ask",
        elsewhere="""
            from django_cqrs import query_handler

            class Ask: pass

            @query_handler
            def by_class(query: Ask) -> None: ...

            @query_handler("by.key")
            def by_key() -> None: ...
        """,
    )
    with installed("shop"):
        import shop.elsewhere

        texts = [
            f"shop.elsewhere.{name} is decorated, but it is not in a handlers module. "
            "Move it to the app's handlers module, or import it there. "
            "(django_cqrs.W002)"
            for name in ("by_class", "by_key")
        ]
        assert problems_of(*Rule) == texts
        with pytest.raises(NoHandlerFound) as by_class:
            query_bus.ask(shop.elsewhere.Ask())
        with pytest.raises(NoHandlerFound) as by_key:
            query_bus.ask(route="by.key")
        assert str(by_class.value) == f"No query handler takes Ask. {texts[0]}"
        assert str(by_key.value) == f"No query handler takes 'by.key'. {texts[1]}"


LATE = """
    from django_cqrs import command_handler, service
    from django_cqrs import interception

    class Close: pass

    @command_handler
    def close(command: Close) -> None: ...

    @interception.before(interception.pointcut.handler("nobody"))
    def look(): ...

    class Desk:
        @command_handler("desk.open")
        def open(self) -> None: ...
"""


@pytest.mark.parametrize("how", ["imported", "not imported"])
@pytest.mark.parametrize("name", ["views", "handler", "services", "deep.closing"])
def test_a_handler_in_a_module_that_is_not_discovered_is_pointed_out(
    make_app, name, how
):
    """Whether something imports the module after the start, or nothing ever does."""
    modules = {name.replace(".", "__in__"): LATE}
    if name.startswith("deep."):
        modules["deep__in____init__"] = ""
    make_app("shop", **modules)
    with installed("shop"):
        assert problems_of(*Rule) == []
        if how == "imported":
            importlib.import_module(f"shop.{name}")
        found = [
            (each.id, each.msg)
            for each in check_routes()
            if each.id in ("django_cqrs.W002", "django_cqrs.E003")
        ]
    if how == "imported":
        assert found == [
            (
                "django_cqrs.W002",
                f"shop.{name}.close is decorated, but it is not in a handlers module.",
            ),
            (
                "django_cqrs.W002",
                f"shop.{name}.look is decorated, but it is not in a handlers module.",
            ),
            (
                "django_cqrs.E003",
                (
                    f"shop.{name}.Desk.open is decorated, but its class Desk is not "
                    f"registered."
                ),
            ),
        ]
    else:
        assert found == [
            (
                "django_cqrs.W002",
                f"shop.{name}.{each} is decorated, but nothing imports its module.",
            )
            for each in ("close", "Desk.open")
        ]


def test_tests_and_migrations_are_not_looked_through(make_app):
    """What is decorated there is for a registry of the test's own."""
    for_tests = textwrap.dedent(LATE)
    make_app("shop", test_shop=for_tests, conftest=for_tests, shop_test=for_tests)
    with installed("shop"):
        assert [each for each in check_routes() if each.id == "django_cqrs.W002"] == []


@pytest.mark.django_db
def test_a_command_of_a_late_handler_says_where_it_is(make_app):
    """The error of the send has the same hint as the check."""
    make_app("shop", views=LATE)
    with installed("shop"):
        views = importlib.import_module("shop.views")
        with pytest.raises(NoHandlerFound) as caught:
            command_bus.dispatch(views.Close())

    assert str(caught.value) == (
        "No command handler takes Close. shop.views.close is decorated, but it is "
        "not in a handlers module. Move it to the app's handlers module, or import "
        "it there. (django_cqrs.W002)"
    )


@pytest.mark.django_db
def test_a_message_class_that_comes_late_is_told_to_be_late(make_app):
    """It has a name; what it lacks is a module that every process imports."""
    make_app(
        "shop",
        handlers="""
            from django_cqrs import event_handler

            @event_handler(channel="memory")
            def everything(event: object) -> None: ...
        """,
        views="""
            from dataclasses import dataclass
            from django_cqrs import message

            @message("shop.late")
            @dataclass
            class Late:
                number: int = 0
        """,
    )
    with installed("shop"):
        assert registry.routes.problems == ()
        views = importlib.import_module("shop.views")
        with pytest.raises(UnknownMessage) as caught:
            event_bus.publish(views.Late())

    assert str(caught.value) == (
        "shop.views.Late, named 'shop.late', was defined after the routes were "
        "compiled, so a worker that does not import shop.views would not know it. "
        "Define it in the app's messages module, or import it there."
    )


@pytest.mark.django_db
def test_a_lazily_imported_handler_is_found(make_app):
    """
    Python 3.15 puts a stand-in into the namespace of ``lazy from x import handler``.

    The module's attribute is the handler; a module's own ``__getattribute__`` stands
    for that here.
    """
    make_app(
        "shop",
        elsewhere="""
            from django_cqrs import command_handler

            @command_handler("lazy.do")
            def do() -> str:
                return "done"
        """,
        handlers="""
            import sys
            from types import ModuleType
            from shop import elsewhere

            class Lazy(ModuleType):
                def __getattribute__(self, name):
                    if name == "do":
                        return elsewhere.do
                    return super().__getattribute__(name)

            do = object()
            sys.modules[__name__].__class__ = Lazy
        """,
    )
    with installed("shop"):
        assert problems_of(*Rule) == []
        assert command_bus.dispatch(route="lazy.do") == "done"


def test_a_wrapper_above_a_handler_that_hides_it_is_a_check(make_app):
    """Without functools.wraps nobody can tell that it belongs to the handler."""
    make_app(
        "shop",
        handlers="""
            from django_cqrs import command_handler

            def logged(function):
                def inner(*args):
                    return function(*args)
                return inner

            @logged
            @command_handler("hidden.do")
            def do(number: int) -> None: ...
        """,
    )
    with installed("shop"):
        assert problems_of(*Rule) == [
            (
                "shop.handlers.do is decorated, but a decorator above that replaced "
                "it with logged.<locals>.inner, which does not say what it wraps, so "
                "the handler would never be called. Use functools.wraps in that "
                "decorator. (django_cqrs.E047)"
            )
        ]


# What users' own decorators and loops do ------------------------------------------


def test_a_decorator_above_ours_is_run(make_app):
    """The module's own name counts: a wrapper, a cache, and a wrapped wrapper."""
    make_app(
        "shop",
        decorators="""
            import functools

            def twice(function):
                @functools.wraps(function)
                def wrapper(*args, **kwargs):
                    return function(*args, **kwargs) * 2
                return wrapper
        """,
        handlers="""
            import functools

            from django.db.transaction import atomic
            from django_cqrs import query_handler
            from shop.decorators import twice

            @twice
            @query_handler("above")
            def above() -> str:
                return "x"

            @query_handler("below")
            @twice
            @atomic
            def below() -> str:
                return "x"

            @twice
            @query_handler("both")
            @twice
            def both() -> str:
                return "x"

            calls = []

            @functools.cache
            @query_handler("cached")
            def cached(number: int) -> int:
                calls.append(number)
                return number
        """,
    )
    with installed("shop"):
        import shop.handlers

        assert problems_of(*Rule) == []
        assert names_of("shop") == [
            "shop.above",
            "shop.below",
            "shop.both",
            "shop.cached",
        ]
        assert query_bus.ask(route="above") == "xx"
        assert query_bus.ask(route="both") == "xxxx"
        assert [query_bus.ask(n, route="cached") for n in (1, 1, 2)] == [1, 1, 2]
        assert shop.handlers.calls == [1, 2]


@pytest.mark.django_db
def test_a_decorator_of_another_module_below_ours_is_found(make_app):
    """A wrapper that another module makes belongs to the module that decorates."""
    make_app(
        "shop",
        handlers="""
            from django.db import connection
            from django.db.transaction import atomic
            from django_cqrs import query_handler

            @query_handler("atomic")
            @atomic
            def in_transaction() -> bool:
                return connection.in_atomic_block
        """,
    )
    with installed("shop"):
        assert names_of("shop") == ["shop.in_transaction"]
        assert query_bus.ask(route="atomic") is True


def test_handlers_made_in_a_loop_or_by_a_function_are_found(make_app):
    """Each function that a loop or a factory decorates is a handler of its own."""
    make_app(
        "shop",
        handlers="""
            from django_cqrs import query_handler

            for key in ("a", "b"):
                @query_handler(key, name=f"shop.loop.{key}")
                def looped(key: str = key) -> str:
                    return key

            def make(key):
                @query_handler(key, name=f"shop.made.{key}")
                def made() -> str:
                    return key
                return made

            one, two = make("c"), make("d")
        """,
    )
    with installed("shop"):
        assert sorted(names_of("shop")) == [
            "shop.loop.a",
            "shop.loop.b",
            "shop.made.c",
            "shop.made.d",
        ]
        assert [query_bus.ask(route=key) for key in "abcd"] == ["a", "b", "c", "d"]


def test_a_function_defined_twice_is_a_check(make_app):
    """Copied and not renamed, the second function does not hide the first in silence. [B01.7]"""
    make_app(
        "shop",
        handlers="""
            from django_cqrs import query_handler

            @query_handler("one")
            def answer() -> None: ...

            @query_handler("two")
            def answer() -> None: ...
        """,
    )
    with installed("shop"):
        (problem,) = problems_of(*Rule)

        assert problem.startswith(
            "Two handlers have the endpoint name 'shop.answer': shop.handlers.answer ("
        )


def test_slots_and_our_decorators_in_either_order(make_app):
    """@dataclass(slots=True) above or below @service and @message, also nested."""
    make_app(
        "shop",
        handlers="""
            from dataclasses import dataclass

            from django_cqrs import event_handler, message, service

            seen = []

            class Happened: pass

            @message("shop.above")
            @dataclass(slots=True)
            class Above(Happened):
                number: int = 0

            @dataclass(slots=True)
            @message("shop.below")
            class Below(Happened):
                number: int = 0

            class Events:
                @dataclass(slots=True)
                @message("shop.nested")
                class Nested(Happened):
                    number: int = 0

            @service
            @dataclass(slots=True)
            class ServiceAbove:
                @event_handler
                def on(self, event: Happened) -> None:
                    seen.append((type(self) is ServiceAbove, event))

            @dataclass(slots=True)
            @service
            class ServiceBelow:
                @event_handler
                def on(self, event: Happened) -> None:
                    seen.append((type(self) is ServiceBelow, event))
        """,
    )
    with installed("shop"):
        import shop.handlers as shop

        for name, cls in (
            ("above", shop.Above),
            ("below", shop.Below),
            ("nested", shop.Events.Nested),
        ):
            shop.seen.clear()
            event_bus.publish({"number": 1}, route=f"shop.{name}")

            assert shop.seen == [(True, cls(1)), (True, cls(1))]
        assert problems_of(*Rule) == []
        assert names_of("shop") == ["shop.ServiceAbove.on", "shop.ServiceBelow.on"]


def test_a_name_is_known_without_a_handler_of_its_class(make_app):
    """A class named with @message in an installed app is converted to by its name. [B05.5]"""
    make_app(
        "shop",
        messages="""
            from dataclasses import dataclass

            from django_cqrs import message

            @message("shop.sold")
            @dataclass
            class Sold:
                number: int = 0
        """,
        handlers="""
            from django_cqrs import event_handler

            seen = []

            @event_handler("shop.*")
            def on_any(event: object) -> None:
                seen.append(event)
        """,
    )
    with installed("shop"):
        import shop.handlers
        import shop.messages

        event_bus.publish({"number": "1"}, route="shop.sold")

        assert shop.handlers.seen == [shop.messages.Sold(1)]


def test_a_name_used_twice_in_two_apps_is_a_check(make_app):
    """Two apps that name two classes alike are refused with both places. [B05.5]"""
    text = """
        from django_cqrs import message

        @message("order.placed")
        class OrderPlaced: pass
    """
    one, two = make_app("one", messages=text), make_app("two", messages=text)
    with installed(one, two):
        assert problems_of(*Rule) == [
            (
                "Two message classes are named 'order.placed': one.messages.OrderPlaced "
                "and two.messages.OrderPlaced. Give each its own name with @message. "
                "(django_cqrs.E008)"
            )
        ]


# Before Django is ready -----------------------------------------------------------


def run(text):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        check=False,
        text=True,
    )
    return done.stdout.strip(), done.stderr.strip().rpartition("\n")[2]


def test_a_bus_used_before_django_is_ready_is_refused():
    """Before the apps are loaded the global buses say so, as Django does."""
    out, error = run(
        """
        from django.conf import settings

        settings.configure(INSTALLED_APPS=["django_cqrs"])
        from django_cqrs import query_bus

        query_bus.ask("text")
        """
    )

    assert out == ""
    assert error == (
        "django.core.exceptions.AppRegistryNotReady: Models aren't loaded yet."
    )


def test_importing_the_package_needs_no_settings():
    """`import django_cqrs`, decorating and a registry of one's own need no Django."""
    out, error = run(
        """
        from django_cqrs import Registry, query_handler

        @query_handler("x")
        def handle(number: int) -> int:
            return number + 1

        registry = Registry()
        registry.add(handle)
        print("declared")
        """
    )

    assert (out, error) == ("declared", "")


def test_our_app_may_stand_before_or_after_the_others():
    """The place of 'django_cqrs' in INSTALLED_APPS does not matter."""
    text = """
        import django
        from django.conf import settings

        settings.configure(INSTALLED_APPS={apps!r}, USE_TZ=True)
        django.setup()
        from django_cqrs import query_bus
        from tests.testapp.messages import FindTickets

        print(query_bus.ask(FindTickets("x")))
    """
    names = ["django_cqrs", "tests.testapp"]

    assert run(text.format(apps=names)) == ("['x']", "")
    assert run(text.format(apps=names[::-1])) == ("['x']", "")
