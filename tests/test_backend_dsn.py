"""DSNs that a backend reads because its driver cannot: the result is the same as libpq's, which psycopg reports."""

from __future__ import annotations

import pytest
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from pqcore.backend_dsn import dsn_parameters


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ann:p%40ss%3A@h.example:5433/my%20app?connect_timeout=3&application_name=a+b",
        "postgresql://ann@h",
        "postgresql://",
        "postgres:///app",
        "postgresql:///app?host=/run/pg&port=5433",
        "postgresql://%2Frun%2Fpg/app",
        "postgresql://[::1]:5433/app",
        "postgresql://a:1,b:2,[::1]:3/app?target_session_attrs=read-write",
        "postgresql://h/app?user=ann&password=",
        "postgresql://h/app?options=-c%20search_path%3Ds",
        "host=h port=5433 dbname=app",
        r"user = ann password='it\'s \\ here' dbname=''",
        "password=a://b host=h",
        "",
    ],
)
def test_dsn_parameters_are_those_of_libpq(dsn: str) -> None:
    assert dsn_parameters(dsn) == {name: str(value) for name, value in conninfo_to_dict(dsn).items()}


@pytest.mark.parametrize(
    "dsn",
    [
        "secret",
        "host=h secret",
        "host=h password='secret",
        "postgresql://ann:secret@[::1/app",
        "postgresql://ann:secret@h/app?alone",
    ],
)
def test_dsn_that_libpq_cannot_read_is_refused_without_its_password(dsn: str) -> None:
    with pytest.raises(ProgrammingError):
        conninfo_to_dict(dsn)
    with pytest.raises(ValueError, match="neither a URL") as caught:
        dsn_parameters(dsn)
    assert "secret" not in str(caught.value)
