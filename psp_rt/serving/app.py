"""The routes: pictures and codes in, pictures and codes out, health, figures, and the page."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load as read_safetensors
from safetensors.numpy import save as to_safetensors
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..errors import InputError, OutOfMemoryError, PixelLimitError, PspError
from ..faces.detect import default_finder
from ..input_checks import collected
from ..style import Codes
from ..translator import Translator
from . import work
from .bodies import FORMATS, Body, read_body
from .limits import LimitingApp, Limits, SlowBody, TooLarge
from .metrics import Metrics
from .openapi import document
from .served import Busy, ClientLeft, Served, TooSlow
from .work import Answer, Result, TooManyResults

PAGE = Path(__file__).parent / "page"
SAFETENSORS = "application/safetensors"
CLIENT_LEFT = 499  # nobody reads it; it is what logs call such a request

log = logging.getLogger("psp_rt.serving")


class Server:
    """The state behind the routes.

    Args:
        served: The engines; the first one is the default.
        limits: What requests may ask for.
    """

    def __init__(self, served: Sequence[Served], limits: Limits) -> None:
        self.served, self.limits, self.ready = {each.name: each for each in served}, limits, False
        self.metrics = Metrics(served)

    async def warm_up(self) -> None:
        """Run every engine once; the server is ready after that."""
        if any(each.manifest.input is not None for each in self.served.values()):
            await asyncio.to_thread(_find_once)
        for each in self.served.values():
            await each.submit(_run_once, queue_length=each.workers, seconds=3600)
        self.ready = True

    def engine(self, name: str | None) -> Served:
        """Return an engine by name."""
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            raise HTTPException(404, f"there is no engine {name[:60]!r}; expected {', '.join(self.served)}")
        return self.served[name]

    async def submit(self, request: Request, served: Served, do: Callable[[Translator], Any]) -> Any:
        """Do a request's work in its turn."""

        async def left() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        return await served.submit(do, queue_length=self.limits.queue, seconds=self.limits.seconds, left=left)

    async def run(self, request: Request) -> Response:
        """POST /v1/run: a picture, translated."""
        body = await read_body(request, self.limits)
        served = self.engine(body.options.engine)
        answer = await self.submit(request, served, partial(work.translate, body=body, limits=self.limits))
        return self.respond(request, served, body, answer)

    async def encode(self, request: Request) -> Response:
        """POST /v1/encode: the codes of a picture's faces."""
        body = await read_body(request, self.limits)
        served = self.engine(body.options.engine)
        codes, answer = await self.submit(
            request, served, partial(work.encode, body=body, limits=self.limits)
        )
        self.metrics.answered(served, answer)
        if SAFETENSORS in request.headers.get("accept", ""):
            return Response(to_safetensors({"codes": codes}), media_type=SAFETENSORS)
        return JSONResponse({"codes": codes.tolist(), "shape": list(codes.shape), **_said(answer)})

    async def generate(self, request: Request) -> Response:
        """POST /v1/generate: pictures of codes, or of seeds alone."""
        body = await read_body(request, self.limits, raw="")
        served = self.engine(body.options.engine)
        codes = codes_of(body, served)
        do = partial(work.generate, codes=codes, options=body.options, limits=self.limits)
        answer = await self.submit(request, served, do)
        return self.respond(request, served, body, answer)

    async def engines(self, request: Request) -> Response:
        """GET /v1/engines: what is served."""
        return JSONResponse({"engines": [describe(each) for each in self.served.values()]})

    async def live(self, request: Request) -> Response:
        """GET /livez: the process answers."""
        return JSONResponse({"status": "alive"})

    async def readiness(self, request: Request) -> Response:
        """GET /readyz: every engine has run once."""
        return JSONResponse({"status": "ready" if self.ready else "warming up"}, 200 if self.ready else 503)

    async def figures(self, request: Request) -> Response:
        """GET /metrics: figures for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json: these routes, described."""
        return JSONResponse(document(list(self.served), self.limits))

    async def page(self, request: Request) -> Response:
        """GET /: the page that draws."""
        headers = {"cache-control": "no-cache", "content-security-policy": POLICY}
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html", headers=headers)

    def respond(self, request: Request, served: Served, body: Body, answer: Answer) -> Response:
        """Return one picture as a file, several of them side by side, or all of them as JSON."""
        self.metrics.answered(served, answer)
        options = body.options
        accepted = request.headers.get("accept", "")
        sent_json = request.headers.get("content-type", "").startswith("application/json")
        if "application/json" in accepted or (sent_json and "image/" not in accepted):
            return JSONResponse(
                {"engine": served.name, "results": [_result(r) for r in answer.results], **_said(answer)}
            )
        data = answer.results[0].data if len(answer.results) == 1 else _side_by_side(answer.results, body)
        headers = {"x-results": str(len(answer.results))}
        if answer.report:
            headers["x-report"] = answer.report.encode("ascii", "replace").decode()
        for warning in answer.warnings[:1]:
            headers["x-warning"] = str(warning).encode("ascii", "replace").decode()
        return Response(data, media_type=FORMATS[options.format], headers=headers)


# Scripts, pictures and requests of this page alone; blob: is what it makes itself, and data: small icons.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)


def create_app(
    served: Sequence[Served], limits: Limits | None = None, *, allow_origins: Sequence[str] = ()
) -> Callable[..., Awaitable[None]]:
    """Return the ASGI application.

    Args:
        served: The engines; they are closed with the application.
        limits: What requests may ask for.
        allow_origins: Pages of these origins may use it (CORS); by default only its own page.
    """
    server = Server(served, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        warming = asyncio.create_task(server.warm_up())
        warming.add_done_callback(_report_failure)
        yield
        server.ready = False
        warming.cancel()
        for each in served:
            await asyncio.to_thread(each.close)

    cors = Middleware(
        CORSMiddleware, allow_origins=list(allow_origins), allow_methods=["*"], allow_headers=["*"]
    )
    app = Starlette(
        routes=[
            Route("/", server.page),
            Route("/livez", server.live),
            Route("/readyz", server.readiness),
            Route("/metrics", server.figures),
            Route("/openapi.json", server.openapi),
            Route("/v1/engines", server.engines),
            Route("/v1/run", server.run, methods=["POST"]),
            Route("/v1/encode", server.encode, methods=["POST"]),
            Route("/v1/generate", server.generate, methods=["POST"]),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        exception_handlers={kind: partial(_failed, status) for kind, status in STATUSES.items()},
        middleware=[cors] if allow_origins else [],
        lifespan=lifespan,
    )
    app.add_exception_handler(HTTPException, _refused)
    return LimitingApp(app, server.limits, server.metrics.finished)


STATUSES: dict[type[Exception], int] = {
    PixelLimitError: 413,
    TooManyResults: 413,
    InputError: 422,
    MultiPartException: 400,
    OutOfMemoryError: 503,
    PspError: 500,
    Busy: 503,
    TooSlow: 504,
    ClientLeft: CLIENT_LEFT,
    ClientDisconnect: CLIENT_LEFT,
    Exception: 500,
}
SAID = {Busy: "too many requests are waiting; try again in a second", TooSlow: "the work took too long"}


async def _failed(status: int, request: Request, error: Exception) -> Response:
    """Say what is wrong; of faults of our own only that there was one, and the log has the rest."""
    if isinstance(error, (TooLarge, SlowBody)):
        raise error  # the layer around answers
    known = isinstance(error, (PspError, MultiPartException))
    reason = SAID.get(type(error)) or (str(error) if known else "")
    if status == 500:
        log.error("request %s failed", request.scope.get("request_id"), exc_info=error)
    headers = {"retry-after": "1"} if status == 503 else None
    return JSONResponse({"error": reason or "the server failed; its log says why"}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("an engine does not run: %s", error)


def _find_once() -> None:
    """Load the face finder, which engines for photos and for sketches use."""
    default_finder().find(np.zeros((256, 256, 3), np.uint8))


def _run_once(translator: Translator) -> None:
    """Run a translator once, so that the first request does not wait for first-time work."""
    spec = translator.manifest.input
    codes = translator.sample(0)
    if spec is not None:
        gray = np.full(
            (spec.height, spec.width, 3) if spec.channels == 3 else (spec.height, spec.width), 0, np.uint8
        )
        with collected():
            codes = translator.encode(gray)
    translator.generate(codes)


def codes_of(body: Body, served: Served) -> Codes | None:
    """Return the codes [N, L, D] of a request; None if it has none."""
    given: Any = body.values.get("codes")
    if given is None and body.raw:
        try:
            given = read_safetensors(body.raw)["codes"]
        except Exception as error:  # the library raises its own kinds, and KeyError
            raise InputError(
                f"the body is neither JSON nor safetensors with a tensor codes ({error})"
            ) from None
    if given is None:
        return None
    rows, length = served.manifest.num_styles, served.manifest.style_dim
    try:
        codes = np.asarray(given, np.float32)
    except (ValueError, TypeError, OverflowError):
        codes = np.empty(0, np.float32)
    if codes.ndim == 2:
        codes = codes[None]
    if codes.ndim != 3 or codes.shape[1:] != (rows, length) or not len(codes) or not np.isfinite(codes).all():
        raise InputError(f"codes are {list(codes.shape)}; expected finite numbers [N, {rows}, {length}]")
    return codes


def describe(served: Served) -> dict[str, Any]:
    """Return what the page needs to know of an engine."""
    manifest = served.manifest
    spec = manifest.input
    return {
        "name": served.name,
        "task": manifest.task,
        "input": None
        if spec is None
        else {"kind": spec.kind, "width": spec.width, "height": spec.height, "labels": spec.labels},
        "output": {"width": manifest.output.width, "height": manifest.output.height},
        "num_styles": manifest.num_styles,
        "style_dim": manifest.style_dim,
        "default_layers": manifest.style_layers,
        "expects_faces": manifest.expects_faces,
        "runs_on": served.runs_on,
        "workers": served.workers,
    }


def _said(answer: Answer) -> dict[str, Any]:
    return {
        "report": answer.report,
        "warnings": [
            {"kind": w.kind, "message": str(w), "value": w.value, "limit": w.limit} for w in answer.warnings
        ],
        "seconds": {stage: round(seconds, 5) for stage, seconds in answer.times.seconds.items()},
    }


def _result(result: Result) -> dict[str, Any]:
    return {
        "image": base64.b64encode(result.data).decode(),
        "width": result.width,
        "height": result.height,
        "face": result.face,
        "seed": result.seed,
    }


def _side_by_side(results: Sequence[Result], body: Body) -> bytes:
    """Return the file of a picture with all results in a row."""
    pictures = [Image.open(BytesIO(result.data)) for result in results]
    row = Image.new(
        "RGB", (sum(picture.width for picture in pictures), max(picture.height for picture in pictures))
    )
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return work.stored(row, replace(body.options, size=None)).data  # they have the size that was asked for
