"""Access to the page: the token, host names, forms, and the security headers of every response."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from itsdangerous import BadData, TimestampSigner
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pqcore.errors import ConfigurationError

SHORTEST_TOKEN = 16
"""The smallest number of characters of a token: a shorter token can be guessed."""
SESSION, FORM, DONE = "pqcore_web_session", "pqcore_web_form", "pqcore_web_done"
"""Cookies: the session of a visitor who gave the token; the key that forms must repeat; the change made last."""
_ADMITTED = "admitted"
"""The content of a session cookie, next to the time and the signature."""
SESSION_LENGTH = 12 * 3_600
"""Seconds after which a visitor must give the token again."""
DONE_LENGTH = 60
"""Seconds within which the page after a change says that the change was made."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_STATIC, _LOGIN = "/static/", "/login"
"""Paths that need no token."""


class Token:
    """The token that visitors must know.

    Args:
        secret: The token.

    Raises:
        ConfigurationError: The token is too short.
    """

    def __init__(self, secret: str) -> None:
        if len(secret) < SHORTEST_TOKEN:
            raise ConfigurationError(
                f"the token has {len(secret)} characters; give at least {SHORTEST_TOKEN}, for example the "
                "output of `python -c 'import secrets; print(secrets.token_urlsafe())'`"
            )
        self._secret = secret.encode()
        # The key that signs cookies takes long to derive, so a stolen cookie helps little to guess the token.
        key = hashlib.scrypt(self._secret, salt=b"pqcore.web", n=2**14, r=8, p=1, maxmem=2**26)
        self._signer = TimestampSigner(key, salt=SESSION, key_derivation="hmac", digest_method=hashlib.sha256)

    def matches(self, given: str) -> bool:
        """Return whether this is the token, in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._secret)

    def session(self) -> str:
        """Return the value of a session cookie: it proves that the visitor gave the token, without containing it."""
        return self._signer.sign(_ADMITTED).decode()

    def admits(self, cookie: str) -> bool:
        """Whether a session cookie was signed with this token, at most `SESSION_LENGTH` seconds ago."""
        return self._signer.validate(cookie.encode("utf-8", "replace"), SESSION_LENGTH)


class ChangeNotes:
    """Notes of changes; the next page that the visitor opens shows each note.

    Notes are signed, so that no link or other site can forge one. The key lasts as long as the process. If another
    process serves the next page, the page does not mention the change.
    """

    def __init__(self) -> None:
        self._signer = TimestampSigner(secrets.token_bytes(32), salt=DONE, digest_method=hashlib.sha256)

    def keep(self, response: Response, request: Request, name: str, number: int) -> None:
        """Set a cookie with the name of an action and the number of jobs or rules that the action changed."""
        value = self._signer.sign(f"{name}:{number}").decode()
        _set_cookie(response, request, DONE, value, DONE_LENGTH)

    def read(self, request: Request) -> tuple[str, int] | None:
        """Return the action's name and the number of changes; None without a note, or with a forged one."""
        try:
            text = self._signer.unsign(request.cookies.get(DONE, ""), DONE_LENGTH).decode()
        except BadData:
            return None
        name, _, number = text.partition(":")
        return name, int(number)

    def drop(self, response: Response, request: Request) -> None:
        """Make the browser delete the cookie that holds the note."""
        response.delete_cookie(DONE, path=root_of(request.scope) or "/")


class SecurityMiddleware:
    """Refuses requests without the token or with an unknown host name, and adds headers to every response.

    Args:
        app: The application.
        token: The token that visitors must give; None for no token.
        hosts: The host names that are answered, without ports; None for any.
    """

    def __init__(self, app: ASGIApp, token: Token | None, hosts: Sequence[str] | None) -> None:
        self._app = app
        self._token = token
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        path = path_of(scope)

        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("referrer-policy", "no-referrer")
                headers.setdefault("cache-control", "no-cache" if path.startswith(_STATIC) else "no-store")
            await send(message)

        refusal = self._refusal(request, path)
        try:
            await (self._app if refusal is None else refusal)(scope, receive, sending)
        except Exception:  # Starlette would answer outside of this class, without the headers
            if not begun:
                await PlainTextResponse("an error of the page's own: see its log", 500)(scope, receive, sending)
            raise

    def _refusal(self, request: Request, path: str) -> Response | None:
        if self._hosts is not None and _name(request.headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("this page is not served under that name", 421)
        if self._token is None or path == _LOGIN or path.startswith(_STATIC):
            return None
        if request.method == "GET" and (given := request.query_params.get("token")) and self._token.matches(given):
            left = request.url.remove_query_params("token")
            found = RedirectResponse(f"{left.path}?{left.query}" if left.query else left.path, 303)
            admit(found, request, self._token)
            return found
        if self._token.admits(request.cookies.get(SESSION, "")):
            return None
        if request.method == "GET" and not path.startswith("/live/"):
            return RedirectResponse(f"{root_of(request.scope)}{_LOGIN}", 303)
        return PlainTextResponse("give the token first", 401)


def admit(response: Response, request: Request, token: Token) -> None:
    """Set the cookie that says that the browser gave the token."""
    _set_cookie(response, request, SESSION, token.session(), SESSION_LENGTH)


def forget(response: Response, request: Request) -> None:
    """Delete the cookie that says that the browser gave the token."""
    response.delete_cookie(SESSION, path=root_of(request.scope) or "/")


def root_of(scope: Scope) -> str:
    """Return the path at which the application is mounted, without a slash at its end."""
    return str(scope.get("root_path", "")).rstrip("/")


def path_of(scope: Scope) -> str:
    """Return the path within the application."""
    path, root = str(scope["path"]), root_of(scope)
    return path[len(root) :] if root and path.startswith(root + "/") else path


def form_key(request: Request) -> str:
    """Return the key that forms must repeat: that of the browser's cookie, or a new one."""
    return request.cookies.get(FORM) or secrets.token_urlsafe(24)


def keep_form_key(response: Response, request: Request, key: str) -> None:
    """Set a cookie with the key that the browser's forms must repeat; other sites can neither read nor send the key."""
    _set_cookie(response, request, FORM, key, None)
    # With "no-referrer", browsers would not send the origin of a form.
    response.headers["referrer-policy"] = "same-origin"


def ours(request: Request, given: str) -> bool:
    """Return whether a request comes from a form of this page.

    Args:
        request: The request.
        given: The key that the form repeated.
    """
    kept = request.cookies.get(FORM, "")
    return bool(kept) and hmac.compare_digest(given.encode("utf-8", "replace"), kept.encode()) and _own_origin(request)


def _own_origin(request: Request) -> bool:
    headers = request.headers
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site not in (None, "same-origin"):
        return False
    if origin is None:
        return site == "same-origin"
    # A proxy that changes the Host header stores the original name in X-Forwarded-Host. No other site can make a
    # browser send that header.
    names = (headers.get("host"), headers.get("x-forwarded-host"))
    return urlsplit(origin).netloc in [name for name in names if name]


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    return (host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]).lower()


def _set_cookie(response: Response, request: Request, name: str, value: str, length: int | None) -> None:
    secure = request.url.scheme == "https"
    root = root_of(request.scope) or "/"
    response.set_cookie(name, value, length, path=root, secure=secure, httponly=True, samesite="strict")
