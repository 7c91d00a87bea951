"""The migration that adds the table of attempts, and a column for the jobs that each worker runs."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0005_notify_of_one_queue")]
    operations = [MigrateTables(version=11)]
