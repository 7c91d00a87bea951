"""Its settings; the database is that of DJANGO_TEST_DSN, or is set by a fixture."""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import unquote, urlsplit

from pqcore.backend_registry import importable

if "DJANGO_TEST_WITHOUT_TASKS" in os.environ:
    for name in ("django.tasks", "django_tasks"):
        sys.modules[name] = None  # type: ignore[assignment]
TASKS_MODULE = next(filter(importable, ("django.tasks", "django_tasks")), "")
"""The module of Django's own tasks; empty where there is none."""


def database(dsn: str) -> dict[str, Any]:
    """What DATABASES has for a DSN."""
    parts = urlsplit(dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
    }


SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["testserver"]
DATABASES = {"default": database(os.environ.get("DJANGO_TEST_DSN", "postgresql://nobody@nowhere.invalid/nothing"))}
DATABASES["lite"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
USE_TZ = True
TIME_ZONE = "Asia/Kolkata"  # not UTC, so that a mistake with time zones shows
ROOT_URLCONF = "django_project.urls"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "pqcore.integrations.django",
    "django_project.shop",
]
MIGRATION_MODULES: dict[str, None] = dict.fromkeys(
    ("admin", "auth", "contenttypes", "sessions", "shop")
)  # it is faster
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
PQCORE: dict[str, Any] = {
    "default": {"QUEUES": {"orders": {}, "archived": {"retention": "archive"}, "mails": {"retention": "delete"}}}
}
TASKS = {
    "default": {
        "BACKEND": "pqcore.integrations.django.tasks.PQCoreBackend",
        "QUEUES": ["default", "mails"],
        "OPTIONS": {"max_retries": 1, "retry_in": 0},
    }
}
if TASKS_MODULE == "django_tasks":
    INSTALLED_APPS.append("django_tasks")
