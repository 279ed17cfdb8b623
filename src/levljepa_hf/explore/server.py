"""The page's server: it answers this machine alone unless told otherwise, and takes no path from the browser.

A page of another site can reach a server on 127.0.0.1. So each request's Host must be an address or this machine's
name (a foreign name that was pointed here is refused), and requests that another site's page makes are refused.
"""

import contextlib
import ipaddress
import json
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .session import UPLOAD_BYTES, Session

STATIC = Path(__file__).parent / "static"
BODY_BYTES = 2**20
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Refuses requests under a foreign Host and those of other sites' pages, and adds the headers of security.

    Args:
        app: What is guarded.
        names: Hosts that are not addresses under which the server may be called.
    """

    def __init__(self, app: Any, names: set[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reason = self.refusal(scope["method"], headers)
        if reason is not None:
            return await JSONResponse({"error": reason}, 403)(scope, receive, send)

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def refusal(self, method: str, headers: dict[str, str]) -> str | None:
        """Why a request is refused, or `None`."""
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if name not in self.names and not _is_address(name):
            return f"The host {host[:60]!r} is not this server: open the address that it printed."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "The request comes from the page of another site."
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and not (method == "GET" and mode == "navigate"):
            return "The request comes from the page of another site."
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def build_app(session: Session, host: str = "127.0.0.1") -> Guard:
    """The application of a session, to be served under `host`."""

    def answer(ask: Callable[..., Any]) -> Callable[[Request], Any]:
        """A route that hands a request's JSON to the session, outside of the event loop."""

        async def endpoint(request: Request) -> Response:
            if request.method == "GET":
                return await _answered(ask)
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                return JSONResponse({"error": "Send JSON (Content-Type: application/json)."}, 415)
            data = await _read(request, BODY_BYTES)
            if data is None:
                return JSONResponse({"error": f"The request has more than {BODY_BYTES} bytes."}, 413)
            try:
                body = json.loads(data)
            except ValueError:
                body = None
            if not isinstance(body, dict):
                return JSONResponse({"error": "The request is no JSON object."}, 400)
            return await _answered(ask, body)

        return endpoint

    async def upload(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/octet-stream":
            return JSONResponse({"error": "Send the file as application/octet-stream."}, 415)
        data = await _read(request, UPLOAD_BYTES)
        if data is None:
            error = f"The file has more than {UPLOAD_BYTES // 2**20} MB: take a smaller one."
            return JSONResponse({"error": error}, 413)
        return await _answered(session.upload, data)

    async def thumbnail(request: Request) -> Response:
        index = request.path_params["index"]
        if index >= len(session.photos):
            return JSONResponse({"error": f"There is no photo {index}."}, 404)
        return Response(
            session.photos.thumbnails[index], 200, {"Cache-Control": "private, max-age=3600"}, "image/webp"
        )

    async def view(request: Request) -> Response:
        try:
            data = await run_in_threadpool(session.view, request.path_params["ref"])
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 404)
        return Response(data, 200, {"Cache-Control": "private, max-age=3600"}, "image/webp")

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    posts = {
        "patches": session.patches,
        "similar": session.similar,
        "space": session.space,
        "agreement": session.agreement,
        "prompts": session.nearest_prompts,
        "search": session.search,
        "zero_shot": session.zero_shot,
        "sigreg/start": session.start_descent,
        "sigreg/run": session.run_descent,
        "sigreg/directions": session.directions,
    }
    routes = [
        Route("/", page),
        Route("/api/state", answer(session.state)),
        Route("/api/run", answer(session.run)),
        Route("/api/upload", upload, methods=["POST"]),
        *(Route(f"/api/{path}", answer(ask), methods=["POST"]) for path, ask in posts.items()),
        Route("/thumbnails/{index:int}.webp", thumbnail),
        Route("/photos/{ref}.webp", view),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    names = {"localhost", host.lower(), socket.gethostname().lower()}
    return Guard(Starlette(routes=routes), names)


async def _answered(ask: Callable[..., Any], *arguments: Any) -> Response:
    try:
        return JSONResponse(await run_in_threadpool(ask, *arguments))
    except ValueError as error:
        return JSONResponse({"error": " ".join(str(error).split())}, 400)
    except Exception:
        traceback.print_exc()
        return JSONResponse({"error": "This is a fault of the explorer: the terminal has its traceback."}, 500)


async def _read(request: Request, limit: int) -> bytes | None:
    """The body, or `None` where it is longer than `limit`; what is beyond is never held."""
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                return None
            chunks.append(chunk)
    except ClientDisconnect:
        return b""
    return b"".join(chunks)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free.

    Raises:
        ValueError: if it is no port.
        OSError: if the port is taken or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port={port}: ports are 0 to 65535.")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(
            f"{host}:{port} cannot be served ({error.strerror or error}): is another explorer there? Choose another "
            "--port, or 0 for any that is free."
        ) from error


def serve(session: Session, listening: socket.socket, host: str = "127.0.0.1") -> None:
    """Serves a session until it is stopped with Ctrl-C."""
    config = uvicorn.Config(build_app(session, host), log_level="warning", server_header=False, lifespan="off")
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended
        uvicorn.Server(config).run(sockets=[listening])


__all__ = ["Guard", "bind", "build_app", "serve"]
