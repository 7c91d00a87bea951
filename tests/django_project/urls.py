"""Its views: the admin, and two that put a job and write a row."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import admin
from django.db import transaction
from django.http import HttpResponse
from django.urls import path

from django_project.shop.models import Order
from pqcore.integrations.django import queue


def order(request: Any) -> HttpResponse:
    """Write an order and put its job; both, or neither."""
    with transaction.atomic():
        made = Order.objects.create(name="by a view")
        queue("orders").put({"order": made.pk})
        if "fail" in request.GET:
            raise ValueError("fail")
    return HttpResponse(made.pk)


async def order_async(request: Any) -> HttpResponse:
    """The same, in an asynchronous view."""
    return await sync_to_async(order)(request)


urlpatterns = [path("admin/", admin.site.urls), path("order", order), path("order-async", order_async)]
