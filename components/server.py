"""A small server of one model: TF Serving's REST interface for development and demonstrations, and a page for people.

Production runs TF Serving, which does what this leaves to it: gRPC, batches of many clients' requests, monitoring. What
a client sends to one works with the other.
"""

import asyncio
import base64
import contextlib
import logging
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic

from shortlist import ShortlistError, __version__
from shortlist.components import _rest as rest
from shortlist.components._backends import Backend, Embedded, Remote
from shortlist.components._config import Config
from shortlist.components._openapi import routes
from shortlist.components._page_api import Page, add_page
from shortlist.components._rest import RestError
from shortlist.components._rest_answers import error_body
from shortlist.components._serving_files import MAX_BATCH
from shortlist.components._versions import Versions, find

if TYPE_CHECKING:
    from fastapi import FastAPI

Found = TypeVar("Found")
log = logging.getLogger("shortlist.serve")
BACKLOG = 2048  # connections that wait to be taken
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServerConfig(Config):
    """Settings of `serve`.

    Args:
      name: the model's name in paths.
      host: the address to listen on.
      port: the port; 0 is a free one.
      backend: "embedded", or the address of a TF Serving.
      max_body: bytes of a request.
      max_batch: rows of a request.
      max_k: items that a row may ask for.
      timeout: seconds from a request's first byte to its answer.
      threads: requests that are answered at the same time.
      waiting: requests that may wait for that; more are refused.
      poll: seconds between two looks for another version.
    """

    name: str = pydantic.Field("shortlist", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    host: str = "127.0.0.1"
    port: int = pydantic.Field(8501, ge=0, le=65_535)
    backend: str = "embedded"
    max_body: int = pydantic.Field(1 << 20, ge=1)
    max_batch: int = pydantic.Field(MAX_BATCH, ge=1)
    max_k: int = pydantic.Field(1_000, ge=1)
    timeout: float = pydantic.Field(10.0, gt=0, le=3_600)
    threads: int = pydantic.Field(4, ge=1, le=256)
    waiting: int = pydantic.Field(1_000, ge=0)
    poll: float = pydantic.Field(1.0, gt=0)


class Service:
    """What all paths share: the backend, the limits and the threads.

    Args:
      backend: who answers.
      config: the limits.
    """

    def __init__(self, backend: Backend, config: ServerConfig):
        self.backend, self.config = backend, config
        self._threads = ThreadPoolExecutor(config.threads, "answer")
        self._pending = 0

    async def run(self, work: Callable[[float], Found]) -> Found:
        """The result of `work(deadline)` in a thread, `deadline` by the monotonic clock.

        Raises:
          RestError: if too many wait, or it takes too long.
        """
        if self._pending >= self.config.threads + self.config.waiting:
            raise RestError(rest.UNAVAILABLE, "Too many requests wait for an answer. Try again later.")
        deadline = time.monotonic() + self.config.timeout
        text = f"There was no answer within {self.config.timeout:g} seconds."

        def timed() -> Found:
            if time.monotonic() >= deadline:
                raise RestError(rest.TIMEOUT, text)
            return work(deadline)

        def done(future: "asyncio.Future[Any]") -> None:
            self._pending -= 1
            if not future.cancelled():
                future.exception()  # seen, should nobody wait for it any more

        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, timed)
        future.add_done_callback(done)
        try:
            # A thread cannot be stopped: what is late there goes on, and counts as pending until it is done.
            return await asyncio.wait_for(asyncio.shield(future), self.config.timeout + 1)
        except TimeoutError:
            raise RestError(rest.TIMEOUT, text) from None

    def ask(self, method: str, path: str, body: bytes, deadline: float) -> tuple[int, bytes]:
        """Status code and body of the answer to a request of TF Serving's interface."""
        call = rest.read_path(method, path)
        if method == "GET":
            return self.backend.get(call, _left(deadline))
        request = rest.parse(body)
        rest.refuse_above(request, self.config.max_batch, self.config.max_k, _k_of_example)
        return self.backend.post(call, request, body, _left(deadline))

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _k_of_example(text: str) -> int | None:
    """The k of an example in base 64; None if it has none, or is none."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        values = tf.train.Example.FromString(base64.b64decode(text)).features.feature["k"].int64_list.value
    except (ValueError, DecodeError):
        return None
    return max(values, default=None)


class Guard:
    """Around all paths: bounds the body and the time that it takes, counts, and answers what fails.

    Args:
      app: the paths.
      config: the limits.
    """

    def __init__(self, app: Any, config: ServerConfig):
        self._app, self._config = app, config
        self.accepted = self.answered = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.accepted += 1
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, self._bounded(receive, scope["headers"]), sending)
        except Exception as error:
            where = f"{scope['method']} {scope['path']}"
            frames = traceback.extract_tb(error.__traceback__)[-1:]
            at = "".join(f" ({frame.name}, line {frame.lineno})" for frame in frames)
            log.error("%s failed: %s%s", ascii(where)[1:-1], ascii(f"{type(error).__name__}: {error}")[1:301], at)
            if not begun:
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": rest.INTERNAL, "headers": headers})
                text = "The server failed; its log says more."
                await send({"type": "http.response.body", "body": error_body(text)})
        self.answered += 1

    def _bounded(self, receive: Any, headers: list[tuple[bytes, bytes]]) -> Any:
        from starlette.exceptions import HTTPException

        most, seconds = self._config.max_body, self._config.timeout
        large = HTTPException(rest.TOO_LARGE, f"The body must have at most {most:,} bytes here (--max-body).")
        length = dict(headers).get(b"content-length", b"0")[:20]
        size = 0
        deadline = time.monotonic() + seconds
        whole = False

        async def receiving() -> Any:
            nonlocal size, whole
            if whole:  # only the end of the connection can follow
                return await receive()
            if length.isdigit() and int(length) > most:
                raise large
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise HTTPException(rest.SLOW, f"The request did not arrive within {seconds:g} seconds.") from None
            size += len(message.get("body", b""))
            if size > most:
                raise large
            whole = not message.get("more_body", False)
            return message

        return receiving


def create_app(service: Service, page: Page) -> "FastAPI":
    """The paths of the server."""
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    app = FastAPI(
        title="Shortlist",
        version=__version__,
        summary="TF Serving's REST interface to one model, and a page.",
        description="For development and demonstrations. Production runs TF Serving.",
        docs_url=None,  # its page would fetch scripts from elsewhere
        redoc_url=None,
    )

    def refusal(status: int, text: str) -> Response:
        return Response(error_body(text), status, media_type="application/json")

    @app.exception_handler(RestError)
    async def refused(_: Request, error: RestError) -> Response:
        return refusal(error.status, error.message)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        texts = (f"`{'.'.join(map(str, one['loc']))}`: {one['msg']}" for one in error.errors()[:5])
        return refusal(422, "; ".join(texts))

    async def answer(request: Request) -> Response:
        path = request.scope["raw_path"].partition(b"?")[0].decode("latin-1")
        body = await request.body()
        status, found = await service.run(lambda deadline: service.ask(request.method, path, body, deadline))
        return Response(found, status, media_type="application/json")

    for route in routes(service.config.name):
        app.add_api_route(
            route.path,
            answer,
            methods=[route.method],
            summary=route.summary,
            openapi_extra=route.extra,
            operation_id=f"{route.method} {route.path}",
            response_class=Response,
        )
    add_page(app, service.run, page)
    every = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
    app.add_api_route("/v1/{rest:path}", answer, methods=every, include_in_schema=False)
    return app


def serve(model: Path, config: ServerConfig | None = None, say: Callable[[str], None] = print) -> None:
    """Serves until the process is told to end (SIGTERM, Ctrl+C); what was accepted by then is still answered.

    Args:
      model: the folder of a pushed model's versions, of a bundle, or of a SavedModel.
      config: the settings.
      say: told the lines for whoever started it.

    Raises:
      ShortlistError: if the model cannot be loaded, the address is taken, or FastAPI is not installed.
    """
    config = config or ServerConfig()
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ShortlistError(
            f"`shortlist serve` needs FastAPI and uvicorn: pip install 'shortlist[serve]'. Received: {error}."
        ) from None
    remote = None if config.backend == "embedded" else Remote(config.backend)
    versions = Versions(find(model), answers=remote is None)
    with _bound(config) as listening:
        versions.refresh()
        service = Service(remote or Embedded(versions, config.name), config)
        guard = Guard(create_app(service, Page(versions, config.name, service.ask)), config)
        listening.listen(BACKLOG)  # from here on nobody is turned away
        host, port = listening.getsockname()[:2]
        at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        say(f"Open {at}/ to try it. Requests as for TF Serving: {at}/v1/models/{config.name}:predict")
        if config.host not in LOOPBACK:
            say("Others on the network can reach it, without encryption or passwords: run TF Serving in production.")
        versions.watch(config.poll)
        try:
            _server(guard, config).run([listening])
        finally:
            service.close()
            versions.close()
        say(f"Stopped. Requests accepted: {guard.accepted:,}, answered: {guard.answered:,}.")


def _bound(config: ServerConfig) -> socket.socket:
    """A socket at the address; taken before the model is loaded, so that it is known at once if it is not free."""
    try:
        family, *_, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
        return listening
    except OSError as error:
        raise ShortlistError(
            f"`--host` and `--port` must be an address of this machine that is free: {error.strerror or error}. Give "
            f"another port, or 0 for any. Received: {config.host}, {config.port}."
        ) from None


def _server(app: Any, config: ServerConfig) -> Any:
    """The server of uvicorn, which ends at a signal and not by it."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    options = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(config.timeout) + 5,
    )
    return Server(options)
