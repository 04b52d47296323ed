"""The review page's server: Starlette on 127.0.0.1, one reviewer, one secret in its address.

What another site could try: to post here (it can send no header of its own across origins, and knows no
secret), to frame or load the page (headers forbid it), to reach it under another host name (the Host header
must be a loopback address). Request texts reach the page as JSON and are shown with `textContent`.
"""

import json
import secrets
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from batch.errors import InvalidAnswer, StorageError
from train.review.session import Conflict, Session

HERE = Path(__file__).parent
ASSETS = {"": "page.html", "review.js": "review.js", "review.css": "review.css"}
SECRET_HEADER = "x-review-secret"
MOST_BYTES = 1 << 20  # of a decision
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def build_app(session: Session, secret: str) -> Starlette:
    """The application under ``/<secret>/``; every other address is 404."""

    async def asset(request: Request) -> Response:
        name = ASSETS.get(request.path_params.get("name", ""))
        return FileResponse(HERE / name) if name else PlainTextResponse("not found", 404)

    async def task(request: Request) -> Response:
        return JSONResponse(session.task())

    async def state(request: Request) -> Response:
        again = request.query_params.get("again") == "1"
        return JSONResponse(await run_in_threadpool(session.state, again))

    async def item(request: Request) -> Response:
        found = await run_in_threadpool(session.item, request.query_params.get("id", ""))
        return JSONResponse(found) if found else JSONResponse({"error": "no such request"}, 404)

    async def decide(request: Request) -> Response:
        content = await _content(request)
        if content is None:
            return JSONResponse({"error": "not a decision"}, 400)
        try:
            await run_in_threadpool(
                session.decide,
                str(content.get("decision")),
                str(content.get("id")),
                content["known"],
                content,
            )
        except InvalidAnswer as error:
            return JSONResponse({"error": str(error)}, 422)
        except Conflict:
            return JSONResponse({"error": "this request was decided in another window"}, 409)
        except StorageError as error:
            return JSONResponse({"error": str(error)}, 507)
        return JSONResponse(await run_in_threadpool(session.state, content.get("again") is True))

    routes = [
        Route(f"/{secret}/api/task", task),
        Route(f"/{secret}/api/state", state),
        Route(f"/{secret}/api/item", item),
        Route(f"/{secret}/api/decide", decide, methods=["POST"]),
        Route(f"/{secret}/", asset),
        Route(f"/{secret}/{{name}}", asset),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Guard, secret=secret)])


class _Guard(BaseHTTPMiddleware):
    """Loopback names only; a change needs the secret in a header, which no other origin can send."""

    def __init__(self, app: Any, secret: str) -> None:
        super().__init__(app)
        self._secret = secret

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        origin = request.headers.get("origin")
        if host not in ("127.0.0.1", "localhost", "[::1]"):
            response: Response = PlainTextResponse("not found", 404)
        elif request.method != "GET" and (
            not secrets.compare_digest(request.headers.get(SECRET_HEADER, ""), self._secret)
            or (origin is not None and origin != f"{request.url.scheme}://{request.headers['host']}")
        ):
            response = JSONResponse({"error": "forbidden"}, 403)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response


async def _content(request: Request) -> dict[str, Any] | None:
    """The body as a JSON object; None where it is none or too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("known"), int) else None
