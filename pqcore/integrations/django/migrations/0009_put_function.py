"""The migration that adds the function that puts jobs from SQL."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0008_schedules")]
    operations = [MigrateTables(version=14)]
