"""The results of tasks in the admin."""

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from django_cqrs.outbox.models import StoredTaskResult
from tests.outbox.tasks import work

pytestmark = [
    pytest.mark.django_db(databases=["default", "other"]),
    pytest.mark.urls("tests.outbox.desk_urls"),
]

LIST = "/admin/django_cqrs_outbox/storedtaskresult/"


@pytest.fixture
def viewer(client):
    user = User.objects.create_user("viewer", is_staff=True)
    for codename in ("view_storedtaskresult", "view_outboxmessage"):
        user.user_permissions.add(Permission.objects.get(codename=codename))
    client.force_login(user)
    return client


def test_the_list(viewer, run_tasks):
    """It has the task, its status and its attempts, and can be filtered."""
    good, _bad = work.answer.enqueue(), work.fail.enqueue()
    run_tasks()

    page = viewer.get(LIST).content.decode()
    assert "django.tasks:default:tests.outbox.tasks.work.answer" in page
    assert "successful" in page
    found = viewer.get(LIST, {"status__exact": "SUCCESSFUL"}).context["cl"].result_list
    assert [str(each.pk) for each in found] == [good.id]
    found = viewer.get(LIST, {"q": good.id}).context["cl"].result_list
    assert [str(each.pk) for each in found] == [good.id]
    assert viewer.get(LIST, {"q": "no id"}).context["cl"].result_count == 0


def test_one_result(viewer, run_tasks):
    """The page has the arguments, the value, the errors, and a way to the timeline."""
    good, bad = work.give_back.enqueue({"a": "ö"}), work.fail.enqueue()
    run_tasks()

    def page_of(result):
        address = reverse(
            "admin:django_cqrs_outbox_storedtaskresult_change", args=[result.id]
        )
        return viewer.get(address).content.decode()

    page = page_of(good)
    assert "&quot;a&quot;: &quot;ö&quot;" in page
    row = StoredTaskResult.objects.get(pk=good.id)
    assert f"/timeline/{row.correlation_id}/" in page
    assert "ValueError: This task fails." in page_of(bad)


def test_results_are_only_viewed(admin_client, run_tasks):
    """Nobody adds, changes or deletes one by hand, not even a superuser."""
    result = work.answer.enqueue()
    run_tasks()

    assert admin_client.get(f"{LIST}add/").status_code == 403
    address = f"{LIST}{result.id}/change/"
    assert admin_client.post(address, {"status": "FAILED"}).status_code == 403
    assert admin_client.get(f"{LIST}{result.id}/delete/").status_code == 403
    result.refresh()
    assert result.status == "SUCCESSFUL"


def test_without_the_permission(client):
    """Somebody who may see other rows sees none of these."""
    user = User.objects.create_user("other", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_outboxmessage"))
    client.force_login(user)

    assert client.get(LIST).status_code == 403
