"""A server in a container, by testcontainers: the error if the container does not start."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from testcontainers.core import config

from pqcore.errors import ConfigurationError
from pqcore.testing.server import server


class Images(BaseHTTPRequestHandler):
    """A fake of Docker's HTTP API, on a machine that has no image and reaches no registry."""

    def do_GET(self) -> None:
        self._answer(200, {"ApiVersion": "1.43", "Version": "24.0", "Id": "x", "OSType": "linux"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(404, {"message": "No such image"})

    def _answer(self, status: int, told: dict[str, str]) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Ask for a server in a container; return the error."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Images) as docker:
        thread = threading.Thread(target=docker.serve_forever)
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{docker.server_port}")
        monkeypatch.setenv("PQCORE_TEST_CONTAINER", "postgres:15")
        monkeypatch.delenv("PQCORE_TEST_DSN", raising=False)

        def asked() -> str:
            with pytest.raises(ConfigurationError) as caught, server():
                pass
            return str(caught.value)

        yield asked
        docker.shutdown()
        thread.join()


@pytest.mark.parametrize("disabled", [False, True])
def test_container_error_names_the_variable_when_the_reaper_image_is_missing(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[], str], disabled: bool
) -> None:
    monkeypatch.setattr(config.testcontainers_config, "ryuk_disabled", disabled)
    told = start()
    assert told.startswith("the container of postgres:15 did not start: ")
    assert ("set TESTCONTAINERS_RYUK_DISABLED=true" in told) is not disabled
    assert "No such image" in told


def test_container_error_says_how_to_install_testcontainers(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[], str]
) -> None:
    for module in ("testcontainers.community.postgres", "testcontainers.postgres"):
        monkeypatch.setitem(sys.modules, module, None)
    assert start().endswith("pip install 'pqcore[container]'")
