"""The middleware that gives all messages of a request the same headers."""

import asyncio
import types
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID, uuid4

import httpx
import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse, JsonResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.utils.decorators import sync_only_middleware

from django_cqrs import (
    CommandBus,
    Header,
    Headers,
    Message,
    Registry,
    command_handler,
    event_handler,
)
from django_cqrs.exceptions import InvalidHeader, MissingHeader
from django_cqrs.messages import current
from django_cqrs.middleware import MessageHeadersMiddleware

MIDDLEWARE = "django_cqrs.middleware.MessageHeadersMiddleware"
ORIGIN = current.get()


@dataclass(frozen=True)
class Read:
    pass


@dataclass(frozen=True)
class ReadAgain:
    pass


def own_headers(headers):
    names = {"message_id", "causation_id", "correlation_id", "timestamp"}
    names |= {"attempt", "is_last_attempt"}
    return {name: value for name, value in headers.items() if name not in names}


@command_handler(atomic=False)
def read(command: Read, commands: CommandBus) -> dict[str, object]:
    return commands.dispatch(ReadAgain())


@command_handler(atomic=False)
def read_again(command: ReadAgain, headers: Headers) -> dict[str, object]:
    return own_headers(headers)


registry = Registry()
registry.add(read)
registry.add(read_again)
bus = registry.command_bus


def view(request):
    given = request.GET.get("given")
    headers = {"tenant": given} if given else None
    return JsonResponse(bus.dispatch(Read(), headers=headers))


async def async_view(request):
    given = request.GET.get("given")
    headers = {"tenant": given} if given else None
    return JsonResponse(await bus.adispatch(Read(), headers=headers))


class Broken(Exception):
    """What the view here raises on purpose."""


def failing_view(request):
    raise Broken


urlpatterns = [
    path("sync", view),
    path("async", async_view),
    path("failing", failing_view),
]


def tenant_of(request):
    return {"tenant": request.headers.get("X-Tenant", "public")}


async def atenant_of(request):
    await asyncio.sleep(0)
    return tenant_of(request)


class TenantOf:
    async def __call__(self, request):
        return await atenant_of(request)


CALLABLES = [
    pytest.param(tenant_of, id="def"),
    pytest.param(atenant_of, id="async def"),
    pytest.param(TenantOf(), id="async object"),
    pytest.param(f"{__name__}.tenant_of", id="path"),
]


@pytest.fixture
def use(settings):
    """Return what configures the middleware with a callable."""

    def use(headers_of, *others):
        settings.ROOT_URLCONF = __name__
        settings.DJANGO_CQRS = {"REQUEST_HEADERS": headers_of}
        settings.MIDDLEWARE = [*others, MIDDLEWARE]

    return use


def get(client, *args, **kwargs):
    if isinstance(client, AsyncClient):
        return async_to_sync(client.get)(*args, **kwargs)
    return client.get(*args, **kwargs)


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("where", ["/sync", "/async"])
@pytest.mark.parametrize("headers_of", CALLABLES)
def test_messages_of_a_request_have_its_headers(use, client, where, headers_of):
    """
    The callable's headers are those of every message of the request, nested ones too,
    in views of both kinds, under WSGI and ASGI, whether it is async itself or not. [B17.1]
    """
    use(headers_of)
    response = get(client(), where, headers={"X-Tenant": "acme"})

    assert response.json() == {"tenant": "acme"}
    assert current.get() is ORIGIN


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("where", ["/sync", "/async"])
def test_a_given_header_stands_before_the_requests(use, client, where):
    """headers= of a call wins over the request's, for that call. [B17.1]"""
    use(tenant_of)
    response = get(client(), f"{where}?given=mine", headers={"X-Tenant": "acme"})

    assert response.json() == {"tenant": "mine"}


def test_the_requests_headers_stay_for_the_next_message(use):
    """A given header is for its own chain: the request's next message has its own. [B17.1]"""
    use(tenant_of)

    def twice(request):
        bus.dispatch(Read(), headers={"tenant": "mine"})
        return JsonResponse(bus.dispatch(Read()))

    urls = types.ModuleType("urls")
    urls.urlpatterns = [path("", twice)]
    from django.test import override_settings

    with override_settings(ROOT_URLCONF=urls):
        assert Client().get("/").json() == {"tenant": "public"}


@pytest.mark.parametrize("where", ["/sync", "/async"])
def test_concurrent_requests_have_each_their_own(use, where):
    """Requests of one event loop never see each other's headers. [B17.1]"""
    use(tenant_of)

    async def main():
        transport = httpx.ASGITransport(ASGIHandler())
        async with httpx.AsyncClient(
            transport=transport, base_url="http://testserver"
        ) as client:
            responses = await asyncio.gather(
                *(client.get(where, headers={"X-Tenant": f"t{n}"}) for n in range(30))
            )
        return [response.json()["tenant"] for response in responses]

    assert asyncio.run(main()) == [f"t{n}" for n in range(30)]


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_nothing_remains_after_a_request_that_fails(use, client):
    """After a view that raises, the next message has nothing of the request. [B17.1]"""
    use(tenant_of)
    with pytest.raises(Broken):
        get(client(), "/failing")

    assert current.get() is ORIGIN
    assert bus.dispatch(Read()) == {}


def test_a_request_may_give_the_correlation_id(use):
    """correlation_id may be among the headers: all messages of the request share it. [B17.1]"""
    key = uuid4()
    seen = []
    registry = Registry()

    @registry.add
    @command_handler(atomic=False)
    def handle(command: Read, message: Message) -> None:
        seen.append((message.correlation_id, message.causation_id, message.message_id))

    use(lambda request: {"correlation_id": str(key)})
    middleware = MessageHeadersMiddleware(
        lambda request: HttpResponse(registry.command_bus.dispatch(Read()))
    )
    middleware(RequestFactory().get("/"))
    middleware(RequestFactory().get("/"))

    assert [correlation for correlation, _, _ in seen] == [key, key]
    assert [causation for _, causation, _ in seen] == [None, None]
    assert len({message_id for _, _, message_id in seen}) == 2
    assert isinstance(seen[0][2], UUID)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("where", ["/sync", "/async"])
def test_the_callable_may_read_the_database(use, client, where):
    """request.user may be read by the callable, in an asynchronous stack as well. [B17.1]"""
    use(
        lambda request: {"user": request.user.get_username()},
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    )
    from django.test import override_settings

    engine = "django.contrib.sessions.backends.signed_cookies"
    with override_settings(SESSION_ENGINE=engine):
        client = client()
        client.force_login(User.objects.create_user("ada"))
        response = get(client, where)

    assert response.json() == {"user": "ada"}


@sync_only_middleware
def synchronous_neighbour(get_response):
    def middleware(request):
        return get_response(request)

    return middleware


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("where", ["/sync", "/async"])
def test_beside_a_synchronous_middleware(use, client, where):
    """A neighbour that is synchronous only changes nothing, on either side. [B17.1]"""
    use(tenant_of, f"{__name__}.synchronous_neighbour")
    from django.conf import settings

    settings.MIDDLEWARE = [*settings.MIDDLEWARE, settings.MIDDLEWARE[0]]

    assert get(client(), where).json() == {"tenant": "public"}


# Mistakes -------------------------------------------------------------------------


def test_without_the_setting_it_is_left_out(settings):
    """Django leaves a middleware out that raises MiddlewareNotUsed. [B17.1]"""
    settings.DJANGO_CQRS = {}
    with pytest.raises(MiddlewareNotUsed) as caught:
        MessageHeadersMiddleware(lambda request: HttpResponse())

    assert str(caught.value) == 'DJANGO_CQRS["REQUEST_HEADERS"] is not set.'


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_without_the_setting_requests_are_served(settings, client):
    """A request is answered, and its messages have no headers. [B17.1]"""
    settings.ROOT_URLCONF = __name__
    settings.DJANGO_CQRS = {}
    settings.MIDDLEWARE = [MIDDLEWARE]

    assert get(client(), "/sync").json() == {}


def test_a_path_that_cannot_be_imported(settings):
    """A path that leads nowhere is said when the server starts. [B17.1]"""
    settings.DJANGO_CQRS = {"REQUEST_HEADERS": "tests.nowhere.headers"}
    with pytest.raises(ImproperlyConfigured) as caught:
        MessageHeadersMiddleware(lambda request: HttpResponse())

    assert str(caught.value) == (
        "DJANGO_CQRS['REQUEST_HEADERS'] = 'tests.nowhere.headers' cannot be imported: "
        "No module named 'tests.nowhere'."
    )


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_callable_that_raises_fails_the_request(use, client):
    """What the callable raises reaches Django, and the view is not called. [B17.1]"""

    def broken(request):
        raise LookupError("no tenant")

    use(broken)
    with pytest.raises(LookupError, match="no tenant"):
        get(client(), "/sync")

    client = client(raise_request_exception=False)
    assert get(client, "/sync").status_code == 500


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("headers", "text"),
    [
        (
            {"message_id": "1"},
            (
                "The header 'message_id' is reserved: every message has its own. "
                "Choose another name; only correlation_id may be given."
            ),
        ),
        (
            {"user": ["ada"]},
            (
                "The header 'user' has a value of type list. A header's value must "
                "be a str, int, float, bool, None, UUID, Decimal, datetime or Enum."
            ),
        ),
        (None, "headers= takes a mapping of names to values, not NoneType."),
        (
            {"correlation_id": "x"},
            "The header 'correlation_id' must be a UUID, not 'x'.",
        ),
    ],
)
def test_headers_that_are_refused(use, client, headers, text):
    """A reserved name or a value that cannot travel raises InvalidHeader at once. [B17.1]"""
    use(lambda request: headers)
    with pytest.raises(InvalidHeader) as caught:
        get(client(), "/sync")

    assert str(caught.value) == text
    assert current.get() is ORIGIN


def test_a_handler_behind_it_may_require_a_header(use):
    """A required header that the callable does not give is missing as ever. [B17.1]"""
    registry = Registry()

    @registry.add
    @event_handler
    def handle(event: Read, user: Annotated[int, Header("user_id")]) -> None: ...

    use(tenant_of)
    middleware = MessageHeadersMiddleware(
        lambda request: registry.event_bus.publish(Read())
    )
    with pytest.raises(MissingHeader, match="requires the header 'user_id'"):
        middleware(RequestFactory().get("/"))


def test_it_is_of_the_kind_of_what_it_wraps(use):
    """It is asynchronous where what it wraps is, also where that is only marked so. [B17.1]"""
    use(tenant_of)

    class Marked:
        def __init__(self):
            markcoroutinefunction(self)

        async def __call__(self, request):
            return HttpResponse()

    async def coroutine_function(request):
        return HttpResponse()

    assert iscoroutinefunction(MessageHeadersMiddleware(coroutine_function))
    assert iscoroutinefunction(MessageHeadersMiddleware(Marked()))
    assert not iscoroutinefunction(MessageHeadersMiddleware(lambda r: HttpResponse()))
    assert MessageHeadersMiddleware.sync_capable
    assert MessageHeadersMiddleware.async_capable
