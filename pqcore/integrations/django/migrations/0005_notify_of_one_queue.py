"""The migration that makes the trigger faster for statements whose rows all belong to one queue."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0004_admission")]
    operations = [MigrateTables(version=10)]
