from django.urls import include, path

from django_cqrs.views import CommandView, QueryView
from tests.apps.senders import views
from tests.apps.senders.messages import FindBook, Lend


class LendView(CommandView):
    message = Lend


urlpatterns = [
    path("pages/", views.page),
    path(
        "api/",
        include(
            [
                path("lend/", LendView.as_view()),
                path("return/", CommandView.as_view(route="book.return")),
                path("find/<int:book>/", QueryView.as_view(message=FindBook)),
            ]
        ),
    ),
]
