"""Who is let in: the token once, then its cookie, from this machine's own pages only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the browser front-end is not installed")

from aiohttp import web  # noqa: E402
from aiohttp.test_utils import TestClient, TestServer  # noqa: E402
from ShapePriorBrowser.access import Access  # noqa: E402

Story = Callable[[Access, TestClient], Awaitable[None]]


async def page(request: web.Request) -> web.Response:
    return web.Response(text="page")


async def socket(request: web.Request) -> web.WebSocketResponse:
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    await answer.send_str("hello")
    await answer.close()
    return answer


def told(story: Story) -> None:
    """Run a story against a small server behind the guard."""

    async def run() -> None:
        access = Access()
        application = web.Application(middlewares=[access.guard])
        application.router.add_get("/index.html", page)
        application.router.add_get("/ws", socket)
        # Cookies of numeric addresses are kept on request only.
        jar = aiohttp.CookieJar(unsafe=True)
        async with TestClient(TestServer(application), cookie_jar=jar) as client:
            await story(access, client)

    asyncio.run(run())


def entry(access: Access, client: TestClient) -> str:
    """The path and query of the address that is printed."""
    return access.address(client.port).split(str(client.port), 1)[1]


def test_the_token_opens_the_page_and_the_websocket():
    async def story(access, client):
        answer = await client.get(entry(access, client))
        assert (answer.status, await answer.text()) == (200, "page")
        assert "token" not in str(answer.url)
        async with client.ws_connect("/ws") as opened:
            assert await opened.receive_str() == "hello"

    told(story)


def test_nothing_without_the_token():
    async def story(access, client):
        for path in ("/", "/index.html", "/ws", "/?token=", "/?token=guess", "/unknown"):
            assert (await client.get(path)).status == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect("/ws")
        assert refused.value.status == 403

    told(story)


def test_the_token_works_once():
    async def story(access, client):
        address = entry(access, client)
        assert (await client.get(address)).status == 200
        client.session.cookie_jar.clear()
        assert (await client.get(address)).status == 403

    told(story)


def test_a_token_on_another_path_is_worth_nothing():
    async def story(access, client):
        token = entry(access, client).split("?")[1]
        assert (await client.get(f"/index.html?{token}")).status == 403
        assert (await client.get(f"/ws?{token}")).status == 403

    told(story)


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}]
)
def test_other_names_and_other_pages_are_refused_with_the_cookie_too(headers):
    async def story(access, client):
        assert (await client.get(entry(access, client))).status == 200
        assert (await client.get("/index.html", headers=headers)).status == 403

    told(story)


def test_a_page_of_another_server_on_this_machine_is_refused():
    async def story(access, client):
        assert (await client.get(entry(access, client))).status == 200
        other = {"Origin": f"http://127.0.0.1:{client.port + 1}"}
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.ws_connect("/ws", headers=other)
        own = {"Origin": f"http://127.0.0.1:{client.port}"}
        async with client.ws_connect("/ws", headers=own) as opened:
            assert await opened.receive_str() == "hello"

    told(story)


def test_scripts_do_not_get_the_cookie():
    async def story(access, client):
        answer = await client.get(entry(access, client), allow_redirects=False)
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert answer.headers["Cache-Control"] == "no-store"

    told(story)
