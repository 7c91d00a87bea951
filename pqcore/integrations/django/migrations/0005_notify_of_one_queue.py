"""A trigger that takes less time over statements whose rows are all of one queue."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """Not atomic: see the first."""

    atomic = False
    dependencies = [("pqcore", "0004_admission")]
    operations = [MigrateTables(version=10)]
