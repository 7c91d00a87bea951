"""The web page for operators: the age of figures, counts in questions, groups, ticks, pages, searches."""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import psycopg
import pytest
from test_web import bury, confirmed, events, execute, path, visiting

from pqcore import PQ
from pqcore.operations.worker_registry import RunningWorker, announce
from pqcore.runner import call_sync
from pqcore.testing.proxy import Proxy
from pqcore.web import web_app
from pqcore.web.sampling import Sampler
from pqcore.web.target import Target


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def call(path_: str, *arguments: object) -> dict[str, Any]:
    """The data of a call of a function."""
    return {"function": path_, "args": list(arguments), "kwargs": {}}


def text_of(page: str) -> str:
    """Return the text of a page, without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def links(page: str, action: str) -> list[str]:
    """Return the links of a page that lead to a change."""
    found = [html.unescape(link) for link in re.findall(r'href="([^"]*/change[^"]*)"', page)]
    return [link for link in found if f"do={action}&" in link]


# How old the figures are


@pytest.mark.parametrize("backend", ["psycopg", "psycopg2"])
def test_web_page_says_soon_that_a_frozen_server_does_not_answer(
    dsn: str, pq: PQ, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqcore.web.sampling.ANSWER", 0.3)
    monkeypatch.setattr("pqcore.web.application.PAGE", 0.6)
    pq["a"].put(1)
    proxy = Proxy(dsn)
    try:
        target = f"{proxy.dsn.replace('postgresql:', f'postgresql+{backend}:')}"
        with visiting(web_app(target, interval=0.1)) as client, client.stream("GET", "/live/queues") as stream:
            found = events(stream.iter_lines())
            for name in ("summary", "live", "figures"):
                got, data = next(found)
                assert got == name
            assert 0 <= json.loads(data)["age"] < 60
            proxy.stall(new=True)
            frozen = time.monotonic()
            told = next(data for name, data in found if name == "trouble")
            assert "within 0.3 s" in told
            page = client.get("/")  # the last figures, with their time
            assert page.status_code == 200
            assert "As of" in page.text
            answer = client.get("/dead")
            assert answer.status_code == 503
            assert "within 0.6 s" in answer.text
            assert time.monotonic() - frozen < 20
            proxy.close()
    finally:
        proxy.close()


def test_web_sampler_does_not_pause_long_after_a_single_slow_look(dsn: str, pq: PQ) -> None:
    async def looks() -> tuple[float, float]:
        sampler = Sampler(Target(pq, {}), 0.1)
        await sampler.latest()
        with psycopg.connect(dsn) as other:
            other.execute("LOCK TABLE queue IN ACCESS EXCLUSIVE MODE")
            slow = asyncio.create_task(sampler.latest(fresh=True))
            await asyncio.sleep(0.5)
            other.rollback()
            took = (await slow).took
        return took, sampler.next_look()

    took, pause = asyncio.run(looks())
    assert took >= 0.4
    assert pause < 4 * took


# Changes


def test_web_page_tells_of_a_change_once_and_never_because_of_a_link(dsn: str, pq: PQ) -> None:
    bury(dsn, "a", pq["a"].put(1))
    with visiting(web_app(pq, changes=True)) as client:
        for where in ("/dead", path("dead", queue="a")):
            for do in ("purge-dead", "retry-dead"):
                link = f"{where}{'&' if '?' in where else '?'}said={do}&number=5&done={do}.5"
                client.cookies.set("pqcore_web_done", f"{do}.5")
                assert 'class="flash"' not in client.get(link).text
        client.cookies.clear()
        done = confirmed(client, path("change", do="retry-dead", queue="a"))
        assert "Dead letters that are due now: 1" in client.get(done.headers["location"]).text
        assert 'class="flash"' not in client.get(done.headers["location"]).text


def test_web_question_before_a_mass_action_has_the_count(dsn: str, pq: PQ) -> None:
    queue = pq["a"]
    for number in range(3):
        bury(dsn, "a", queue.put(number))
    execute(dsn, "UPDATE queue_dead SET died_at = now() - interval '20 days' WHERE id = 1")
    queue.put_many(range(2))
    assert len(queue.get_many(2)) == 2
    with visiting(web_app(pq, changes=True)) as client:
        for do, fields, said in (
            ("retry-dead", {}, "Run all 3 dead letters of 'a' again?"),
            ("retry-unreadable", {}, "Run again the 0 dead letters of 'a'"),
            ("purge-dead", {}, "Delete 1 dead letter of 'a' for good?"),
            ("purge-dead", {"older_than": "0s"}, "Delete 3 dead letters of 'a' for good?"),
            ("purge-done", {}, "Delete the rows of 0 finished jobs of 'a'"),
            ("purge-done", {"older_than": "0s"}, "Delete the rows of 2 finished jobs of 'a'"),
        ):
            asked = client.get(path("change", do=do, queue="a", **fields))
            assert said in text_of(asked.text), do
        wrong = client.get(path("change", do="purge-dead", queue="a", older_than="soon"))
        assert wrong.status_code == 400
        assert 'class="danger"' not in wrong.text
        # The rows that were counted are deleted.
        assert confirmed(client, path("change", do="purge-dead", queue="a", older_than="14d")).status_code == 303
        assert queue.dead.count() == 2


def test_web_page_groups_dead_letters_and_retries_a_group(dsn: str, pq: PQ) -> None:
    queue = pq["a"]
    for task, message in (("shop.send", "no"), ("shop.send", 'a "quoted" <b>word</b>'), ("shop.bill", "no")):
        bury(dsn, "a", queue.put(call(task)), message)
    bury(dsn, "b", pq["b"].put(1))
    with visiting(web_app(pq, changes=True)) as client:
        page = client.get(path("dead", queue="a")).text
        section = page[page.index('id="groups"') : page.index('class="card letter"')]
        rows = [text_of(row) for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", section)]
        assert [row.split()[0] for row in rows] == ["shop.send", "shop.bill"]
        assert "ValueError" in rows[0]
        assert re.search(r"failed 2 .*ago", rows[0])
        assert "<b>word" not in section
        [of_send, _] = links(section, "retry-group")
        assert "Run 2 dead letters of 'a' again?" in text_of(client.get(of_send).text)
        done = confirmed(client, of_send)
        assert "Dead letters that are due now: 2" in client.get(done.headers["location"]).text
        assert [letter.reason for letter in queue.dead.list()] == ["failed"]
        assert queue.count() == 2
        everything = client.get("/dead").text
        assert len(links(everything, "retry-group")) == 2
        [of_none] = [link for link in links(everything, "retry-group") if "queue=b" in link]
        assert confirmed(client, of_none).status_code == 303
        assert pq["b"].count() == 1


def test_web_page_pauses_and_resumes_with_links_of_its_own(pq: PQ) -> None:
    queue = pq["a"]
    job_id = queue.put(call("shop.send"), limits={"api": 1})
    with visiting(web_app(pq, changes=True, interval=0.1)) as client:
        [of_task] = links(client.get(path("job", id=job_id)).text, "pause")
        assert "name=shop.send" in of_task
        links_of_queue = links(client.get(path("queue", name="a")).text, "pause")
        [of_key] = [link for link in links_of_queue if "name=api" in link]
        asked = client.get(of_key)
        assert "<option selected>limit" in asked.text
        for what, name in (("task", "shop.send"), ("limit", "api"), ("queue", "")):
            done = confirmed(client, path("change", do="pause", queue="a"), what=what, name=name)
            assert done.status_code == 303
        assert {rule.name for rule in queue.rules()} == {"task:shop.send", "limit:api", "queue"}
        page = client.get(path("queue", name="a")).text
        assert "This queue is paused" in page
        assert "paused" in client.get("/").text
        assert confirmed(client, path("change", do="resume", queue="a"), what="queue").status_code == 303
        assert "This queue is paused" not in client.get(path("queue", name="a")).text


# Periodic tasks


def test_web_page_shows_schedules_and_puts_their_jobs_now(dsn: str, pq: PQ) -> None:
    queue = pq["a"]
    for name in ("running", "paused"):
        queue.schedule(name, "shop.close", "0 * * * *")
    queue.pause_schedule("paused")
    execute(dsn, "UPDATE queue_ticks SET tick = now() - interval '3 h'")
    with visiting(web_app(pq, changes=True)) as client:
        page = client.get("/workers").text
        found = re.findall(r'<tr>\s*<th scope="row"><bdi>(?:running|paused).*?</tr>', page, re.DOTALL)
        rows = {text.split()[0]: text for text in map(text_of, found)}
        assert "late" in rows["running"]
        assert "late" not in rows["paused"]
        assert rows["paused"].count("paused") == 2
        [link] = [link for link in links(page, "run-now") if "paused" in link]
        confirmed(client, link)
        [link] = links(page, "resume-schedule")
        assert confirmed(client, link).status_code == 303
        assert [schedule.paused for schedule in queue.schedules()] == [False, False]
        [link] = [link for link in links(client.get("/workers").text, "pause-schedule") if "running" in link]
        assert confirmed(client, link).status_code == 303
    assert [(schedule.name, schedule.paused) for schedule in queue.schedules()] == [
        ("paused", False),
        ("running", True),
    ]
    assert [job.task for job in queue.jobs("ready")] == ["shop.close"]


def test_web_page_shows_last_outcome_and_next_run_of_periodic_tasks(dsn: str, pq: PQ) -> None:
    now = datetime.now(timezone.utc)
    tick = now.replace(minute=0, second=0, microsecond=0)
    for name, moment in (
        ("shop.new", now.replace(microsecond=1)),
        ("shop.hourly", tick),
        ("shop.lost", tick),
        ("shop.soon", tick),
    ):
        execute(dsn, "INSERT INTO queue_ticks VALUES ('a', %s, %s, '0 * * * *', 'UTC')", name, moment)
    long_ago = tick - timedelta(hours=3)
    execute(dsn, "INSERT INTO queue_ticks VALUES ('a', 'shop.late', %s, '0 * * * *', 'UTC')", long_ago)
    queue = pq["a"]
    job_id = queue.put(call("shop.hourly"), tick)
    bury(dsn, "a", job_id)
    execute(dsn, "UPDATE queue_dead SET schedule_at = %s", tick)
    queue.put(call("shop.soon"), tick)
    queue.put(call("shop.lost"), "1h")  # nobody's tick
    with visiting(web_app(pq, changes=True)) as client:
        page = client.get("/workers").text
        found = re.findall(r'<tr>\s*<th scope="row"><bdi>shop.*?</tr>', page, re.DOTALL)
        rows = {text.split()[0]: text for text in map(text_of, found)}
        assert "not yet" in rows["shop.new"]
        assert "late" not in rows["shop.new"]
        assert re.search(r"dead .*ago in (< 1|\d+) min", rows["shop.hourly"])
        assert f">{job_id}<" in page or f"id={job_id}&" in page
        assert "not known" in rows["shop.lost"]
        assert re.search(r"ago waits in ", rows["shop.soon"])
        assert "late: no worker has put the task's job" in rows["shop.late"]
        # "Run now" sets the last tick back, so that a worker puts it again.
        [link] = [link for link in links(page, "run-now") if "shop.hourly" in link]
        done = confirmed(client, link)
        after = text_of(client.get(done.headers["location"]).text)
        assert "within a minute" in after
        assert "shop.hourly a 0 * * * * UTC run requested" in after
        [(changed,)] = execute(dsn, "SELECT tick FROM queue_ticks WHERE name = 'shop.hourly'")
        assert timedelta(0) < tick - changed < timedelta(seconds=1)
        assert confirmed(client, path("change", do="run-now", queue="a", name="shop.none")).status_code == 400


# Jobs


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg", "asyncpg"])
def test_web_page_pages_through_all_jobs_and_searches_them(dsn: str, pq: PQ, backend: str) -> None:
    queue = pq["a"]
    ready = queue.put_many([call("shop.send", f"item {number}") for number in range(40)])
    later = [queue.put(number, "1d") for number in range(20)]
    done = queue.put("kept", dedup="the key of it", group="the group of it")
    umlaut = queue.put({"name": "Jürgen"})
    with visiting(web_app(dsn.replace("postgresql:", f"postgresql+{backend}:"))) as client:
        seen: list[int] = []
        where: str | None = path("queue", name="a")
        pages = 0
        while where:
            page = client.get(where).text
            listed = page[page.index('aria-labelledby="jobs"') :]
            seen += map(int, re.findall(r'id="job-(\d+)"', listed))
            found = re.search(r'id="next" rel="next" href="([^"]+)"', page)
            where = html.unescape(found[1]) if found else None
            pages += 1
        assert sorted(seen) == sorted([*ready, *later, done, umlaut])
        assert pages == 3

        def search(text: str, **more: str) -> list[int]:
            page = client.get(path("queue", name="a", search=text, **more)).text
            return sorted(map(int, re.findall(r'id="job-(\d+)"', page)))

        assert search("item 7") == [ready[7]]
        assert search("the key of it") == search("the group of it") == [done]
        assert search("Jürgen") == [umlaut]
        assert search("100%") == search("item 7", state="scheduled") == search("\0x\\") == []
        stream = re.search(r'sse-connect="([^"]+)"', client.get(path("queue", name="a", search="item 7")).text)
        assert stream is not None
        with client.stream("GET", html.unescape(stream[1])) as following:
            assert [next(events(following.iter_lines()))[0] for _ in range(1)] == ["summary"]
        assert "search" not in stream[1]


def test_web_page_names_the_database_and_says_how_long_ago(pq: PQ) -> None:
    job_id = pq["a"].put(1)
    [(name, port)] = _place(pq)
    with visiting(web_app(pq)) as client:
        for where in ("/", path("job", id=job_id), "/dead"):
            page = client.get(where).text
            assert f"{name} on " in page, where
            assert str(port) in page or "local socket" in page
        page = client.get(path("queue", name="a")).text
        assert re.search(r'<time datetime="[^"]+" title="[^"]+ UTC">&lt; 1 min ago</time>', page)


def _place(pq: PQ) -> list[Any]:
    with pq["a"] as cursor:
        cursor.execute("SELECT current_database(), inet_server_port()")
        return list(cursor.fetchall())


# Rows


def test_web_page_counts_jobs_of_tasks_that_no_worker_knows(pq: PQ) -> None:
    queue = pq["a"]
    for task in ("shop.send", "shop.gone", "shop.gone", "trusted.any"):
        queue.put(call(task))
    queue.put({"no": "call"})
    worker = RunningWorker("w", "host", 1, "0", 4)
    call_sync(announce, pq.engine, worker, {"a": ["shop.send", "trusted.*"]}, {"a": []}, 0.0)
    pq["idle"].put(call("shop.send"))
    with visiting(web_app(pq)) as client:
        page = client.get("/").text
        section = text_of(page[page.index('id="unknown"') : page.index('class="scroll card"')])
        assert "3 jobs wait" in section
        assert re.search(r"shop.gone a 2 1 ", section)
        assert re.search(r"shop.send idle 1 0 ", section)
        assert "trusted.any" not in section
        assert "shop.gone" in text_of(client.get(path("queue", name="a")).text)


def test_web_page_shows_and_sets_how_long_rows_are_kept(pq: PQ) -> None:
    pq["a"].put(1)
    with visiting(web_app(pq, changes=True)) as client:
        page = text_of(client.get("/").text)
        assert "all queues without times of their own finished rows 7.0 d 0" in page
        [link] = links(client.get("/").text, "expiry")
        asked = client.get(link).text
        assert "<option selected>all queues" in asked

        def change(**fields: str) -> httpx.Response:
            return confirmed(client, path("change", do="expiry", queue="a"), **fields)

        assert change(of="this queue", finished="1d").status_code == 303
        assert change(of="all queues without times of their own", dead="none").status_code == 303
        found = {(each.queue, each.kind): each.seconds for each in pq.expiry()}
        assert found == {("a", "finished"): 86_400, (None, "finished"): 7 * 86_400, (None, "dead"): None}
        for wrong in ({"of": "this queue"}, {"of": "x", "dead": "1d"}, {"of": "this queue", "dead": "soon"}):
            assert change(**wrong).status_code == 400
        assert len(pq.expiry()) == 3
