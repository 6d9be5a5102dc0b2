"""What stands before the application: which hosts it may be called by, how large and how slow a request may be."""

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 5  # for the whole head of a request to arrive in, from the connection's start or its last answer on
BODY_SECONDS = 5.0  # for a body to arrive in; less than a server that ends waits


class Protocol(H11Protocol):
    """uvicorn's protocol, which closes a connection that brings no whole head of a request in time.

    uvicorn's own time begins after an answer and ends at the next byte, so that silent connections would stay for good.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        """Take bytes; unlike uvicorn's this leaves the time running, which `handle_events` stops at a whole head."""
        self.conn.receive_data(data)
        self.handle_events()


class Gate:
    """ASGI middleware that reads a request's whole body before the application sees it, or refuses the request.

    A page of another site can lead its own name to this machine (DNS rebinding) and then read what is served here; so
    the name that a request calls is checked. Without `hosts` any name will do.
    """

    def __init__(self, app: ASGIApp, hosts: list[str], max_body_bytes: int):
        self.app, self.hosts, self.max_body_bytes = app, hosts, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        status, body = 400, "this server is not called by that name; --allowed_hosts lists the names"
        if not self.hosts or _host(headers) in self.hosts:
            status, body = await self._read(int(headers.get("content-length", 0)), receive)
        if status:
            answer = JSONResponse({"detail": body}, status, {"Connection": "close"})
            return await answer(scope, receive, send)
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        return await self.app(scope, replay, send)

    async def _read(self, declared: int, receive: Receive) -> tuple[int, bytes | str]:
        """Return 0 and the body, or a status and why it is refused; in chunks a body declares no length."""
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more and max(declared, len(body)) <= self.max_body_bytes:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:
            return 408, f"the body did not arrive within {BODY_SECONDS:g} seconds"
        if max(declared, len(body)) > self.max_body_bytes:
            return 413, f"the body has more than {self.max_body_bytes:,} bytes; send fewer histories at a time"
        return 0, bytes(body)


def _host(headers: Headers) -> str | None:
    """Return the name that a request calls, without its port; None where it is no name."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None
