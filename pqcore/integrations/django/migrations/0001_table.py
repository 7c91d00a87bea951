"""The migration that makes the table, and the models for it."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.models import DeadLetter, Job
from pqcore.integrations.django.operations import MigrateTables, unmanaged


class Migration(migrations.Migration):
    """A non-atomic migration, so that a table with rows is migrated while it is in use."""

    initial = True
    atomic = False
    operations = [MigrateTables(version=5, creates=True), unmanaged(Job), unmanaged(DeadLetter)]
