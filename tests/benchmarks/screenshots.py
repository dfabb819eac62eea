"""Pictures of the page for the docs, by a headless Chromium: a trained model behind a real server, prices and stock made up.

    python tests/benchmarks/screenshots.py --ckpt_path CKPT --data DATA_FOLDER --output docs/images

Users come from the prepared data: the routes of users are answered here, in the form that a server with a database has. Writes
page.png, page_user.png, page_item.png, page_dark.png and page_phone.png.
"""

import argparse
import json
import random
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image
from playwright.sync_api import Page, Route, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]))

from setrec import Recommender
from setrec.data import Histories
from setrec.inference.journal import Journal
from setrec.serve.app import create_app
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from tests.serve_fake import listening
from tests.test_serve_page import CHROMIUM


def user_routes(page: Page, recommender: Recommender, histories: Histories) -> str:
    """Answer for one user of the prepared data; returns the user's id."""
    ids = recommender._snapshot.catalogue.ids
    user = next(u for u in range(len(histories.ids)) if 7 <= histories.train.lengths[u] <= 9)
    items = [ids[item] for item in histories.train.row(user).tolist()]
    start = datetime(2014, 5, 3, 18, 20, tzinfo=UTC)
    events = [
        {"item": own, "time": (start + timedelta(days=3.3 * i)).isoformat(), "kind": ("view", "buy")[i % 2]}
        for i, own in enumerate(items)
    ]

    def answer(route: Route) -> None:
        path = unquote(route.request.url.partition("/v1")[2])
        if "/recommendations" not in path:
            return route.fulfill(json={"id": histories.ids[user], "events": events})
        body = json.dumps({"histories": [items], "k": 10, "explain": True})
        address = route.request.url.partition("/v1")[0] + "/v1/recommend"
        found = page.request.post(address, data=body, headers={"content-type": "application/json"})
        return route.fulfill(json=found.json())

    page.route("**/v1/users/**", answer)
    return histories.ids[user]


def take(page: Page, path: Path) -> None:
    """Save what the window shows."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def shoot(page: Page, url: str, holder: ModelHolder, histories: Histories, output: Path) -> None:
    """Go through the views."""
    recommender = holder.current.recommender
    user = user_routes(page, recommender, histories)
    page.goto(f"{url}/")
    page.get_by_label("Part of a title").fill("hot wheels")
    for place in (0, 2):
        page.locator("#found button", has_text="Add").nth(place).click()
    page.get_by_label("Filter").fill("price < 30 and in_stock")
    page.get_by_label("Diversity").fill("0.3")
    page.wait_for_timeout(500)
    page.locator("#answers summary").first.click()
    take(page, output / "page.png")
    page.get_by_role("button", name="User", exact=True).click()
    page.get_by_label("User id").fill(user)
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    take(page, output / "page_user.png")
    page.locator("#user-answers button", has_text="Show").first.click()
    take(page, output / "page_item.png")
    page.get_by_role("button", name="Dark", exact=True).click()
    page.get_by_role("button", name="Try", exact=True).click()
    take(page, output / "page_dark.png")
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("button", name="Light", exact=True).click()
    page.get_by_role("button", name="User", exact=True).click()
    page.locator("#user-next").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#user-next').scrollIntoView()")
    take(page, output / "page_phone.png")


def main() -> None:
    """Start the server and the browser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        journal = Journal(Path(scratch) / "items.jsonl")
        holder = ModelHolder(
            given.ckpt_path, lambda path: Recommender.load(path, data=given.data), journal, Path(scratch)
        )
        patches: dict[str, dict[str, Any]] = {
            own: {"price": round(chance.lognormvariate(2.8, 0.6), 2), "in_stock": chance.random() < 0.9}
            for own in holder.current.recommender._snapshot.catalogue.ids
        }
        holder.current.recommender.patch_items(patches)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 820})
        with listening(create_app(holder, None, ServeOptions())) as url:
            shoot(page, url, holder, Histories.load(given.data), given.output)
        browser.close()


if __name__ == "__main__":
    main()
