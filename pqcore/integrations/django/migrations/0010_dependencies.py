"""The migration that adds the table of dependencies, for jobs that wait until other jobs are done."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """A non-atomic migration; see 0001_table."""

    atomic = False
    dependencies = [("pqcore", "0009_put_function")]
    operations = [MigrateTables(version=15)]
