"""The web page in a real browser: it updates itself, is accessible, and loads nothing from other hosts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, ViewportSize, expect, sync_playwright

from pqcore import PQ
from pqcore.testing.harness import PATIENCE
from pqcore.testing.http_server import serving
from pqcore.testing.proxy import Proxy
from pqcore.web import web_app

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SCREENS: dict[str, ViewportSize] = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 800}}
MANY = 100_000
TOKEN = "a token that is long enough"
LONG = "a.function.with.a.very.long.path.that." + "goes_on_and_on" * 8
CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const found = channels(getComputedStyle(element).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
      if (found[3] !== 0) throw new Error("half transparent: " + element.outerHTML);
    }
    throw new Error("nothing behind");
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("script, noscript, svg, .hidden, .skip")) continue;
    const [one, other] = [channels(getComputedStyle(element).color), ground(element)].map(light);
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    found.push([contrast, walker.currentNode.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=program, args=QUIET)
        except Error as exc:
            pytest.fail(
                f"no browser could be started: install Debian's chromium, or run `make .venv/browser`, or"
                f" `playwright install chromium-headless-shell` ({exc})"
            )
        yield started
        started.close()


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


@pytest.fixture
def address(pq: PQ) -> Iterator[str]:
    """The address of the page, with changes allowed."""
    with serving(web_app(pq, changes=True, interval=0.1)) as where:
        yield where


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """Open pages; fail at the end if the browser complained, or sent a request to another host."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []
    requests: list[str] = []

    def open_page(where: str = "/", **options: Any) -> Page:
        context = browser.new_context(base_url=address, **options)
        context.set_default_timeout(1_000 * PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(where)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert requests
    assert {urlsplit(url).netloc for url in requests} == {urlsplit(address).netloc}
    assert complaints == []


def path(page: str, **query: object) -> str:
    return f"/{page}?{urlencode(query)}"


def bury(dsn: str, pq: PQ, queue: str) -> int:
    """Make a dead letter."""
    job_id = pq[queue].put({"function": LONG, "args": ["x" * 500], "kwargs": {}})
    error = {"type": "orchard.Rotten", "message": "y" * 300, "traceback": "Traceback of it\n  " + "z" * 400}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "WITH gone AS (DELETE FROM queue WHERE id = %s RETURNING *)"
            " INSERT INTO queue_dead (id, q_name, data, serializer, enqueued_at, attempts, failures, reason, error)"
            " SELECT id, q_name, data, serializer, enqueued_at, 3, 3, 'failed', %s FROM gone",
            (job_id, json.dumps(error)),
        )
    return job_id


def full(dsn: str, pq: PQ) -> list[str]:
    """All pages, with content on each, and names that are too long for a phone."""
    name = "a_queue_with_a_name_" + "that_goes_on_and_on_" * 5
    queue = pq[name]
    queue.put(1)
    queue.get()
    queue.put({"function": LONG, "args": [], "kwargs": {}})
    queue.lease(600)
    queue.put({"n": "x" * 1_000}, group="g" * 200)
    queue.put({"n": 1}, "5m", "10m")
    dead = bury(dsn, pq, name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO queue_ticks VALUES (%s, %s, now())", (name, LONG))
    states = [path("queue", name=name, state=state) for state in ("", "leased", "scheduled", "done", "dead")]
    asked = [path("change", do=do, queue=name, id=dead) for do in ("retry", "purge-dead")]
    return ["/", *states, path("job", id=dead), "/dead", path("dead", queue=name), "/workers", *asked]


def test_web_page_follows_new_jobs(pq: PQ, visit: Visit) -> None:
    pq["apples"].put(1)
    overview, queue = visit("/"), visit(path("queue", name="apples"))
    for page in (overview, queue):
        expect(page.locator("#state")).to_have_text("Live")
        expect(page.locator(".tile.ready dd")).to_have_text("1")
    second = pq["apples"].put(2)
    pq["pears"].put(3)
    expect(overview.locator(".tile.ready dd")).to_have_text("3")
    expect(overview.get_by_role("link", name="pears")).to_be_visible()
    expect(queue.locator(".tile.ready dd")).to_have_text("2")
    expect(queue.locator(f"#job-{second}")).to_be_visible()
    expect(queue.locator(".chart .line.ready").first).to_be_attached()
    # An update keeps the keyboard focus where it is.
    link = overview.get_by_role("link", name="pears")
    link.focus()
    pq["pears"].put(4)
    expect(overview.locator(".tile.ready dd")).to_have_text("4")
    expect(link).to_be_focused()


def test_web_page_is_live_only_while_the_server_answers(
    dsn: str, pq: PQ, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqcore.web.sampling.ANSWER", 0.5)
    pq["apples"].put(1)
    proxy = Proxy(dsn)
    target = proxy.dsn.replace("postgresql:", "postgresql+psycopg:")
    try:
        with serving(web_app(target, interval=0.1)) as address, browser.new_context(base_url=address) as context:
            page = context.new_page()
            page.goto("/")
            state, age = page.locator("#state"), page.locator("#age")
            expect(state).to_have_text("Live")
            expect(age).to_have_text(re.compile(r"Figures are \d s old"))
            proxy.stall(new=True)
            expect(state).to_have_text("Not live")
            expect(page.get_by_role("alert")).to_contain_text("does not answer")
            expect(age).to_have_text(re.compile(r"Figures are [2-9] s old"))  # the counter goes on
            proxy.close()
    finally:
        proxy.close()


def test_web_page_retries_a_dead_letter_after_confirmation(dsn: str, pq: PQ, visit: Visit) -> None:
    job_id = bury(dsn, pq, "apples")
    page = visit("/dead")
    page.get_by_text("Traceback", exact=True).click()
    expect(page.get_by_text("Traceback of it")).to_be_visible()
    page.get_by_role("link", name=f"Retry {job_id}").click()
    expect(page.get_by_role("heading")).to_have_text(f"Run job {job_id} of 'apples' again?")
    page.get_by_role("link", name="Leave it").click()
    assert pq["apples"].dead.count() == 1
    page.get_by_role("link", name="Retry").click()
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_have_text("The job is due now.")
    assert pq["apples"].dead.count() == 0
    assert pq["apples"].count() == 1


def test_web_page_asks_for_the_token_in_a_form(pq: PQ, browser: Browser) -> None:
    pq["apples"].put(1)
    with serving(web_app(pq, token=TOKEN, changes=True)) as address, browser.new_context(base_url=address) as context:
        page = context.new_page()
        page.goto("/")
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("The token is wrong.")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("link", name="apples")).to_be_visible()
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        page.goto("/workers")
        expect(page.get_by_label("Token")).to_be_visible()


def test_web_page_has_enough_contrast_in_light_and_dark(dsn: str, pq: PQ, visit: Visit) -> None:
    grounds = set()
    pages = full(dsn, pq)
    for scheme in ("light", "dark"):
        page = visit(pages[0], color_scheme=scheme)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for where in pages:
            page.goto(where)
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 5
            assert [each for each in contrasts if each[0] < 4.5] == [], (scheme, where)
    assert len(grounds) == 2


@pytest.mark.parametrize("screen", SCREENS)
def test_web_page_fits_the_screen(screen: str, dsn: str, pq: PQ, visit: Visit) -> None:
    pages = full(dsn, pq)
    page = visit(pages[0], viewport=SCREENS[screen])
    for where in pages:
        page.goto(where)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= SCREENS[screen]["width"], where


def put_rows(dsn: str, number: int) -> None:
    """Put jobs of one queue with SQL: every tenth is finished, and every hundredth is a dead letter."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO queue (q_name, data, serializer, dequeued_at) SELECT 'many', to_json(n), 'json',"
            " CASE WHEN n %% 10 = 0 THEN now() END FROM generate_series(1, %s) AS n",
            (number,),
        )
        connection.execute(
            "WITH gone AS (DELETE FROM queue WHERE q_name = 'many' AND data::text::int % 100 = 1 RETURNING *)"
            " INSERT INTO queue_dead (id, q_name, data, serializer, enqueued_at, attempts, failures, reason, error)"
            " SELECT id, q_name, data, serializer, enqueued_at, 3, 3, 'failed', '{\"type\": \"orchard.Rotten\"}'"
            " FROM gone"
        )
        connection.execute("ANALYZE queue; ANALYZE queue_dead")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_web_page_is_live_with_many_jobs_until_the_server_is_frozen(
    screen: str, scheme: Literal["light", "dark"], dsn: str, pq: PQ, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_rows(dsn, MANY)
    proxy = Proxy(dsn)
    target = proxy.dsn.replace("postgresql:", "postgresql+psycopg:")
    try:
        with (
            serving(web_app(target, interval=0.2)) as address,
            browser.new_context(base_url=address, viewport=SCREENS[screen], color_scheme=scheme) as context,
        ):
            page = context.new_page()
            page.goto(path("queue", name="many", state="ready"))
            expect(page.locator(".tile.ready dd")).to_have_text(re.compile(r"^89\W000$"))
            expect(page.locator("#state")).to_have_text("Live")
            page.goto("/dead")
            expect(page.get_by_text(re.compile(r"1\W000")).first).to_be_visible()
            letter = page.locator("article.letter a").first
            expect(letter).to_be_visible()
            letter.click()
            expect(page.get_by_text("orchard.Rotten").first).to_be_visible()  # its error has no traceback
            page.goto("/")
            new = pq["many"].put(1)
            expect(page.locator(".tile.ready dd")).to_have_text(re.compile(r"^89\W001$"))
            page.goto(path("job", id=new))
            expect(page.get_by_role("heading", level=1)).to_contain_text(str(new))
            page.goto("/")
            expect(page.locator("#state")).to_have_text("Live")
            monkeypatch.setattr("pqcore.web.sampling.ANSWER", 0.5)
            proxy.stall(new=True)
            expect(page.locator("#state")).to_have_text("Not live")
            expect(page.get_by_role("alert")).to_contain_text("does not answer")
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= SCREENS[screen]["width"]
            proxy.close()
    finally:
        proxy.close()


def test_web_page_works_without_javascript(dsn: str, pq: PQ, visit: Visit) -> None:
    pages = full(dsn, pq)
    page = visit(pages[0], java_script_enabled=False)
    expect(page.get_by_text("reload for more")).to_be_visible()
    for where in pages:
        page.goto(where)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        tables = page.get_by_role("table")
        for number in range(tables.count()):
            assert tables.nth(number).get_by_role("columnheader").count() >= 3
            assert tables.nth(number).get_by_role("rowheader").count() >= 1
