"""The page at /: one file, and headers that allow its own scripts and styles only."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

PAGE = Path(__file__).parent / "page.html"


def page_routes() -> APIRouter:
    """Make the route of the page."""
    routes = APIRouter()
    html = PAGE.read_text()
    headers = page_headers(html)

    @routes.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    return routes


def page_headers(html: str) -> dict[str, str]:
    """Headers that allow the page's own scripts and styles, and nothing from anywhere else."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return " ".join(f"'sha256-{_base64(hashlib.sha256(part.encode()).digest())}'" for part in parts)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"content-security-policy": policy, "referrer-policy": "no-referrer"}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
