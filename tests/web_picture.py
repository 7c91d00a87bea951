"""Draw the picture of the web page for the documents: sample jobs run on an embedded server, and a browser shows them.

Run ``make picture``, or ``python -m tests.web_picture FILE --seconds 300``. The charts show the time since the start.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import shutil
import time

from playwright.sync_api import sync_playwright

from pqcore import AsyncPQ
from pqcore.tasks import current
from pqcore.testing.http_server import serving
from pqcore.web import web_app
from pqcore.worker import Worker
from pqcore_backends.embedded import EmbeddedServer

WIDTH, HEIGHT = 1200, 1260
SECONDS = 300.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def draw(address: str, path: str, seconds: float) -> None:
    """Keep the page of the sample queue open for a time, and then write what the browser shows to a PNG file."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(f"{address}/queue?name=emails&span=15+min")
        page.wait_for_timeout(1_000 * seconds)
        page.screenshot(path=path)
        browser.close()


async def run(dsn: str, path: str, seconds: float) -> None:
    """Put and run sample jobs for a time, and draw the page."""
    random.seed(7)
    async with AsyncPQ(dsn) as pq:
        await pq.create()
        queue = pq["emails"]

        @queue.task(name="shop.send_receipt", max_retries=1, retry_in="3s")
        async def send_receipt(order: int) -> None:
            await asyncio.sleep(random.expovariate(2))
            if order % 149 == 0:
                raise ConnectionError("the mail server does not answer")

        @queue.task(name="shop.send_newsletter", limit=3)
        async def send_newsletter(part: int) -> None:
            for sent in range(0, 500, 10):
                current().progress({"sent": sent, "of": 500})
                await asyncio.sleep(0.5)

        @queue.task(name="shop.close_issue")
        async def close_issue() -> None: ...

        worker = Worker(queue, concurrency=20)
        running = asyncio.create_task(worker.run())
        with serving(web_app(dsn)) as address:
            drawing = asyncio.create_task(asyncio.to_thread(draw, address, path, seconds))
            started, order, batch = time.monotonic(), 0, None
            while not drawing.done():
                passed = time.monotonic() - started
                if batch is None and passed > seconds - 40:
                    batch = await queue.batch(*map(send_newsletter.call, range(20)), then=close_issue.call())
                for _ in range(round(34 * (1 + math.sin(passed / 25)))):
                    order += 1
                    later = "1h" if order % 200 == 0 else None
                    await send_receipt.options(schedule_at=later)(order)
                await asyncio.sleep(1)
            await drawing
        running.cancel()
        await asyncio.wait([running])


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", metavar="FILE", help="the PNG file to write")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long jobs run before the picture")
    given = parser.parse_args()
    with EmbeddedServer() as server:
        asyncio.run(run(server.dsn(), given.path, given.seconds))


if __name__ == "__main__":
    main()
