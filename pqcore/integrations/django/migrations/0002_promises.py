"""The migration that makes each table record which versions of pqcore can use it."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0001_table")]
    operations = [MigrateTables(version=6)]
