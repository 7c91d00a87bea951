"""Batches have a secret, ticks the expression that they are of, and results the time at which their job was put."""

from __future__ import annotations

from django.db import migrations

from pqcore.integrations.django.operations import MigrateTables


class Migration(migrations.Migration):
    """Not atomic: see the first."""

    atomic = False
    dependencies = [("pqcore", "0002_promises")]
    operations = [MigrateTables(version=7)]
