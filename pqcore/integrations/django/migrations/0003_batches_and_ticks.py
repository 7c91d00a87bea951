"""The migration that adds columns: the token of a batch, the expression of a tick, and when a result's job was put."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0002_promises")]
    operations = [MigrateTables(version=7)]
