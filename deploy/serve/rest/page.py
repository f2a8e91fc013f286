"""The page at ``/``: one file, which loads nothing from anywhere else and is not allowed to."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

PAGE = Path(__file__).with_name("page.html")


async def page(request: Request) -> Response:
    """Drop an image, see its classes."""
    text, policy = _page()
    return Response(text, media_type="text/html", headers={"content-security-policy": policy})


@cache
def _page() -> tuple[str, str]:
    """The page, and a policy under which only its own style and script run, told by their hashes."""
    text = PAGE.read_text(encoding="utf-8")
    style, script = (_hash(text, tag) for tag in ("style", "script"))
    policy = [
        "default-src 'none'",
        f"style-src '{style}'",
        f"script-src '{script}'",
        "img-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return text, "; ".join(policy)


def _hash(text: str, tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
