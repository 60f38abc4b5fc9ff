"""What a server takes from a client: bytes, pixels, seconds and requests; and who is let in.

This is a layer around the application, so that nothing of a body is read before it is allowed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/livez", "/readyz", "/openapi.json")  # and the page's files: they hold no results
MOST_CLIENTS = 10_000  # whose rate is remembered
BURST_SECONDS = 10  # a client may use the requests of so many seconds at once

log = logging.getLogger("psp_rt.serving")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for.

    Args:
        body_bytes: Of a whole request.
        pixels: Of a picture, once decoded.
        results: Pictures that one request may get: faces times styles.
        seconds: For the work on one request, waiting included.
        body_seconds: Between two parts of a body; slow clients are let go after that.
        queue: Requests that wait for each engine; beyond them, clients are sent away.
        rate: Requests a second of one client address; None does not count.
        token: Clients must send it as ``Authorization: Bearer TOKEN``; None lets everybody in.
    """

    body_bytes: int = 32 << 20
    pixels: int = 50_000_000
    results: int = 64
    seconds: float = 60.0
    body_seconds: float = 15.0
    queue: int = 32
    rate: float | None = None
    token: str | None = None


class TooLarge(Exception):
    """A body has more bytes than allowed."""


class SlowBody(Exception):
    """A client stopped sending in the middle of a body."""


class LimitingApp:
    """Lets requests through that keep to the limits; names and logs each one."""

    def __init__(self, app: App, limits: Limits, finished: Callable[[str, int, float], None]) -> None:
        self._app, self._limits, self._finished = app, limits, finished
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (tokens, when)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, request_id, status = time.perf_counter(), uuid.uuid4().hex[:16], 500
        scope["request_id"] = request_id
        begun = False

        async def send_named(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refused = self._refused(scope)
            if refused is not None:
                await _answer(send_named, *refused)
            else:
                await self._app(scope, self._counting(receive), send_named)
        except (TooLarge, SlowBody) as error:
            if not begun:
                await _answer(send_named, 413 if isinstance(error, TooLarge) else 408, str(error))
        finally:
            seconds = time.perf_counter() - started
            self._finished(scope["path"], status, seconds)
            client = (scope.get("client") or ("-",))[0]
            log.info(
                json.dumps(
                    {
                        "id": request_id,
                        "client": client,
                        "method": scope["method"],
                        "path": scope["path"][:200],
                        "status": status,
                        "seconds": round(seconds, 4),
                    }
                )
            )

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason for which a request is not looked at."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.body_bytes:
            shown = length[:20].decode("latin-1")
            return 413, f"the body has {shown} bytes, expected at most {self._limits.body_bytes}"
        path = scope["path"]
        if self._limits.token is not None and path not in OPEN_PATHS and not path.startswith("/page/"):
            given = headers.get(b"authorization", b"").partition(b" ")[2]
            if not hmac.compare_digest(given, self._limits.token.encode()):
                return 401, "expected the header Authorization: Bearer TOKEN, with this server's token"
        if (
            self._limits.rate is not None
            and path.startswith("/v1/")
            and not self._may((scope.get("client") or ("-",))[0])
        ):
            return 429, f"more than {self._limits.rate:g} requests a second from this address; wait a moment"
        return None

    def _may(self, client: str) -> bool:
        """Take one request from a client's allowance (a token bucket)."""
        assert self._limits.rate is not None
        now, most = time.monotonic(), max(1.0, self._limits.rate * BURST_SECONDS)
        tokens, when = self._allowance.pop(client, (most, now))
        tokens = min(most, tokens + (now - when) * self._limits.rate)
        allowed = tokens >= 1
        self._allowance[client] = (tokens - allowed, now)
        if len(self._allowance) > MOST_CLIENTS:
            self._allowance.popitem(last=False)
        return allowed

    def _counting(self, receive: Receive) -> Receive:
        count, complete = 0, False

        async def counted() -> Message:
            nonlocal count, complete
            if complete:  # what comes now is the end of the connection, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._limits.body_seconds)
            except asyncio.TimeoutError:
                raise SlowBody(f"no part of the body came in {self._limits.body_seconds:g} seconds") from None
            count += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if count > self._limits.body_bytes:
                raise TooLarge(f"the body has more than {self._limits.body_bytes} bytes")
            return message

        return counted


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
