"""What it has."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Order(models.Model):
    """An order."""

    name = models.TextField()
    done = models.BooleanField(default=False)

    objects: ClassVar = models.Manager()

    class Meta:  # noqa: D106 - Django's
        app_label = "shop"
