"""The migration that gives batches a secret token, ticks their expression, and results the time of the job's put."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0002_promises")]
    operations = [MigrateTables(version=7)]
