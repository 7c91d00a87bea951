"""Targets for workers of a Django project: each table of ``PQCORE``, by its alias.

    pqcore worker pqcore.integrations.django.worker:default --queues emails

Importing this module sets Django up, and imports the modules ``tasks`` of all apps, so that their tasks are known. The
processes of ``manage.py pqcore worker`` import it.
"""

from __future__ import annotations

from typing import Any

import django
from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from pqcore.errors import ConfigurationError
from pqcore.integrations.django.queues import pqs
from pqcore.tasks.registry import TaskDeclarations
from pqcore.worker import process_main

if not apps.ready:
    django.setup()

from pqcore.integrations.django import stale_connections
from pqcore.integrations.django.tasks import (
    may_use_any_queue,
    queues_of_tasks,
)  # the import declares the functions that run Django's own tasks

autodiscover_modules("tasks")
if __name__ not in process_main.PRELOADED_MODULES:
    process_main.PRELOADED_MODULES.append(__name__)
    process_main.CALL_CONTEXTS.append(stale_connections.renewed)


for _alias in pqs:
    TaskDeclarations.add_queues_of_tasks({*pqs[_alias].configuration.queues, *queues_of_tasks(_alias)})
    if may_use_any_queue(_alias):
        TaskDeclarations.add_queues_of_tasks([None])


def queues_to_work_on(alias: str) -> list[str]:
    """Return the names of the queues that a worker works on, unless the command line names queues.

    The list has the queues of ``QUEUES``, the queues on which tasks are declared, and the queues of Django's own tasks.

    Args:
        alias: The alias of the table in ``PQCORE``.
    """
    pq = pqs[alias]
    declared = [queue.name for queue in pq.queues_with_tasks()]
    names = dict.fromkeys([*pq.configuration.queues, *declared, *sorted(queues_of_tasks(alias))])
    return list(names) or ["default"]


def __getattr__(alias: str) -> Any:
    try:
        return pqs[alias]
    except ConfigurationError as exc:
        raise AttributeError(str(exc)) from exc
