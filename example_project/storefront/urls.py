"""The addresses of the shop's pages."""

from __future__ import annotations

from django.urls import path

from storefront import views

app_name = "storefront"

urlpatterns = [
    path("", views.home, name="home"),
    path("orders/", views.order_list, name="orders"),
    path("orders/new/", views.place_order, name="place-order"),
    path("orders/<int:order_id>/", views.order_detail, name="order"),
    path("orders/<int:order_id>/cancel/", views.cancel_order, name="cancel-order"),
    path("orders/<int:order_id>/pay/", views.pay_order, name="pay-order"),
    path("orders/<int:order_id>/ship/", views.ship_order, name="ship-order"),
    path("sales/", views.sales, name="sales"),
]
