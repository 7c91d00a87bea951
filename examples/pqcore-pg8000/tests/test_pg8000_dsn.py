"""DSNs, which pg8000 leaves to us."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from pqcore.backend import CONNECT_TIMEOUT
from pqcore_pg8000.dsn import VARIABLES, arguments

WORDS = "user=ann password = p@ss host=h port=5433 dbname='app' connect_timeout=3 sslmode=require application_name=a+b"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ann:p%40ss@h:5433/app?connect_timeout=3&sslmode=require&application_name=a+b",
        WORDS,
    ],
    ids=["URL", "words"],
)
def test_dsn_url_and_keywords_give_the_same_arguments(dsn: str) -> None:
    assert arguments(dsn) == {
        "user": "ann",
        "password": "p@ss",
        "address": ("h", 5433),
        "host": "h",
        "database": "app",
        "application_name": "a+b",
        "timeout": 3.0,
        "ssl_context": True,
        "startup_params": {},
    }


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        (r"user=ann password='it\'s \\ here'", {"password": r"it's \ here"}),
        ("user=ann password=''", {"password": None}),
        ("postgresql://ann@[::1]:5433/app", {"address": ("::1", 5433)}),
        ("postgresql://ann@/app?host=/run/pg&port=5433", {"address": "/run/pg/.s.PGSQL.5433", "ssl_context": False}),
        ("postgresql://ann@/", {"address": ("localhost", 5432), "database": None, "ssl_context": None}),
        ("host=h user=ann sslmode=disable", {"ssl_context": False}),
        ("host=h user=ann connect_timeout=0", {"timeout": None}),
        ("host=h user=ann", {"timeout": CONNECT_TIMEOUT}),
        ("host=h user=ann options='-c search_path=s'", {"startup_params": {"options": "-c search_path=s"}}),
    ],
)
def test_dsn_settings_become_driver_arguments(dsn: str, said: dict[str, Any]) -> None:
    found = arguments(dsn)
    assert {key: found[key] for key in said} == said


def test_variables_say_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"PGUSER": "bob", "PGDATABASE": "app", "PGCONNECT_TIMEOUT": "4"}.items():
        monkeypatch.setenv(variable, value)
    found = arguments("postgresql://db.example")
    assert (found["user"], found["database"], found["timeout"]) == ("bob", "app", 4.0)
    assert arguments("user=ann")["user"] == "ann"


def test_dsn_sslmode_verify_checks_the_certificate() -> None:
    for mode, checks_host in (("verify-ca", False), ("verify-full", True)):
        context = arguments(f"host=h user=ann sslmode={mode}")["ssl_context"]
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname is checks_host


@pytest.mark.parametrize("dsn", ["secret", "user=ann secret", "postgresql://ann:secret@h:port/app"])
def test_dsn_that_cannot_be_parsed_is_refused_without_its_password(dsn: str) -> None:
    with pytest.raises(ValueError, match="neither a URL") as caught:
        arguments(dsn)
    assert "secret" not in str(caught.value)
