"""What a request must pass before anything reads it: its size, the host it names, the key.

Plain ASGI, so that a body is counted as it comes and streams pass through.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health", "/ready")  # told to everyone: the page holds no data
LOCAL = ("127.0.0.1", "localhost", "[::1]")  # what a page from elsewhere cannot be called


class Guard:
    """Lets through what may be; `key` None: everyone who can reach the server. `hosts` None: any
    name of the server's is good.
    """

    def __init__(self, app: App, *, key: str | None, hosts: tuple[str, ...] | None, most: int):
        self._app, self._key, self._hosts, self._most = app, key, hosts, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        problem = self._problem(scope["path"], headers)
        if problem is not None:
            await _answer(send, *problem)
            return
        counted = _Counted(receive, self._most)

        async def answer(message: MutableMapping[str, Any]) -> None:
            if not counted.is_over:
                await send(message)
            elif message["type"] == "http.response.start":  # what the application makes of the rest
                await _answer(send, *self._too_large())

        await self._app(scope, counted, answer)

    def _problem(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str, str] | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._hosts is not None and name not in self._hosts:
            return (
                421,
                "invalid_request_error",
                "expected this machine's own name, such as 127.0.0.1, as the host",
            )
        if headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            return (
                403,
                "invalid_request_error",
                "a page of another site asks; open the server's own",
            )
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.partition("://")[2] != host:
            return (
                403,
                "invalid_request_error",
                "a page of another site asks; open the server's own",
            )
        if self._key is not None and path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            good = scheme.lower() == b"bearer"
            if not (good and secrets.compare_digest(given.strip(), self._key.encode())):
                return 401, "authentication_error", "expected Authorization: Bearer and the API key"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return (
                400,
                "invalid_request_error",
                "content-length is no number; give the body's bytes",
            )
        if len(length) > 18 or int(length) > self._most:
            return self._too_large()
        return None

    def _too_large(self) -> tuple[int, str, str]:
        return 413, "invalid_request_error", f"a request may have {self._most:,} bytes; send fewer"


class _Counted:
    """What is received, up to so many bytes; beyond them the client counts as gone."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left = receive, most

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        return {"type": "http.disconnect"} if self.is_over else message

    @property
    def is_over(self) -> bool:
        """Whether more has come than may."""
        return self._left < 0


async def _answer(send: Send, status: int, kind: str, message: str) -> None:
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
