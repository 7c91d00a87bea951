"""The web page, over real HTTP: every page, access, changes, and the stream of updates."""

from __future__ import annotations

import asyncio
import html
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import psycopg
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from released_job import lease_after_failure, lease_after_release
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from pqcore import PQ, AsyncPQ
from pqcore.cli.app import app as root
from pqcore.db.runtime import run_sync
from pqcore.errors import ConfigurationError
from pqcore.operations.results import report_progress
from pqcore.testing.commands import Command, eventually
from pqcore.testing.harness import PATIENCE
from pqcore.testing.http_server import serving
from pqcore.web import web_app
from pqcore.web.application import MOST_FOLLOWERS
from pqcore.web.charts import HEIGHT, WIDTH, chart
from pqcore.web.rendering import MOST_SHOWN, age, shown
from pqcore.web.sampling import QUEUES, SAMPLES, Figures, Point, Sampler
from pqcore.web.security import POLICY, SESSION_LENGTH, SecurityMiddleware, Token
from pqcore.web.target import Target

EVIL = "<script>alert('&\"')</script>"
TOKEN = "a token that is long enough"
BACKENDS = ["psycopg2", "psycopg", "asyncpg", "psycopg-async"]


@contextmanager
def visiting(app: Any) -> Iterator[httpx.Client]:
    """A client of the application, which a real server serves in a thread."""
    with serving(app) as address, httpx.Client(base_url=address, timeout=PATIENCE, verify=False) as client:
        yield client


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def execute(dsn: str, statement: str, *values: Any) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def bury(dsn: str, queue: str, job_id: int, message: str = "no", traceback: str = "Traceback: no") -> None:
    """Make a dead letter of a job that waits."""
    error = json.dumps({"type": "builtins.ValueError", "message": message, "traceback": traceback})
    execute(
        dsn,
        "WITH gone AS (DELETE FROM queue WHERE id = %s RETURNING *)"
        " INSERT INTO queue_dead"
        " (id, q_name, data, payload, serializer, enqueued_at, attempts, failures, reason, error)"
        " SELECT id, q_name, data, payload, serializer, enqueued_at, 3, 3, 'failed', %s FROM gone",
        job_id,
        error,
    )


def path(page: str, **query: object) -> str:
    return f"/{page}?{urlencode(query)}"


def tiles(page: str) -> dict[str, str]:
    """The figures at the top of a page."""
    found = re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page)
    return {name: html.unescape(value).strip() for name, value in found}


def form_of(page: str) -> dict[str, str]:
    """Return the fields that a page's form would send."""
    return {
        html.unescape(name): html.unescape(value)
        for name, value in re.findall(r'<input (?:type="hidden" )?name="(\w+)" value="([^"]*)"', page)
    }


def confirmed(client: httpx.Client, where: str, **more: str) -> httpx.Response:
    """Follow a link to a change, and confirm it as a browser does."""
    asked = client.get(where)
    assert asked.status_code == 200, asked.text
    form = form_of(asked.text) | more
    return client.post("/change", data=form, headers={"origin": str(client.base_url).rstrip("/")})


# Pages


@pytest.mark.parametrize("backend", BACKENDS)
def test_web_pages_show_jobs_in_every_state(dsn: str, pq: PQ, backend: str) -> None:
    queue = pq["apples"]
    done = queue.put("done")
    queue.get()
    leased = queue.put({"function": "orchard.pick", "args": [], "kwargs": {}})
    assert queue.lease(600) is not None
    waiting = queue.put({"n": 1}, dedup="key of it", headers={"trace": "head of it"}, group="group of it")
    scheduled = queue.put({"n": 2}, "5m", "10m")
    parked = [queue.put({"n": 3}, group="group of it"), queue.put({"n": 4}, group="group of it")][1]
    dead = queue.put({"n": 5})
    bury(dsn, "apples", dead, "broke", "Traceback of it")
    pq["pears/pickle"].put({"bytes"})
    [(pears,)] = execute(dsn, "SELECT id FROM queue WHERE q_name = 'pears'")
    execute(dsn, "INSERT INTO queue_ticks VALUES ('apples', 'orchard.nightly', '2030-01-31 12:00Z')")
    execute(dsn, "INSERT INTO queue_archive (id, q_name, data, enqueued_at, dequeued_at, attempts)"
        " VALUES (9000, 'apples', '1', now() - interval '2 minutes', now() - interval '90 seconds', 1)")  # fmt: skip
    made: dict[str, Callable[[], Any]] = {
        "psycopg2": lambda: PQ(dsn, backend="psycopg2"),
        "psycopg": lambda: PQ(dsn, backend="psycopg"),
        "psycopg-async": lambda: AsyncPQ(dsn, backend="psycopg"),
        "asyncpg": lambda: dsn.replace("postgresql:", "postgresql+asyncpg:"),
    }
    target = made[backend]()
    with visiting(web_app(target)) as client:
        page = client.get("/").text
        expected = {"Ready": "2", "Scheduled": "1", "Leased": "1", "Parked": "2", "Dead": "1"}
        assert tiles(page).items() >= expected.items()
        assert (tiles(page)["Done, last minute"], tiles(page)["Done, last hour"]) == ("1", "2")
        assert "apples" in page
        assert "pears" in page

        page = client.get(path("queue", name="apples")).text
        assert tiles(page)["Ready"] == "1"
        assert "orchard.pick" in page
        for job_id, state in ((leased, "leased"), (waiting, "ready"), (scheduled, "scheduled"), (parked, "parked")):
            row = re.search(rf">{job_id}</a></th>\s*<td><span class=\"chip (\w+)\"", page)
            assert row is not None, state
            assert row[1] == state
        for state, job_id in (("done", done), ("dead", dead), ("done", 9000)):
            assert f">{job_id}</a>" in client.get(path("queue", name="apples", state=state)).text
        page = client.get(path("queue", name="apples", task="orchard.pick")).text
        assert f">{leased}</a>" in page
        assert f">{waiting}</a>" not in page

        page = client.get(path("job", id=waiting)).text
        for text in ("ready", "key of it", "group of it", "head of it", "&#34;n&#34;: 1"):
            assert text in page, text
        for job_id, text in ((leased, "Lease ends"), (scheduled, "Wanted by"), (parked, "group:group of it"),
            (done, "Finished"), (dead, "Traceback of it"), (9000, "the archive"), (pears, "pickle")):  # fmt: skip
            found = client.get(path("job", id=job_id))
            assert found.status_code == 200
            assert text in found.text, text

        page = client.get("/dead").text
        assert "Traceback of it" in page
        assert "Traceback of it" in client.get(path("dead", queue="apples")).text
        assert "There is no dead letter" in client.get(path("dead", queue="pears")).text
        page = client.get("/workers").text
        assert "orchard.nightly" in page
        assert "2030-01-31 12:00:00" in page
        assert f">{leased}</a>" in page
        for where in (
            "/job?id=77777",
            "/job?id=none",
            "/job?id=" + "9" * 5_000,
            path("job", id=1, queue="pears"),
            "/x",
        ):
            assert client.get(where).status_code == 404, where
        assert client.get(path("queue", name="")).status_code == 400
        assert client.get(path("queue", name="x\0")).status_code == 400
    if isinstance(target, PQ):
        target.close()


def test_web_page_shows_the_runs_of_a_job_as_its_attempts(dsn: str, pq: PQ) -> None:
    job_id = lease_after_release(pq["a"]).id
    with visiting(web_app(pq)) as client:
        assert re.search(r"<dt>Attempts</dt><dd>1</dd>", client.get(path("job", id=job_id)).text)
        row = re.search(rf">{job_id}</a></th>.*?</tr>", client.get(path("queue", name="a")).text, re.DOTALL)
        assert row is not None
        assert '<td class="number">1</td>' in row[0]


def test_web_pages_show_past_attempts_and_the_worker_of_a_job(dsn: str, pq: PQ) -> None:
    job_id = lease_after_failure(dsn, pq["a"], EVIL).id
    with visiting(web_app(pq)) as client:
        page = client.get(path("job", id=job_id)).text
        assert '<h2 id="attempts">Past attempts <span class="amount">1</span></h2>' in page
        assert EVIL not in page
        assert f"<b>ValueError</b>: {EVIL}" in html.unescape(page)
        assert "<dt>Runs on</dt><dd><bdi>h:7</bdi></dd>" in page
        for where in (path("queue", name="a"), "/workers"):
            row = re.search(rf'"running-{job_id}".*?</tr>', client.get(where).text, re.DOTALL)
            assert row is not None
            assert "<td><bdi>h:7</bdi></td>" in row[0]
        link = f'<a id="runs-w-{job_id}" href="/job?id={job_id}&amp;queue=a">{job_id}</a>'
        assert link in client.get("/workers").text


def test_web_page_shows_figures_by_task_and_the_progress_of_running_jobs(dsn: str, pq: PQ) -> None:
    queue = pq["a"]
    quick = queue.task(name="app.quick")(lambda: None)
    slow = queue.task(name="app.slow")(lambda: None)
    bury(dsn, "a", int(slow()))
    job_id = int(quick())
    leased = queue.lease(600)
    assert leased is not None
    run_sync(report_progress(pq.engine, queue, leased, json.dumps({"left": EVIL})))
    for _ in range(3):
        slow()
    quick.options(schedule_at="1h")()
    with visiting(web_app(pq)) as client:
        page = client.get(path("queue", name="a")).text
        numbers = {
            task: re.findall(r'<td class="number[^>]*>(\d+)</td>', rest)
            for task, rest in re.findall(r'id="task-\d+".*?<bdi>([\w.]+)</bdi>(.*?)</tr>', page, re.DOTALL)
        }
        assert numbers == {"app.slow": ["3", "0", "0", "1", "0"], "app.quick": ["1", "1", "0", "0", "0"]}
        assert EVIL not in page
        for where in (path("queue", name="a"), "/workers"):
            row = re.search(rf'"running-{job_id}".*?</tr>', client.get(where).text, re.DOTALL)
            assert row is not None
            assert f"<td><bdi>{json.dumps({'left': EVIL})}</bdi></td>" in html.unescape(row[0])


def test_web_pages_show_batches_and_chains(dsn: str, pq: PQ) -> None:
    queue = pq["a"]
    part, end = (queue.task(name=name)(lambda: None) for name in ("app.part", "app.end"))
    batch = queue.batch(part.call(), part.call(), then=end.call())
    first = int(queue.chain(part.call(), end.call(), end.call()))
    with visiting(web_app(pq)) as client:
        page = client.get(path("queue", name="a")).text
        row = re.search(rf'<th scope="row">{batch.id}</th>(.*?)</tr>', page, re.DOTALL)
        assert row is not None
        assert re.findall(r">(\d+|app[.]\w+)<", row[1]) == ["2", "2", "0", "app.end"]
        page = client.get(path("job", id=int(batch.jobs[0]))).text
        assert f"<dt>Batch</dt><dd>{batch.id}: 2 of 2 jobs have not ended, then <bdi>app.end</bdi></dd>" in page
        assert "<dt>Then</dt>" not in page
        page = client.get(path("job", id=first)).text
        assert "<dt>Then</dt><dd><bdi>app.end</bdi>, <bdi>app.end</bdi></dd>" in page
        assert "<dt>Batch</dt>" not in page


def test_web_page_tells_a_worker_to_take_no_more_jobs(dsn: str, pq: PQ) -> None:
    execute(
        dsn,
        "INSERT INTO queue_workers (q_name, id, host, pid, version, tasks, concurrency, started_at, seen_at)"
        " VALUES ('a', 'w', 'h', 7, '1', '[]', 1, now(), now())",
    )

    def follow(label: str) -> httpx.Response:
        link = re.search(rf'id="quiet-w" href="([^"]+)">{label}<', client.get("/workers").text)
        assert link is not None
        return confirmed(client, html.unescape(link[1]))

    with visiting(web_app(pq, changes=True)) as client:
        done = follow("Quiet")
        assert "takes no more jobs" in client.get(done.headers["location"]).text
        assert pq.workers()[0].quiet
        assert '<span class="chip parked">quiet</span>' in client.get("/workers").text
        assert follow("Take jobs again").status_code == 303
        assert not pq.workers()[0].quiet
        link = path("change", do="quiet-worker", queue="a", worker="gone")
        assert "worker 'gone' is no longer listed" in html.unescape(confirmed(client, link).text)
    with visiting(web_app(pq)) as client:
        assert 'id="quiet-w"' not in client.get("/workers").text


def test_web_pages_show_an_empty_table_and_an_unknown_queue(dsn: str, pq: PQ) -> None:
    with visiting(web_app(pq)) as client:
        assert "No queue has jobs" in client.get("/").text
        page = client.get(path("queue", name="nobody's")).text
        assert tiles(page)["Ready"] == "0"
        assert "There are no such jobs" in page


def test_web_pages_list_workers_and_waiters(dsn: str, pq: PQ, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        f"from pqcore.tasks import PQ\nqueue = PQ({dsn!r}, backend='psycopg')['shop']\n"
        "@queue.task()\ndef sell(job_id): ...\n"
    )
    pq["shop"].put(1, "1d")
    pq["idle"].put(1, "1d")

    def listed(client: httpx.Client) -> tuple[bool, bool]:
        rows = re.findall(r"<td>(worker|waits)</td><td><bdi>(\w+)</bdi>", client.get("/workers").text)
        return ("worker", "shop") in rows, ("waits", "idle") in rows

    with PQ(dsn, backend="psycopg") as other, visiting(web_app(pq, interval=0.1)) as client:
        assert listed(client) == (False, False)
        thread = threading.Thread(target=other["idle"].get, kwargs={"timeout": PATIENCE})
        thread.start()
        with Command("worker", "shop:queue", dsn=dsn, folder=tmp_path) as worker:
            eventually(lambda: listed(client) == (True, True))
            eventually(lambda: tiles(client.get("/workers").text)["Workers"] == "1")
            page = client.get("/workers").text
            [info] = pq.workers()
            row = re.search(rf"<th scope=\"row\">{info.id}</th>.*?</tr>", page)
            assert row is not None
            assert all(f">{each}<" in row[0] for each in (worker.process.pid, "shop", "shop.sell"))
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
        pq["idle"].put(2)
        thread.join(PATIENCE)


def test_web_page_of_a_job_says_why_it_does_not_run(pq: PQ) -> None:
    job_id = pq["a"].put(1, "1d", limits={"x": 1})
    done = pq["a"].put(2)
    assert pq["a"].get(block=False)
    with visiting(web_app(pq)) as client:
        page = client.get(path("job", id=job_id)).text
        found = re.findall(r"<li><bdi>(.*?)</bdi> <span class=\"note\"><bdi>(.*?)</bdi>", page)
        causes = pq["a"].explain(job_id).causes
        assert [(html.unescape(text), html.unescape(action)) for text, action in found] == [
            (cause.text, cause.action) for cause in causes
        ]
        assert [cause.code for cause in causes] == ["scheduled", "no_worker"]
        assert "Why it does not run" not in client.get(path("job", id=done)).text


# Escaping


def test_web_pages_escape_everything_of_a_job(dsn: str, pq: PQ) -> None:
    name, split = EVIL, "data\r\nevent: trouble\r\ndata: x"
    queue = pq.queue(name, serializer="json")
    waiting = queue.put({"function": EVIL, EVIL: [EVIL, split, "\ud83d"]}, group=EVIL, headers={EVIL: EVIL}, dedup=EVIL)
    raw = queue.put(1)
    dead = queue.put(2)
    bury(dsn, name, dead, EVIL, EVIL)
    execute(
        dsn, "UPDATE queue SET data = %s::json WHERE id = %s", '{ "function":\r"' + EVIL.replace('"', "") + '" }', raw
    )
    execute(dsn, "INSERT INTO queue_ticks VALUES (%s, %s, now())", EVIL, EVIL)
    with visiting(web_app(pq, changes=True, interval=0.1)) as client:
        pages = [
            "/",
            path("queue", name=name),
            path("queue", name=EVIL, task=EVIL, state=EVIL, n=EVIL, said=EVIL, number=EVIL),
            path("job", id=waiting, said="retry", number=EVIL),
            path("job", id=raw),
            path("job", id=dead),
            path("job", id=EVIL),
            path("job", id=1, queue=EVIL + "x"),
            "/dead",
            path("dead", queue=name),
            "/workers",
            path("change", do="retry", id=dead, queue=name),
            path("change", do="purge-dead", queue=name, older_than=EVIL),
            path("change", do=EVIL),
        ]
        for where in pages:
            page = client.get(where).text
            assert "<script>alert" not in page, where
            if where not in pages[3:5]:
                assert "&lt;script&gt;" in page, where
            assert re.findall(r"<script(?! src=\"/static/[\w./-]+\" defer></script>)", page) == [], where
            assert not re.search(r"\s(?:on\w+|style)=", page), where
        for where in ("/live/queues", path("live/queue", name=name), "/live/workers"):
            for event, text in first(client, where, 2):
                assert event in ("live", "summary")
                assert "<script" not in text


def test_web_page_shows_data_as_stored_and_cut(dsn: str, pq: PQ) -> None:
    large = pq["a"].put("x" * (MOST_SHOWN + 10))
    with visiting(web_app(pq)) as client:
        page = client.get(path("job", id=large)).text
        assert "Only the beginning of the data is shown" in page
        assert "x" * (MOST_SHOWN - 1) in page
        assert "x" * (MOST_SHOWN + 1) not in page
        assert len(page) < MOST_SHOWN + 8_000
    assert shown('{"b":[1],"a":2}', 15) == ('{\n  "b": [\n    1\n  ],\n  "a": 2\n}', False)
    # Numbers that would change when written again are left unchanged.
    for odd in ('{"a":1.10}', '{"a":1,"a":2}', "[" * 5_000 + "]" * 5_000, "1e400", "not JSON"):
        assert shown(odd, len(odd)) == (odd, False)
    assert shown(b"ab\0\xff", 4) == ("000000  61 62 00 ff                                      ab..", False)
    assert shown(b"\0" * 5_000, 9_000)[1]


# Access


def test_web_answers_have_security_headers(dsn: str, pq: PQ) -> None:
    with visiting(web_app(pq)) as client:
        for where in ("/", "/nothing", "/job?id=9"):
            headers = client.get(where).headers
            policy = headers["content-security-policy"]
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-frame-options"] == "DENY"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
        assert client.get("/static/style.css").status_code == 200
        assert client.get("/static/../application.py").status_code == 404


def test_web_changes_do_not_exist_unless_allowed(dsn: str, pq: PQ) -> None:
    job_id = pq["a"].put(1)
    bury(dsn, "a", job_id)
    with visiting(web_app(pq)) as client:
        question = path("change", do="retry", id=job_id, queue="a")
        assert client.get(question).status_code == 404
        form = {"do": "retry", "id": str(job_id), "queue": "a"}
        assert client.post("/change", data=form).status_code == 404
        for where in ("/", "/dead", path("job", id=job_id), path("queue", name="a")):
            page = client.get(where).text
            assert "/change" not in page
            assert "Read only" in page
            assert client.post(where).status_code == 405
        assert client.post("/login").status_code == 404
    assert len(pq["a"].dead.list()) == 1


def test_web_token_is_required_and_not_kept_by_the_browser(dsn: str, pq: PQ) -> None:
    pq["secret"].put(1)
    with visiting(web_app(pq, token=TOKEN, changes=True)) as client:
        for where in (
            "/",
            "/dead",
            "/queue?name=secret",
            "/workers",
            "/nothing",
            "/change?do=retry",
            "/?token=wrong",
            "/login/",
            "/loginx",
        ):
            refused = client.get(where)
            assert (refused.status_code, refused.headers["location"]) == (303, "/login"), where
            assert "secret" not in refused.text
        assert client.get("/live/queues").status_code == 401
        assert client.post("/change", data={"do": "retry"}).status_code == 401
        assert client.get("/static/style.css").status_code == 200

        page = client.get("/login")
        assert "secret" not in page.text
        key = form_of(page.text)["key"]
        origin = {"origin": str(client.base_url).rstrip("/")}
        for form, headers in (
            ({"token": "wrong", "key": key}, origin),
            ({"token": TOKEN[:-1], "key": key}, origin),
            ({"token": TOKEN, "key": "another"}, origin),
            ({"token": TOKEN, "key": key}, {"origin": "http://elsewhere.example"}),
            ({"token": TOKEN, "key": key}, {}),
        ):
            assert client.post("/login", data=form, headers=headers).status_code == 403
            assert "pqcore_web_session" not in client.cookies
        let_in = client.post("/login", data={"token": TOKEN, "key": key}, headers=origin)
        assert (let_in.status_code, let_in.headers["location"]) == (303, "/")
        kept = let_in.headers["set-cookie"]
        assert TOKEN not in kept
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in kept.split(";")}
        assert "secret" in client.get("/").text

        left = client.post("/logout")
        assert left.status_code == 303
        assert client.get("/").status_code == 303
        by_link = client.get("/queue?name=secret&token=" + TOKEN.replace(" ", "+"))
        assert (by_link.status_code, by_link.headers["location"]) == (303, "/queue?name=secret")
        assert TOKEN not in by_link.headers["set-cookie"]
        assert client.get(by_link.headers["location"]).status_code == 200
        good = client.cookies["pqcore_web_session"]
        said, signed_at, signature = good.split(".")
        other = Token("another token, as long").session()
        for bad in (
            "",
            "x",
            ".",
            f"{said}.{signed_at}A.{signature}",
            f"{said}.{'_' * 40}.{signature}",
            f"{said}.{signed_at}.{signature[1:]}",
            f"{said}.{signed_at}.",
            f"{said}.{signature}",
            f"another.{signed_at}.{signature}",
            other,
            "\u0661.x.y",
        ):
            answer = httpx.get(f"{client.base_url}/", headers={b"cookie": f"pqcore_web_session={bad}".encode()})
            assert answer.status_code == 303, bad
    with pytest.raises(ConfigurationError, match="at least 16"):
        web_app(pq, token="short")


def test_session_ends_after_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    token, begun = Token(TOKEN), time.time()
    cookie = token.session()
    assert cookie.isascii()
    assert TOKEN not in cookie
    for seconds, admitted in ((-60, False), (1, True), (SESSION_LENGTH - 60, True), (SESSION_LENGTH + 60, False)):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: begun + seconds)
        assert token.admits(cookie) is admitted


def test_web_page_answers_only_to_allowed_hosts(dsn: str, pq: PQ) -> None:
    with visiting(web_app(pq, hosts=["127.0.0.1", "[::1]"])) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"host": "[::1]:80"}).status_code == 200
        for host in ("elsewhere.example", "127.0.0.1.elsewhere.example", "[::2]", "", "x@127.0.0.1"):
            assert client.get("/", headers={"host": host}).status_code == 421, host


# Changes


def test_web_changes_are_made_after_confirmation(dsn: str, pq: PQ) -> None:
    queue = pq["a b&c"]
    dead = [queue.put(n) for n in range(4)]
    for job_id in dead:
        bury(dsn, queue.name, job_id)
    waiting, scheduled = queue.put("waiting"), queue.put("scheduled", "1d")
    with visiting(web_app(pq, changes=True)) as client:

        def change(do: str, job_id: int | None = None, **more: str) -> httpx.Response:
            named = {} if job_id is None else {"id": job_id}
            return confirmed(client, path("change", do=do, queue=queue.name, **named), **more)

        page = client.get(path("job", id=dead[0])).text
        assert html.escape(path("change", do="retry", queue=queue.name, id=dead[0])) in page
        assert len(queue.dead.list()) == 4  # nothing was confirmed
        done = change("retry", dead[0])
        assert done.status_code == 303
        after = client.get(done.headers["location"]).text
        assert "The job is due now" in after
        assert queue.status(dead[0]) == "ready"
        assert change("retry", scheduled).status_code == 303
        assert queue.status(scheduled) == "ready"
        assert change("retry", scheduled).status_code == 409
        assert change("cancel", waiting).status_code == 303
        assert change("cancel", waiting).status_code == 409
        assert change("purge", dead[1]).status_code == 303
        assert {letter.id for letter in queue.dead.list()} == {dead[2], dead[3]}
        assert change("purge-dead").status_code == 303  # the letters older than 14 days
        assert queue.dead.count() == 2
        wrong = change("purge-dead", older_than="soon")
        assert wrong.status_code == 400
        assert "not a time" in wrong.text
        assert change("retry-unreadable").status_code == 303
        assert queue.dead.count() == 2  # no letter is unreadable
        done = change("retry-dead")
        assert "Dead letters that are due now: 2" in client.get(done.headers["location"]).text
        assert queue.dead.count() == 0
        bury(dsn, queue.name, dead[2])
        assert change("purge-dead", older_than="0s").status_code == 303
        assert queue.dead.count() == 0
        taken = queue.get()
        assert taken is not None
        assert change("purge-done", older_than="0s").status_code == 303
        assert queue.jobs("done") == []
        leased = queue.lease(600)
        assert leased is not None
        queue.put_many([1, 2, 3])
        number = queue.count()
        question = client.get(path("change", do="move", queue=queue.name)).text
        assert "Move jobs of" in question
        assert '<button class="main">' not in question  # the other queue is not named yet
        question = client.get(path("change", do="move", queue=queue.name, to="calm")).text
        assert f"Move {number} waiting jobs of" in question
        moved = change("move", to="calm")
        assert f"Jobs that are moved: {number}" in client.get(moved.headers["location"]).text
        assert (pq["calm"].count(), queue.count()) == (number, 0)
        assert change("move", to=queue.name).status_code == 400
        assert change("cancel", leased.id).status_code == 303
        assert execute(dsn, "SELECT cancelling FROM queue WHERE id = %s", leased.id) == [(True,)]


def test_web_page_lists_limits_in_use(dsn: str, pq: PQ) -> None:
    queue = pq["q"]
    queue.put_many(range(5), limits={EVIL: 2})
    assert len(queue.lease_many(5)) == 2
    with visiting(web_app(pq)) as client:
        text = client.get(path("queue", name="q")).text
        section = text[text.index('id="limits"') : text.index('id="leased"')]
        assert EVIL in html.unescape(section)
        assert re.findall(r'<td class="number">(\w+)<', section) == ["2", "2", "3"]


def test_web_page_sets_rules_and_lists_them(dsn: str, pq: PQ) -> None:
    queue = pq["a b&c"]
    with visiting(web_app(pq, changes=True)) as client:

        def change(do: str, **more: str) -> httpx.Response:
            return confirmed(client, path("change", do=do, queue=queue.name), **more)

        def shown() -> str:
            return html.unescape(client.get(path("queue", name=queue.name)).text)

        assert "Rules" not in shown()
        done = change("pause", what="queue", until="1h")
        assert done.status_code == 303
        assert "The pause is set" in client.get(done.headers["location"]).text
        assert change("pause", what="task", name="app.send").status_code == 303
        assert change("limit", name=EVIL, places="3").status_code == 303
        assert change("rate", name="api", rate="100/5m").status_code == 303
        assert change("weight", name="ann", weight="2.5").status_code == 303
        found = {(rule.kind, rule.name): rule for rule in queue.rules()}
        assert {key: rule.value for key, rule in found.items()} == {
            ("pause", "queue"): "",
            ("pause", "task:app.send"): "",
            ("limit", EVIL): "3",
            ("rate", "api"): "100/300s",
            ("weight", "ann"): "2.5",
        }
        assert found["pause", "queue"].until is not None
        assert found["pause", "task:app.send"].until is None
        page = client.get(path("queue", name=queue.name)).text
        assert EVIL not in page
        assert html.escape(EVIL) in page.replace("&#39;", "&#x27;").replace("&#34;", "&quot;")
        # Each rule has a link to a form that shows the present value.
        links = [html.unescape(link) for link in re.findall(r'id="rule-\d+" href="([^"]+)"', page)]
        assert len(links) == 5
        for link in links:
            asked = client.get(link)
            assert asked.status_code == 200
            fields = form_of(asked.text)
            fields |= {"what": re.findall(r"<option selected>(\w+)", asked.text)[0]} if fields["do"] == "resume" else {}
            emptied = {name: "" for name in ("places", "rate", "weight") if name in fields}
            done = client.post("/change", data=fields | emptied, headers={"origin": str(client.base_url).rstrip("/")})
            assert done.status_code == 303
        assert queue.rules() == []
        assert change("resume", what="queue").status_code == 303
        for do, fields in (
            ("pause", {"until": "soon"}),
            ("pause", {"what": "job", "name": "1"}),
            ("pause", {"what": "task"}),
            ("pause", {"what": "queue", "name": "app.send"}),
            ("limit", {"name": "x", "places": "many"}),
            ("limit", {"name": "x", "places": "0"}),
            ("limit", {"name": "", "places": "1"}),
            ("rate", {"name": "x", "rate": "fast"}),
            ("weight", {"name": "x", "weight": "nan"}),
        ):
            wrong = change(do, **fields)
            assert wrong.status_code == 400, (do, fields)
            assert 'role="alert"' in wrong.text
        assert queue.rules() == []


def test_web_changes_need_a_form_of_the_page_itself(dsn: str, pq: PQ) -> None:
    job_id = pq["a"].put(1)
    bury(dsn, "a", job_id)
    with visiting(web_app(pq, changes=True)) as client:
        asked = client.get(path("change", do="purge", id=job_id, queue="a"))
        assert asked.headers["referrer-policy"] == "same-origin"  # otherwise browsers send no Origin
        kept = {part.strip() for part in asked.headers["set-cookie"].split(";")}
        assert {"HttpOnly", "SameSite=strict"} <= kept
        form = form_of(asked.text)
        origin = str(client.base_url).rstrip("/")
        good = {"origin": origin}
        for data, headers in (
            (form, {}),
            (form, {"origin": "null"}),
            (form, {"origin": "http://elsewhere.example"}),
            (form, {"origin": origin + ".elsewhere.example"}),
            (form, {**good, "sec-fetch-site": "cross-site"}),
            (form, {**good, "sec-fetch-site": "same-site"}),
            (form, {"sec-fetch-site": "none"}),
            ({**form, "key": "another"}, good),
            ({**form, "key": ""}, good),
            ({name: value for name, value in form.items() if name != "key"}, good),
        ):
            assert client.post("/change", data=data, headers=headers).status_code == 403
        without = httpx.post(f"{client.base_url}/change", data=form, headers=good)  # another browser
        assert without.status_code == 403
        assert client.post("/change", json=form, headers=good).status_code == 415
        long = client.post("/change", data=form | {"x": "y" * 70_000}, headers=good)
        assert (long.status_code, "go back, and shorten a field" in long.text) == (413, True)
        many = client.post("/change", data={str(n): "" for n in range(99)}, headers=good)
        assert (many.status_code, "use a form of this page" in many.text) == (413, True)
        for bad in ({"do": "drop"}, {"id": "0"}, {"id": "-1"}, {"id": "x"}, {"id": str(2**63)}, {"queue": ""}):
            assert client.post("/change", data=form | bad, headers=good).status_code == 400, bad
        assert pq["a"].dead.count() == 1
        assert client.get(path("change", do="purge", id=job_id, queue="a")).status_code == 200
        assert pq["a"].dead.count() == 1
        # Behind a proxy that changes Host: with X-Forwarded-Host, or with the browser's Sec-Fetch-Site alone.
        proxied = {"origin": "https://shop.example", "x-forwarded-host": "shop.example", "host": "inside"}
        assert client.post("/change", data=form, headers=proxied).status_code == 303
        assert pq["a"].dead.count() == 0


# Mounting


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
@pytest.mark.parametrize("face", ["blocking", "async"])
def test_web_app_can_be_mounted_under_a_prefix(dsn: str, pq: PQ, kind: str, face: str) -> None:
    job_id = pq["a"].put(1)
    bury(dsn, "a", job_id)
    page = web_app(pq if face == "blocking" else AsyncPQ(dsn, backend="asyncpg"), changes=True, token=TOKEN)
    app: Any
    if kind == "fastapi":
        app = FastAPI()
        app.mount("/admin/queues", page)
    else:
        app = Starlette(routes=[Mount("/admin", Starlette(routes=[Mount("/queues", page)]))])
    with visiting(app) as client:
        login = client.get("/admin/queues/", follow_redirects=True)
        assert login.url.path == "/admin/queues/login"
        form = form_of(login.text) | {"token": TOKEN}
        origin = {"origin": str(client.base_url).rstrip("/")}
        let_in = client.post("/admin/queues/login", data=form, headers=origin)
        assert let_in.headers["location"] == "/admin/queues/"
        assert "Path=/admin/queues" in let_in.headers["set-cookie"]
        seen, left = set(), ["/admin/queues/"]
        while left:  # all pages that links lead to
            where = left.pop()
            seen.add(where)
            found = client.get(where)
            assert found.status_code == 200, where
            assert found.headers["x-frame-options"] == "DENY"
            if found.headers["content-type"].startswith("text/html"):
                links = [
                    (kind, html.unescape(link))
                    for kind, link in re.findall(r'(href|src|action|sse-connect)="([^"#]+)"', found.text)
                ]
                assert all(link.startswith("/admin/queues/") for _, link in links), where
                left += {link for kind, link in links if kind in ("href", "src")} - seen
        assert {"/admin/queues/dead", "/admin/queues/workers", "/admin/queues/static/live.js"} <= seen
        [(event, text), *_] = first(client, "/admin/queues/live/queues", 2)
        assert (event, text.strip()) == ("summary", "1 queue: 0 ready, 0 leased, 0 scheduled, 1 dead")
        question = client.get("/admin/queues" + path("change", do="retry", id=job_id, queue="a"))
        done = client.post("/admin/queues/change", data=form_of(question.text), headers=origin)
        assert done.headers["location"].startswith("/admin/queues/job?")
        assert pq["a"].count() == 1


# The stream


def events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """The events of a stream: their names, and their data."""
    name, data = "", []
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field.rstrip(":") == "data":
            data.append(value)
        elif not line and name:
            yield name, "\n".join(data)
            name, data = "", []


def first(client: httpx.Client, where: str, number: int) -> list[tuple[str, str]]:
    with client.stream("GET", where) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        found = events(stream.iter_lines())
        return [next(found) for _ in range(number)]


def test_web_stream_sends_changes(dsn: str, pq: PQ) -> None:
    queue = pq["a"]
    queue.put(1)
    app = web_app(pq, interval=0.1)
    with visiting(app) as client, client.stream("GET", path("live/queue", name="a")) as stream:
        found = events(stream.iter_lines())
        parts = dict(next(found) for _ in range(3))
        assert set(parts) == {"summary", "live", "jobs"}
        assert parts["summary"].strip() == "1 ready, 0 leased, 0 scheduled, 0 dead"
        added = queue.put(2)
        changed = [next(each for each in found if each[0] == part) for part in ("summary", "jobs")]
        assert changed[0][1].strip() == "2 ready, 0 leased, 0 scheduled, 0 dead"
        assert f">{added}</a>" in changed[1][1]


def test_web_sampler_reads_once_for_all_viewers_and_only_while_needed(dsn: str, pq: PQ) -> None:
    app = web_app(pq, interval=0.1)
    sampler: Sampler = app.state.sampler
    with visiting(app) as client:
        with client.stream("GET", "/live/queues") as one, client.stream("GET", "/live/queues") as other:
            lines = one.iter_lines(), other.iter_lines()
            before = sampler.looks
            for _ in range(10):
                for each in lines:
                    turn = (line for line in each if line.startswith(": as it was"))
                    assert next(turn) == next(turn)  # of each of the two parts
            assert sampler.followers == 2
            assert sampler.looks - before <= 13  # not twenty
        eventually(lambda: sampler.followers == 0)
        looks = sampler.looks
        threading.Event().wait(0.4)  # four times as long as between two looks
        assert sampler.looks == looks


def test_web_streams_requested_together_stay_within_the_bound(pq: PQ) -> None:
    more = 20
    app = web_app(pq, interval=60)
    sampler: Sampler = app.state.sampler

    async def ask(address: str) -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:
            requests = [client.build_request("GET", "/live/queues") for _ in range(MOST_FOLLOWERS + more)]
            answers = await asyncio.gather(*(client.send(request, stream=True) for request in requests))
            assert sampler.followers == MOST_FOLLOWERS
            for answer in answers:
                await answer.aclose()
            return [answer.status_code for answer in answers]

    with serving(app) as address:
        statuses = asyncio.run(ask(address))
        assert sorted(statuses) == [200] * MOST_FOLLOWERS + [503] * more
        eventually(lambda: sampler.followers == 0)


@pytest.mark.parametrize("name", ["root", "page", "query", "self", "request"])
def test_web_page_ignores_unknown_query_arguments(pq: PQ, name: str) -> None:
    pq["a"].put(1)
    with visiting(web_app(pq, changes=True, interval=0.1)) as client:
        for page in ("/", "/queue?name=a", "/job?id=1", "/dead", "/workers", "/change?do=purge-dead&queue=a"):
            where = f"{page}{'&' if '?' in page else '?'}{name}=x"
            assert client.get(where).status_code == 200, where
        with client.stream("GET", f"/live/queues?{name}=x") as stream:
            assert next(events(stream.iter_lines()))[0] == "summary"


def test_web_answer_of_an_unexpected_error_has_security_headers(capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(request: Request) -> Response:
        raise ZeroDivisionError

    middleware = [Middleware(SecurityMiddleware, token=None, hosts=None)]
    with visiting(Starlette(routes=[Route("/", broken)], middleware=middleware)) as client:
        answer = client.get("/")
    assert answer.status_code == 500
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert "ZeroDivisionError" not in answer.text


def test_web_stream_reports_a_database_that_does_not_answer(dsn: str, pq: PQ) -> None:
    pq["a"].put(1)
    with visiting(web_app(pq, interval=0.1)) as client, client.stream("GET", "/live/queues") as stream:
        found = events(stream.iter_lines())
        assert [next(found)[0] for _ in range(2)] == ["summary", "live"]
        execute(dsn, "ALTER TABLE queue RENAME TO gone")
        trouble = next(text for name, text in found if name == "trouble")
        assert "does not answer" in trouble
        assert client.get("/dead").status_code == 200  # another table
        execute(dsn, "ALTER TABLE gone RENAME TO queue")
        assert next(text for name, text in found if name == "trouble").strip() == ""


def test_web_sampler_remembers_a_bounded_number_of_samples(dsn: str, pq: PQ) -> None:
    for number in range(QUEUES + 20):
        pq[f"queue {number}"].put(number)

    async def look() -> Sampler:
        sampler = Sampler(Target(pq, {}), 0.1)
        for _ in range(3):
            await sampler.latest(fresh=True)
        return sampler

    sampler = asyncio.run(look())
    assert sampler._past.maxlen == SAMPLES
    assert [len(queues) for _, queues in sampler._past] == [QUEUES] * 3


def test_web_chart_has_a_gap_where_no_sample_was_taken() -> None:
    points = [Point(float(clock), Figures(ready=clock)) for clock in (0, 1, 2, 100, 101)]
    made = chart("Depth", "jobs", points, 1.0, [("ready", "ready", lambda each: each.ready)])
    [line] = made.lines
    assert (len(line.pieces), made.top, made.seconds, line.now) == (2, 200.0, 101.0, 101.0)
    spots = [tuple(map(float, spot.split(","))) for piece in line.pieces for spot in piece.split()]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in spots)
    assert spots[0] == (0.0, HEIGHT)
    assert chart("Depth", "jobs", [], 1.0, [("ready", "ready", lambda each: each.ready)]).empty
    infinite = [Point(0.0, Figures(oldest=float("inf")))]
    assert chart("Latency", "seconds", infinite, 1.0, [("oldest", "ready", lambda each: each.oldest)]).empty
    assert [age(each) for each in (None, float("inf"), 0.01, 5, 90, 7_200, 200_000)] == [
        "\N{EN DASH}", "\N{INFINITY}", "< 0.1 s", "5.0 s", "1.5 m", "2.0 h", "2.3 d",
    ]  # fmt: skip


# The command


@pytest.mark.parametrize("backend", ["psycopg2", "asyncpg"])
def test_web_command_serves_until_it_is_stopped(dsn: str, pq: PQ, tmp_path: Path, backend: str) -> None:
    pq["apples"].put(1)
    command = ("web", "--port", "0", "--backend", backend, "--interval", "0.1", "--allow-host", "shop.example")
    with Command(*command, dsn=dsn, folder=tmp_path) as served:
        [address] = served.expect(r"serving on (\S+);")
        assert "apples" in httpx.get(address).text
        for host, code in (("elsewhere.example", 421), ("shop.example", 200)):
            assert httpx.get(address, headers={"host": host}).status_code == code
        with httpx.Client() as client, client.stream("GET", f"{address}live/queues") as stream:
            next(stream.iter_lines())
            served.signal(signal.SIGTERM)  # with a page open
            assert served.wait() == 0
        assert "Traceback" not in served.log


def test_web_command_serves_under_a_path_with_a_token(dsn: str, pq: PQ, tmp_path: Path) -> None:
    variables = {"PQCORE_WEB_TOKEN": TOKEN}
    command = ["web", "--host", "0.0.0.0", "--port", "0", "--root-path", "/queues/", "--allow-changes"]
    command += ["--allow-host", "shop.example"]  # and then it answers only to the names of this machine
    with Command(*command, dsn=dsn, folder=tmp_path, variables=variables) as served:
        [address] = served.expect(r"serving on (\S+);")
        with httpx.Client(base_url=address.replace("0.0.0.0", "127.0.0.1")) as client:
            assert client.get("/").headers["location"] == "/queues/login"
            assert 'action="/queues/login"' in client.get("/login").text
            for host, code in (("elsewhere.example", 421), ("shop.example", 200)):
                assert client.get("/login", headers={"host": host}).status_code == code
        served.signal(signal.SIGINT)
        assert served.wait() == 0
        assert TOKEN not in served.log


def test_web_command_refuses_bad_arguments(dsn: str, pq: PQ) -> None:
    def refused(*arguments: str, code: int, dsn: str = dsn) -> str:
        done = CliRunner().invoke(root, ["web", "--port", "0", *arguments], env={"PQCORE_DSN": dsn})
        assert done.exit_code == code, done.output
        return done.stderr

    for host in ("0.0.0.0", "::", "example.com"):
        assert "PQCORE_WEB_TOKEN" in refused("--host", host, code=2)
    assert "at least 16" in refused("--host", "0.0.0.0", "--token", "short", code=2)
    assert "does not exist" in refused("--table", "missing", code=1)
    wrong = dsn.replace("postgres@", "nobody:pa55word@")
    assert "pa55word" not in refused(code=1, dsn=wrong)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in refused("--port", port, code=1)


@pytest.mark.parametrize("missing", ["starlette", "jinja2", "itsdangerous", "uvicorn"])
def test_web_command_without_its_extra_says_how_to_install_it(dsn: str, missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from pqcore.cli import main; sys.exit(main(['web']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={"PQCORE_DSN": dsn},
        timeout=60,
    )
    assert done.returncode == 2
    assert "pip install 'pqcore[web]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_web_app_refuses_bad_arguments(pq: PQ) -> None:
    wrong: list[Callable[[], Any]] = [
        lambda: web_app(7),  # type: ignore[arg-type]
        lambda: web_app(pq, table="other"),
        lambda: web_app(pq, interval=0),
        lambda: web_app(pq, hosts="localhost"),
    ]
    for call in wrong:
        with pytest.raises(ConfigurationError):
            call()


def test_web_page_never_shows_the_database_password(dsn: str, pq: PQ) -> None:
    secret = dsn.replace("postgres@", "nobody:pa55word@")
    assert secret != dsn
    with visiting(web_app(secret, backend="psycopg")) as client:
        page = client.get("/")
        assert page.status_code == 503
        assert "pa55word" not in page.text
        [(event, text)] = first(client, "/live/queues", 1)
        assert event == "trouble"
        assert "pa55word" not in text
