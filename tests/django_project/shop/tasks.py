"""What its workers do."""

from __future__ import annotations

import os

from asgiref.sync import sync_to_async
from django.db import connection, transaction

from django_project.shop.models import Order
from pqcore.integrations.django import queue
from pqcore.tasks import current

orders = queue("orders")


@orders.task()
def ship(job_id: int, pk: int, note: str = "") -> None:
    """Ship an order, and finish the job in the transaction of the task's writes."""
    with orders as cursor:
        cursor.execute("UPDATE shop_order SET done = true, name = %s WHERE id = %s", [f"shipped {note}", pk])
        current().finish()


@orders.task(run_in="process")
def ship_in_process(job_id: int, pk: int) -> None:
    """Ship an order, in a process of the worker's."""
    Order.objects.filter(pk=pk).update(done=True, name=f"shipped by {os.getpid()}")


@orders.task()
async def ship_async(job_id: int, pk: int) -> None:
    """Ship an order, in a coroutine."""
    await Order.objects.filter(pk=pk).aupdate(done=True, name="shipped in a coroutine")
    await sync_to_async(queue("others").put)("followed")


@orders.task(max_retries=0)
def fail(job_id: int) -> None:
    """Fail."""
    raise RuntimeError("the <b>reason</b>")


@orders.task()
def pids(job_id: int) -> None:
    """Note which connection this job has."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop_order (name, done) SELECT pg_backend_pid()::text, true")


@orders.task()
def lose(job_id: int) -> None:
    """Lose the connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@orders.task()
def part(job_id: int) -> None:
    """Close the connection."""
    connection.close()
