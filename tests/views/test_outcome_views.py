"""The address that an accepted command is answered with, and what is told there."""

from __future__ import annotations

import json
import types
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, Client
from django.urls import NoReverseMatch, include, path

from django_cqrs import Retry, command_handler
from django_cqrs.interception import STOP, pointcut, pre_send
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.views import AsyncCommandView, CommandView, OutcomeView
from tests.outbox.support import make_due, worker_of
from tests.support import registry_of

pytestmark = pytest.mark.django_db(transaction=True)


@command_handler("outcomes.mail", channel="outbox", retry=Retry(attempts=2, delay=60))
def mail(to: str) -> None:
    if to == "nobody":
        raise ValueError("the secret of nobody")


@command_handler("outcomes.count")
def count(to: str) -> int:
    return len(to)


@pytest.fixture
def registry():
    return registry_of(mail, count)


@pytest.fixture
def serve(settings, registry):
    """Serve views of the commands, and a view of outcomes below a prefix."""

    def serve(view=CommandView, outcome=OutcomeView, **initkwargs):
        options = {"bus": registry.command_bus, "outcome_view": "outcome"}
        urls = types.ModuleType("urls")
        outcomes = [
            path("<uuid:message_id>/", outcome.as_view(), name="outcome"),
        ]
        urls.urlpatterns = [
            path(
                "mail/",
                view.as_view(route="outcomes.mail", **{**options, **initkwargs}),
            ),
            path("count/", view.as_view(route="outcomes.count", **options)),
            path("outcomes/", include(outcomes)),
        ]
        settings.ROOT_URLCONF = urls
        return Client()

    return serve


def post(client, to="ada", where="/mail/"):
    return client.post(where, json.dumps(to), content_type="application/json")


@pytest.mark.parametrize("view", [CommandView, AsyncCommandView])
def test_an_accepted_command_is_answered_with_its_address(serve, view):
    """202 has the message's id, and the address that tells its outcome."""
    client = serve(view)
    response = post(client)

    message_id = str(OutboxMessage.objects.get().message_id)
    assert response.status_code == 202
    assert response.json() == {"message_id": message_id}
    assert response["Location"] == f"/outcomes/{message_id}/"
    told = client.get(response["Location"])
    assert told.status_code == 200
    assert told["Cache-Control"] == "no-store"
    assert told.json() == {
        "message_id": message_id,
        "status": "waiting",
        "attempts": 0,
        "at": told.json()["at"],
        "next_attempt_at": None,
    }


def test_a_handler_that_is_called_immediately_is_answered_as_ever(serve):
    """There is a result, so nothing is to be asked."""
    response = post(serve(), where="/count/")

    assert (response.status_code, response.json()) == (200, 3)
    assert "Location" not in response


def test_a_failure_is_told_without_its_text(serve, registry):
    """A client learns the attempts and the time of the next one, and no secret."""
    client = serve()
    address = post(client, "nobody")["Location"]
    worker_of(registry).run()
    failed = client.get(address)
    make_due()
    worker_of(registry).run()
    dead = client.get(address)

    assert failed.json()["status"] == "failed"
    assert failed.json()["attempts"] == 1
    assert failed.json()["next_attempt_at"] is not None
    assert dead.json()["status"] == "dead"
    for response in (failed, dead):
        assert "secret" not in response.text
        assert "ValueError" not in response.text
        assert "outcomes.mail" not in response.text


def test_what_was_handled_is_told_by_the_journal(serve, registry, settings):
    """With a journal it is handled; without one it is as if it had never been."""
    client = serve()
    unknown = post(client)["Location"]
    worker_of(registry).run()
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=1)}
    known = post(client)["Location"]
    worker_of(registry).run()

    assert client.get(known).json()["status"] == "handled"
    response = client.get(unknown)
    assert response.status_code == 404
    assert response["Content-Type"] == "application/problem+json"
    assert response.json()["detail"] == "Nothing is known of this message."


def test_an_unknown_id_is_not_found(serve):
    """Neither an id that nobody has, nor what is no id."""
    client = serve()

    assert client.get(f"/outcomes/{uuid4()}/").status_code == 404
    assert client.get("/outcomes/1/").status_code == 404
    assert client.post(f"/outcomes/{uuid4()}/").status_code == 405


def test_an_id_in_a_path_of_text_may_be_wrong(rf):
    """The path says <str:message_id>: what is not an id is not found either."""
    view = OutcomeView.as_view()

    assert view(rf.get("/"), message_id="nothing").status_code == 404
    assert view(rf.get("/"), message_id=str(uuid4())).status_code == 404


def test_a_message_that_an_interceptor_stopped_has_no_address(serve, registry):
    """It is accepted, as without outcome_view=, and nobody can ask of it."""

    @pre_send(pointcut.handler("*"))
    def stop():
        return STOP

    registry.add(stop)
    response = post(serve())

    assert response.status_code == 202
    assert "Location" not in response
    assert response.content == b""


def test_a_wrong_name_fails_before_anything_is_sent(serve):
    """A client that got an error may send the command again."""
    client = serve(outcome_view="nowhere")

    with pytest.raises(NoReverseMatch):
        post(client)
    assert not OutboxMessage.objects.exists()


def test_a_wrong_name_is_a_problem_of_the_view(serve):
    """manage.py check finds it, unless the view makes its addresses itself."""

    class Own(CommandView):
        def outcome_url(self, message_id):
            return f"/o/{message_id}"

    client = serve()
    given = {"route": "outcomes.mail", "outcome_view": "nowhere"}
    [problem] = CommandView.cqrs_problems(given)

    assert problem.rule.id == "django_cqrs.E049"
    assert "outcome_view='nowhere'" in problem.message
    assert not list(CommandView.cqrs_problems({**given, "outcome_view": "outcome"}))
    assert not list(Own.cqrs_problems(given))
    assert client


@pytest.mark.parametrize("given", [OutcomeView, OutcomeView.as_view(), 5, b"outcome"])
@pytest.mark.parametrize("view", [CommandView, AsyncCommandView])
def test_what_is_not_the_name_of_a_url_is_refused_by_as_view(view, given):
    """One error says what is taken."""
    with pytest.raises(TypeError, match="Give the name of a URL, which is a string"):
        view.as_view(route="outcomes.mail", outcome_view=given)


def test_a_view_may_make_its_addresses_itself(serve):
    """The URL may take more than the id."""

    class Own(CommandView):
        def outcome_url(self, message_id):
            return f"/o/{message_id}?of={self.request.method}"

    response = post(serve(Own))

    message_id = OutboxMessage.objects.get().message_id
    assert response["Location"] == f"/o/{message_id}?of=POST"


def test_a_view_of_outcomes_may_tell_more(serve):
    """It has the whole outcome."""

    class Own(OutcomeView):
        def details_of(self, outcome):
            return {**super().details_of(outcome), "is_final": outcome.is_final}

    client = serve(outcome=Own)

    assert client.get(post(client)["Location"]).json()["is_final"] is False


def test_the_view_needs_the_outbox(settings):
    """Its tables are not there without the app."""
    settings.INSTALLED_APPS = ["django_cqrs"]

    with pytest.raises(ImproperlyConfigured, match=r"needs 'django_cqrs\.outbox'"):
        OutcomeView.as_view()


def test_the_view_works_under_asgi(serve):
    """Django runs it in a thread there."""
    from asgiref.sync import async_to_sync

    address = post(serve())["Location"]

    assert async_to_sync(AsyncClient().get)(address).status_code == 200
