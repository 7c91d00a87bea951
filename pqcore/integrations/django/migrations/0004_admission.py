"""The migration that adds priorities, and the tables of keys, rules and workers."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0003_batches_and_ticks")]
    operations = [MigrateTables(version=9)]
