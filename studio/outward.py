"""Nothing of other machines is fetched for who asks: Gradio's own file route would do that."""

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_ELSEWHERE = re.compile(r"/file=https?:", re.IGNORECASE)


class NoFetching:
    """ASGI middleware that answers 403 to a file of another machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the page do so; paths in a scope are decoded already."""
        if scope["type"] == "http" and _ELSEWHERE.search(scope["path"]):
            answer = PlainTextResponse("Files of other machines are not served.", 403)
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)
