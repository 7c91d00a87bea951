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
from pqcore.worker import process_main

if not apps.ready:
    django.setup()

from pqcore.integrations.django import stale_connections
from pqcore.integrations.django import tasks as _tasks  # noqa: F401 - whose function runs Django's own tasks

autodiscover_modules("tasks")
if __name__ not in process_main.PRELOADED_MODULES:
    process_main.PRELOADED_MODULES.append(__name__)
    process_main.CALL_CONTEXTS.append(stale_connections.renewed)


def __getattr__(alias: str) -> Any:
    try:
        return pqs[alias]
    except ConfigurationError as exc:
        raise AttributeError(str(exc)) from exc
