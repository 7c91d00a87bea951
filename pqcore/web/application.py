"""The application: its routes, its pages, and the streams that keep them up to date."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

import pqcore
from pqcore.errors import ConfigurationError, InvalidName, InvalidTimeSpec, JobNotFound, PQError
from pqcore.web import rendering, security, views
from pqcore.web.actions import ACTIONS
from pqcore.web.changes import ActionRequest
from pqcore.web.sampling import Follower, Sampler
from pqcore.web.security import ChangeNotes, SecurityMiddleware, Token
from pqcore.web.target import Target
from pqcore.web.time_limits import PAGE, NoAnswer, within
from pqcore.web.views import Views

SHORTEST_INTERVAL = 0.1
"""The smallest number of seconds between two looks."""
MOST_FOLLOWERS = 200
"""The largest number of pages that are kept up to date concurrently."""
MOST_FORM = 65_536
"""The largest number of bytes that a form may send."""
LIVE = {"queues": ("summary", "live"), "queue": ("summary", "live", "jobs"), "workers": ("summary", "live")}
"""The pages that are kept up to date; each part of a page has an event and a template."""
_STATIC = Path(__file__).parent / "static"
_LINE = re.compile(r"\r\n|\r|\n")

Handler = Callable[[Request], Awaitable[Response]]


def application(
    target: object,
    *,
    changes: bool,
    token: str | None,
    hosts: Sequence[str] | None,
    interval: float,
    options: Mapping[str, Any],
) -> Starlette:
    """Return the application; see `pqcore.web.web_app`."""
    if not isinstance(interval, (int, float)) or isinstance(interval, bool) or not interval >= SHORTEST_INTERVAL:
        raise ConfigurationError(f"interval is {interval!r}; give at least {SHORTEST_INTERVAL} seconds")
    if isinstance(hosts, str):
        raise ConfigurationError(f"hosts is {hosts!r}; give a list of names: [{hosts!r}]")
    known = None if token is None else Token(token)
    shown = Target(target, options)
    site = Site(shown, Sampler(shown, float(interval)), changes=changes, token=known)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            site.sampler.stop()
            await shown.close()

    made = Starlette(
        routes=site.routes(),
        middleware=[Middleware(SecurityMiddleware, token=known, hosts=hosts)],
        exception_handlers={PQError: site.failed, HTTPException: site.refused},
        lifespan=lifespan,
    )
    made.state.sampler = site.sampler
    return made


class Site:
    """The pages of a table.

    Args:
        target: The table.
        sampler: The sampler that reads the table for pages that are kept up to date.
        changes: Whether visitors can change jobs.
        token: The token that visitors must give; None for no token.

    Attributes:
        sampler: The sampler.
    """

    def __init__(self, target: Target, sampler: Sampler, *, changes: bool, token: Token | None) -> None:
        self.sampler = sampler
        self._target = target
        self._views = Views(target, sampler, changes=changes)
        self._changes = changes
        self._token = token
        self._notes = ChangeNotes()
        self._templates = rendering.environment()

    def routes(self) -> list[Route | Mount]:
        """The routes: those for changes exist only if changes are allowed, those for a token only if a token is set."""
        found: list[Route | Mount] = [Route("/", self._page("queues"))]
        found += [Route(f"/{name}", self._page(name)) for name in ("queue", "job", "dead", "workers")]
        found += [Route(f"/live/{name}", self._live(name)) for name in LIVE]
        found.append(Mount("/static", StaticFiles(directory=_STATIC), name="static"))
        if self._token is not None:
            found += [
                Route("/login", self.ask_token, methods=["GET"]),
                Route("/login", self.take_token, methods=["POST"]),
                Route("/logout", self.leave, methods=["POST"]),
            ]
        if self._changes:
            found += [
                Route("/change", self.ask, methods=["GET"]),
                Route("/change", self.change, methods=["POST"]),
            ]
        return found

    def _page(self, name: str) -> Handler:
        view = getattr(self._views, name)

        async def page(request: Request) -> Response:
            query = dict(request.query_params)
            values = await within(PAGE, view(query))
            await self._target.find_place()
            live, trouble = None, ""
            if name in LIVE:
                followed = views.followed(query)
                live = rendering.link(security.root_of(request.scope), f"live/{name}", **followed)
                if (age := values["sample"].age) > self.sampler.young:
                    trouble = f"The database does not answer: these figures are {rendering.age(age)} old."
            done = self._notes.read(request) if self._changes else None
            flash = "" if done is None else ACTIONS[done[0]].said.format(n=done[1])
            found = self._render(request, f"{name}.html", page=name, live=live, flash=flash, trouble=trouble, **values)
            if done is not None:
                self._notes.drop(found, request)
            return found

        return page

    def _live(self, name: str) -> Handler:
        view = getattr(self._views, name)

        async def live(request: Request) -> Response:
            if self.sampler.followers >= MOST_FOLLOWERS:
                raise HTTPException(
                    503,
                    f"{MOST_FOLLOWERS} pages already update themselves; close one, or reload this page to update it",
                )
            query = dict(request.query_params)
            follower = self.sampler.follow()  # no await since the check, so two requests cannot pass the check together

            async def events() -> AsyncIterator[bytes]:
                last = dict.fromkeys(views.parts_followed(LIVE[name], query), "")
                trouble = ""
                async with aclosing(follower.turns()) as turns:
                    async for _ in turns:
                        found, now, age = last, "", 0.0
                        try:
                            age = (await self.sampler.latest()).age
                            values = await within(PAGE, view(query))
                            found = {part: self._text(request, f"{name}_{part}.html", **values) for part in last}
                        except PQError as exc:
                            now = f"The database does not answer: {self._target.explain(exc)}"
                        if now != trouble:
                            trouble = now
                            yield _event("trouble", self._text(request, "trouble.html", trouble=trouble))
                        for part, text in found.items():
                            # If nothing has changed, send a comment, because only a failed write shows that the browser
                            # has gone.
                            yield _event(part, text) if text != last[part] else b": as it was\n\n"
                        last = found
                        if not trouble:  # the age of the figures changes, even if the figures do not
                            yield _event("figures", json.dumps({"age": round(age, 1)}))

            return _Stream(
                follower,
                events(),
                media_type="text/event-stream",
                headers={"x-accel-buffering": "no", "cache-control": "no-store"},
            )

        return live

    # Changes

    async def ask(self, request: Request) -> Response:
        """Ask the visitor to confirm a change."""
        return await self._question(request, request.query_params, "")

    async def change(self, request: Request) -> Response:
        """Make a change that was confirmed."""
        form = await _form(request)
        if not security.ours(request, form.get("key", "")):
            raise HTTPException(403, "The request is not from a form of this page: go back, reload, and try again.")
        name, wanted = self._wanted(form)
        try:
            number = await ACTIONS[name].do(self._target, wanted)
        except (ConfigurationError, InvalidName, InvalidTimeSpec) as exc:
            return await self._question(request, form, str(exc))
        if not number and ACTIONS[name].of_job:
            raise HTTPException(
                409,
                f"Nothing was changed, because job {wanted.id} of {wanted.queue.name!r} has changed in the meantime:"
                " open the page of the job again.",
            )
        with suppress(PQError):  # the change is made, even if the table cannot be read now
            await self.sampler.latest(fresh=True)
        root = security.root_of(request.scope)
        found = RedirectResponse(_page_after(root, name, wanted), 303)
        self._notes.keep(found, request, name, number)
        return found

    async def _question(self, request: Request, given: Mapping[str, str], wrong: str) -> Response:
        name, wanted = self._wanted(given)
        key = security.form_key(request)
        asked = ACTIONS[name]
        counted = ""
        is_whole = all(wanted.fields[field.name] for field in asked.fields if field.required and not field.fixed)
        if asked.counts is not None and is_whole and not wrong:
            try:
                counted = str(await within(PAGE, asked.counts(self._target, wanted)))
            except NoAnswer:
                counted = f"jobs, which could not be counted within {PAGE:g} s,"
            except (ConfigurationError, InvalidName, InvalidTimeSpec) as exc:
                wrong = str(exc)
        written = {field: text or "none" for field, text in wanted.fields.items()}
        shown = {**written, "id": wanted.id, "queue": repr(wanted.queue.name), "count": counted or "jobs"}
        root = security.root_of(request.scope)
        of_job = {"id": wanted.id, "queue": wanted.queue.name}
        page = self._render(
            request,
            "change.html",
            400 if wrong else 200,
            page="change",
            name=name,
            action=asked,
            question=asked.question.format(**shown),
            consequence=asked.consequence.format(**shown),
            counted=counted,
            back=rendering.link(root, "job", **of_job) if asked.of_job else _page_after(root, name, wanted),
            wanted=wanted,
            key=key,
            wrong=wrong,
        )
        security.keep_form_key(page, request, key)
        return page

    def _wanted(self, given: Mapping[str, str]) -> tuple[str, ActionRequest]:
        name, id_ = given.get("do", ""), given.get("id", "")
        if name not in ACTIONS:
            raise HTTPException(400, f"{name[:40]!r} is not a change that this page can make; use a form of the page")
        action = ACTIONS[name]
        number = views.number(id_) if action.of_job else 0
        if number is None:
            raise HTTPException(400, f"{id_[:40]!r} is not the id of a job")
        fields = {field.name: given.get(field.name, field.default).strip() for field in action.fields}
        return name, ActionRequest(self._target.queue(given.get("queue", "")), number, fields)

    # The token

    async def ask_token(self, request: Request) -> Response:
        """Ask for the token."""
        return self._login(request, "")

    async def take_token(self, request: Request) -> Response:
        """Give a session to a visitor who sends the token."""
        form = await _form(request)
        if not security.ours(request, form.get("key", "")):
            return self._login(request, "Your browser does not keep cookies, or this form is from another page.", 403)
        if self._token is None or not self._token.matches(form.get("token", "")):
            return self._login(request, "The token is wrong.", 403)
        found = RedirectResponse(rendering.link(security.root_of(request.scope), ""), 303)
        security.admit(found, request, self._token)
        return found

    async def leave(self, request: Request) -> Response:
        """Forget the token."""
        found = RedirectResponse(rendering.link(security.root_of(request.scope), "login"), 303)
        security.forget(found, request)
        return found

    def _login(self, request: Request, wrong: str, status: int = 200) -> Response:
        key = security.form_key(request)
        page = self._render(request, "login.html", status, page="login", wrong=wrong, key=key)
        security.keep_form_key(page, request, key)
        return page

    # Errors

    async def failed(self, request: Request, error: Exception) -> Response:
        """Show an error of pqcore."""
        assert isinstance(error, PQError)  # noqa: S101 - as registered
        status = 404 if isinstance(error, JobNotFound) else 400 if isinstance(error, InvalidName) else 503
        return self._wrong(request, status, self._target.explain(error))

    async def refused(self, request: Request, error: Exception) -> Response:
        """Show why a request was refused."""
        assert isinstance(error, HTTPException)  # noqa: S101 - as registered
        text = "There is no such page." if error.status_code == 404 else error.detail
        return self._wrong(request, error.status_code, text)

    def _wrong(self, request: Request, status: int, text: str) -> Response:
        return self._render(request, "wrong.html", status, page="wrong", text=text, code=status)

    # Answers

    def _render(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        text = self._text(request, template, **{"live": None, "flash": "", "trouble": "", **values})
        return HTMLResponse(rendering.encodable(text), status)

    def _text(self, request: Request, template: str, **values: Any) -> str:
        root = security.root_of(request.scope)
        common = {
            "link": lambda page, **query: rendering.link(root, page, **query),
            "root": root,
            "table": self._target.name,
            "backend": self._target.backend,
            "place": self._target.place,
            "now": datetime.now(timezone.utc),
            "writable": self._changes,
            "guarded": self._token is not None,
            "version": pqcore.__version__,
            "young": self.sampler.young,
            "summary": views.summary,
            "most_traceback": rendering.MOST_TRACEBACK,
            "most_in_list": rendering.MOST_IN_LIST,
        }
        return self._templates.get_template(template).render({**common, **values})


class _Stream(StreamingResponse):
    """The stream of data to a follower; when the stream ends, the follower is closed, even if nothing was sent."""

    def __init__(self, follower: Follower, content: AsyncIterator[bytes], **more: Any) -> None:
        super().__init__(content, **more)
        self._follower = follower

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._follower.close()


def _page_after(root: str, name: str, wanted: ActionRequest) -> str:
    """Return the path of the page that is shown after an action."""
    queue = wanted.queue.name
    queries: dict[str, dict[str, object]] = {
        "job": {"id": wanted.id, "queue": queue},
        "dead": {"queue": queue},
        "queue": {"name": queue},
        "workers": {},
    }
    page = ACTIONS[name].then
    return rendering.link(root, page, **queries[page])


def _event(name: str, text: str) -> bytes:
    """Return an event of a stream; each line of the text gets a field of its own."""
    lines = "".join(f"data: {line}\n" for line in _LINE.split(text))
    return rendering.encodable(f"event: {name}\n{lines}\n")


async def _form(request: Request) -> dict[str, str]:
    """Return the fields that a form sent.

    Raises:
        HTTPException: The body is too long, or is not a form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "the request is not a form; send application/x-www-form-urlencoded")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM:
            raise HTTPException(413, f"A form has at most {MOST_FORM} bytes: go back, and shorten a field.")
    try:
        found = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise HTTPException(413, "A form has at most 50 fields: use a form of this page.") from None
    return {name: values[0] for name, values in found.items()}
