"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class PQCoreConfig(AppConfig):
    """The app ``pqcore``: migrations, models, admin, checks and the management command."""

    name = "pqcore.integrations.django"
    label = "pqcore"
    verbose_name = "Queues"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks, and the plugin for runs of jobs."""
        from pqcore.integrations.django import checks, stale_connections

        checks.register_all()
        stale_connections.register()
