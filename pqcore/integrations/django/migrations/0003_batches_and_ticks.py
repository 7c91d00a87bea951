"""The migration that adds columns: a token of batches, the expression of ticks, the put time of a result's job."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0002_promises")]
    operations = [MigrateTables(version=7)]
