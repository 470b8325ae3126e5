"""Nothing of other machines is fetched for who asks: Gradio would do that in two places."""

import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SERVED = re.compile(r"/file=https?:", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*https?:", re.IGNORECASE)


class NoFetching:
    """ASGI middleware that answers 403 to who wants a file of another machine.

    Either as a path of Gradio's file route, or as an upload that has an address for its path.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the page do so; paths in a scope are decoded already."""
        if scope["type"] == "http" and _SERVED.search(scope["path"]):
            await _refuse(scope, receive, send)
        elif scope["type"] == "http" and _may_be_json(Request(scope)):
            body = await Request(scope, receive).body()
            if _asks_elsewhere(body):
                await _refuse(scope, receive, send)
            else:
                await self._app(scope, _again(body, receive), send)
        else:
            await self._app(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    words = "Files of other machines are not fetched: upload the file itself."
    await PlainTextResponse(words, 403)(scope, receive, send)


def _may_be_json(request: Request) -> bool:
    # Whatever else a header says may be read as JSON further in; only uploads are large.
    kind = request.headers.get("content-type", "")
    return request.method == "POST" and not kind.startswith("multipart/form-data")


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read once more, and then what comes after it."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _asks_elsewhere(body: bytes) -> bool:
    try:
        return _has_address(json.loads(body))
    except (ValueError, RecursionError):  # what is no JSON the page refuses by itself
        return False


def _has_address(value: Any) -> bool:
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and _ADDRESS.match(path):
            return True
        return any(map(_has_address, value.values()))
    return isinstance(value, list) and any(map(_has_address, value))
