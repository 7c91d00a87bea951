"""The table, and the models that look at it."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.models import DeadLetter, Job
from pqcore.integrations.django.operations import MigrateTables, unmanaged


class Migration(migrations.Migration):
    """Not atomic: a table that has rows is brought up to date while it is used."""

    initial = True
    atomic = False
    operations = [MigrateTables(version=5, creates=True), unmanaged(Job), unmanaged(DeadLetter)]
