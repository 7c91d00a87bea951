"""A table says which code works on it."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """Not atomic: see the first."""

    atomic = False
    dependencies = [("pqcore", "0001_table")]
    operations = [MigrateTables(version=6)]
