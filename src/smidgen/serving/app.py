"""The server's answers: OpenAI's image API, health, readiness, Prometheus' numbers."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from smidgen.errors import SmidgenError, UsageError, closest, shown
from smidgen.files.reading import Unreadable, read_bytes
from smidgen.models.base import Base
from smidgen.serving.config import ServeConfig
from smidgen.serving.engine import Engine, Full, Late, Stopping
from smidgen.serving.guard import LOCAL, Guard
from smidgen.serving.images import Order, order_of, size_of
from smidgen.serving.job import Image, Job
from smidgen.serving.library import Entry, Library, UnknownModel
from smidgen.serving.measures import Measures
from smidgen.serving.schemas import (
    About,
    Edit,
    Failed,
    Generated,
    Generation,
    Model,
    Models,
    Picture,
)

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failed, "description": "The request makes no sense."},
    403: {"model": Failed, "description": "A page of another site asks."},
    401: {"model": Failed, "description": "The API key is missing or wrong."},
    404: {"model": Failed, "description": "No such model."},
    413: {"model": Failed, "description": "The request is too large."},
    421: {"model": Failed, "description": "The host is none of this server's."},
    429: {"model": Failed, "description": "Too many images wait; see Retry-After."},
    500: {"model": Failed, "description": "The images could not be drawn."},
    503: {"model": Failed, "description": "The server is stopping."},
    504: {"model": Failed, "description": "The images took too long."},
}


PAGE = Path(__file__).with_name("page.html")
REPORT = "report.html"
MOST_SHOWN = 2**26  # bytes of a grid or a report
# what a report of a study may do: show what it holds
STILL = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclasses.dataclass(frozen=True)
class Served:
    """What the answers are made of."""

    base: Base
    library: Library
    engine: Engine
    config: ServeConfig
    measures: Measures
    began: int


def create_app(base: Base, config: ServeConfig, key: str | None = None) -> FastAPI:
    """The server as an ASGI application. `key` is what clients must know; None: nothing.

    Raises: UsageError if others can reach it and there is no key; SmidgenError if the folder of
        deltas cannot be read.
    """
    config.check_key(key)
    library = Library(config.deltas, base, config.slots, gated=config.gated)
    engine = Engine(base, slots=config.slots, batch=config.batch_size, waiting=config.waiting)
    served = Served(base, library, engine, config, Measures(engine), int(time.time()))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with nullcontext() if base.conditioner is None else base.conditioner.keeping():
            yield
            await run_in_threadpool(engine.stop)

    app = FastAPI(title="smidgen", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.served = served
    hosts = (*LOCAL, config.host.lower()) if config.is_local else None
    app.add_middleware(Guard, key=key, hosts=hosts, most=config.most_body)
    _add_page(app, served)
    _add_answers(app, served)
    _add_failures(app)
    return app


def _add_page(app: FastAPI, served: Served) -> None:
    page = PAGE.read_bytes()
    script = page.partition(b"<script>")[2].partition(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        """The page."""
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    @app.get("/v1/about", responses=_failures(401, 403, 421))
    def about() -> About:
        """What is drawn here, and how much of it at once."""
        base, config = served.base, served.config
        return About(
            base=served.library.base_name,
            size=size_of(base),
            prompts=base.conditioner is not None,
            samplers=list(base.process.samplers),
            most_images=config.most_images,
            most_steps=config.most_steps,
            studies=sorted(_reports(config)),
        )

    @app.get(
        "/v1/models/{name}/grid",
        responses=_failures(401, 403, 404, 421) | {200: {"content": {"image/png": {}}}},
        response_class=Response,
    )
    def grid(name: str) -> Response:
        """A picture of a delta's samples, where its run has one."""
        found = served.library.entry(name).grid
        if found is None:
            raise HTTPException(404, f'the run of "{name}" has no picture of its samples')
        return Response(_read(found), media_type="image/png")

    @app.get(
        "/v1/studies/{name}",
        responses=_failures(401, 403, 404, 421) | {200: {"content": {"text/html": {}}}},
        response_class=Response,
    )
    def study(name: str) -> Response:
        """The report of a study."""
        found = _reports(served.config)
        if name not in found:
            raise HTTPException(404, f'no study "{shown(name[:80])}"{closest(name, found)}')
        return Response(
            _read(found[name]),
            media_type="text/html",
            headers={"Content-Security-Policy": STILL},
        )


def _read(path: Path) -> bytes:
    """A file beside a delta or a study. Raises: HTTPException for one that is gone or too large."""
    try:
        return read_bytes(path, MOST_SHOWN)
    except Unreadable as error:
        raise HTTPException(404, "it cannot be read any more") from error


def _reports(config: ServeConfig) -> dict[str, Path]:
    """The reports of all studies, by name."""
    folder = config.studies
    if folder is None or not folder.is_dir():
        return {}
    pages = {path.name: path / REPORT for path in folder.iterdir()}
    return {name: page for name, page in pages.items() if page.is_file()}


def _add_answers(app: FastAPI, served: Served) -> None:
    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether the server runs."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: FAILURES[503]})
    def ready() -> dict[str, str]:
        """Whether images can be asked for."""
        if not served.engine.is_alive:
            raise HTTPException(503, "the server is stopping")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(served.measures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", responses=_failures(401, 403, 421))
    def models() -> Models:
        """The base, and each delta that fits it."""
        base = served.base
        own = Model(
            id=served.library.base_name, created=served.began, classes=list(base.class_names)
        )
        return Models(data=[own, *(_model(entry) for entry in served.library.entries())])

    statuses = _failures(400, 401, 403, 404, 413, 421, 429, 500, 503, 504)

    @app.post(GENERATIONS, responses=statuses)
    async def generations(asked: Generation, request: Request) -> Generated:
        """Images of a delta, of a sum of deltas, or of the base."""
        return await _drawn(asked, request, served)

    @app.post(EDITS, responses=statuses)
    async def edits(asked: Annotated[Edit, Form()], request: Request) -> Generated:
        """Images that begin from a picture: changed, inpainted, denoised or enlarged."""
        return await _drawn(asked, request, served)


async def _drawn(asked: Generation, request: Request, served: Served) -> Any:
    """The answer to a request for images."""
    began = time.monotonic()
    order = await run_in_threadpool(order_of, asked, served.base, served.library, served.config)
    if asked.stream:
        return _streamed(order, served)
    served.engine.submit(order.jobs)
    images = await _waited(order.jobs, request, served.engine)
    files = [
        await run_in_threadpool(order.file, job, image)
        for job, image in zip(order.jobs, images, strict=True)
    ]
    served.measures.seconds.observe(time.monotonic() - began)
    return Generated(
        created=int(time.time()),
        data=[_picture(data, order, number) for number, data in enumerate(files)],
        model=asked.model,
        output_format=asked.output_format,
        size=size_of(served.base),
    )


def _model(entry: Entry) -> Model:
    header = entry.header
    classes = list(header["classes"]) or header["training"].get("prompts", {}).get("classes", [])
    return Model(
        id=entry.name,
        created=entry.created,
        method=header["method"],
        classes=classes,
        bytes=entry.state[1],
        numbers=entry.numbers(),
        has_grid=entry.grid is not None,
    )


def _picture(data: str, order: Order, number: int) -> Picture:
    if order.asked.response_format == "url":
        url = f"data:image/{order.asked.output_format};base64,{data}"
        return Picture(url=url, seed=order.seed, index=number)
    return Picture(b64_json=data, seed=order.seed, index=number)


async def _waited(jobs: Sequence[Job], request: Request, engine: Engine) -> list[Image]:
    """The images when all are there; a client that leaves is not drawn for any longer."""
    images = asyncio.gather(*(asyncio.wrap_future(job.result) for job in jobs))
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({images, left}, return_when=asyncio.FIRST_COMPLETED)
        if not images.done():
            raise HTTPException(499, "the client has gone")
        return await images
    finally:
        engine.cancel([job for job in jobs if not job.result.done()])
        for waiting in (images, left):
            waiting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await waiting


async def _left(request: Request) -> None:
    """Comes back when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _streamed(order: Order, served: Served) -> StreamingResponse:
    """The images as server-sent events, those on the way too."""
    jobs, asked = order.jobs, order.asked
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Job, Any, Any]]()

    def tell(kind: str, job: Job, found: Any, **more: int) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (kind, job, found, more))

    def watch(job: Job) -> None:
        def show(count: int, image: Image) -> None:
            tell("partial_image", job, image, partial_image_index=count)

        def done(future: Any) -> None:
            if not future.cancelled():
                error = future.exception()
                tell("error" if error else "completed", job, error or future.result())

        job.show = show if job.partials else None
        job.result.add_done_callback(done)

    async def facts_of(kind: str, job: Job, found: Any) -> dict[str, Any]:
        if kind == "error":
            return {"error": _problem_of(found)[1]}
        data = await run_in_threadpool(order.file, job, found, last=kind == "completed")
        return {"b64_json": data, "seed": order.seed, "index": job.number}

    for job in jobs:
        watch(job)
    served.engine.submit(jobs)

    what = "image_edit" if isinstance(asked, Edit) else "image_generation"

    async def lines() -> AsyncIterator[str]:
        try:
            ended = 0
            while ended < len(jobs):
                kind, job, found, more = await events.get()
                ended += kind != "partial_image"
                event = await facts_of(kind, job, found) | more
                name = "error" if kind == "error" else f"{what}.{kind}"
                facts = {"type": name, "created_at": int(time.time()), **event}
                facts |= {"output_format": asked.output_format, "size": size_of(served.base)}
                yield f"event: {name}\ndata: {json.dumps(facts)}\n\n"
        finally:
            served.engine.cancel([job for job in jobs if not job.result.done()])

    return StreamingResponse(lines(), media_type="text/event-stream")


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: FAILURES[status] for status in statuses}


def _problem_of(error: BaseException) -> tuple[int, dict[str, Any]]:
    """The status of an error and what is said of it."""
    status, kind, code = 500, "server_error", None
    message = str(error)
    match error:
        case UnknownModel():
            status, kind, code = 404, "invalid_request_error", "model_not_found"
        case UsageError():
            status, kind = 400, "invalid_request_error"
        case Full():
            status, kind, code = 429, "rate_limit_error", "queue_full"
        case Late():
            status, kind = 504, "timeout_error"
        case Stopping():
            status = 503
        case SmidgenError():
            status, kind = 400, "invalid_request_error"
        case HTTPException():
            status, message = error.status_code, str(error.detail)
            kind = "invalid_request_error" if status < 500 else kind
        case _:
            message = "the images could not be drawn; the server's log says why"
    return status, {"message": message, "type": kind, "param": None, "code": code}


def _add_failures(app: FastAPI) -> None:
    """All errors in OpenAI's form."""

    @app.exception_handler(SmidgenError)
    @app.exception_handler(HTTPException)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        status, problem = _problem_of(error)
        headers = {"Retry-After": str(error.seconds)} if isinstance(error, Full) else None
        return JSONResponse({"error": problem}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where or 'the body'}: {first['msg']}"
        problem = {"message": message, "type": "invalid_request_error"}
        return JSONResponse({"error": {**problem, "param": where or None, "code": None}}, 400)

    plain = app.openapi

    def openapi() -> dict[str, Any]:
        """Without the form of errors that FastAPI would give."""
        document = plain()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
