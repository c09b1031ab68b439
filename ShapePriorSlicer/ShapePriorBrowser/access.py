"""Who may talk to the server: only the browser that was given its address, once."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NAMES = ("127.0.0.1", "localhost")
REFUSED = "Open the address that was printed when the server started; it works once."


class Access:
    """A token that is exchanged for a cookie, once.

    The token stands in the address, so it may end up in a history or over a shoulder: it is worth
    nothing after its first use. The cookie stays out of the reach of scripts.
    """

    def __init__(self) -> None:
        self._token: str | None = secrets.token_urlsafe(24)
        self._session = secrets.token_urlsafe(32)
        # Cookies know no ports: two servers on this machine must not take each other's.
        self._cookie = f"ShapePrior-{secrets.token_hex(4)}"

    def address(self, port: int) -> str:
        """What to open in the browser."""
        return f"http://{NAMES[0]}:{port}/?token={self._token}"

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let pages, files and the websocket through to those who hold the cookie."""
        if not _isOurs(request):
            return web.Response(status=403, text="This server talks to this machine only.")
        if _same(request.cookies.get(self._cookie), self._session):
            return await handler(request)
        if request.path == "/" and _same(request.query.get("token"), self._token):
            return self._exchanged()
        return web.Response(status=403, text=REFUSED)

    def _exchanged(self) -> web.Response:
        self._token = None
        response = web.Response(status=303, headers={"Location": "/index.html"})
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="Lax", path="/")
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def _isOurs(request: web.Request) -> bool:
    """Whether it came by this machine's own name, and from no other site's page.

    A name that others let point to this machine (DNS rebinding) is not ours; nor is a page that
    another server of this machine gave out, although it would send our cookie along.
    """
    origin = request.headers.get("Origin")
    host = request.headers.get("Host", "")
    return urlsplit(f"//{host}").hostname in NAMES and (
        origin is None or urlsplit(origin).netloc == host
    )


def _same(given: str | None, wanted: str | None) -> bool:
    return bool(given and wanted) and secrets.compare_digest(str(given), str(wanted))
