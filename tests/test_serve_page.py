"""The page at /, in a headless Chromium: found, added, recommended, by mouse and by keyboard, and nothing runs from the data.

Needs Debian's `chromium` (or Chrome) on the path, or its file named by SETREC_CHROMIUM; is skipped without one.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright import sync_api

from setrec.inference.journal import Journal
from setrec.inference.options import Boost
from setrec.serve.app import create_app
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from tests.serve_fake import FakeRecommender, listening, write_checkpoint

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("SETREC_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; set SETREC_CHROMIUM to one"),
]

sync_api.expect.set_options(timeout=30_000)  # of a machine that may be busy with other tests

NASTY = "<img src=x onerror=\"window.hacked=1\"></script><script>window.hacked=1</script> & 'friends'"


class Live(NamedTuple):
    """A server in a thread, and a page that shows it."""

    holder: ModelHolder
    page: Any
    asked: list[str]  # every address that the page asked for
    faults: list[str]  # what the browser complained of

    def titles(self, of: str) -> list[str]:
        return self.page.locator(f"#{of} > li .title").all_inner_texts()

    def settled(self, count: int) -> None:
        """Wait until so many recommendations are there and none is on its way."""
        sync_api.expect(self.page.locator("#answers > li")).to_have_count(count)
        sync_api.expect(self.page.locator("#answers.busy")).to_have_count(0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def live(browser: Any, tmp_path: Path) -> Iterator[Live]:
    path = write_checkpoint(tmp_path / "model.ckpt", n_items=40)
    holder = ModelHolder(path, FakeRecommender.load, Journal(tmp_path / "items.jsonl"), tmp_path)
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    with listening(create_app(holder, None, ServeOptions())) as url:
        page.goto(f"{url}/")
        live = Live(holder, page, asked, faults)
        live.settled(10)
        yield live
        page.close()


def test_search_add_recommend_and_move_beta(live: Live) -> None:
    page = live.page
    assert page.inner_text("#model") == "fake: 40 items, 30 warm, 10 cold"
    assert live.titles("answers")[0] == "toy train 0"  # the prior
    page.get_by_label("Part of a title").fill("train 1")
    page.get_by_role("button", name="Add toy train 11", exact=True).click()
    assert live.titles("history") == ["toy train 11"]
    sync_api.expect(page.locator("#found-says")).to_have_text("11 found")
    page.get_by_role("button", name="Add toy train 1", exact=True).first.click()
    sync_api.expect(page.locator("#answers > li .title").nth(1)).to_have_text("toy train 2")
    assert live.titles("history") == ["toy train 11", "toy train 1"]

    marks = page.locator("#answers > li .badge").all_inner_texts()
    assert [mark == "cold" for mark in marks[:4]] == [False, False, True, False]  # items 0, 2, 3, 4
    assert page.locator("#legend li").all_inner_texts() == ["collaborative", "semantic 1", "semantic 2"]
    bar = page.get_by_role("img").nth(1)
    assert bar.get_attribute("aria-label") == "collaborative \u22122.250, semantic 1 0.500, semantic 2 \u22120.250"
    widths = [piece.bounding_box()["width"] for piece in bar.locator("i").all()]
    assert widths[0] / widths[1] == pytest.approx(2.25 / 0.5, rel=0.05)
    page.get_by_text("Why toy train 2", exact=True).click()
    why = page.locator("#answers > li").nth(1).locator("details")
    assert "score\t\u22122.000" in why.inner_text()
    assert "Closest by text: toy train 11 (0.50); toy train 1 (0.50)" in why.inner_text()

    assert page.inner_text("#beta-now") == "0.50"
    with page.expect_response("**/recommend"):
        page.get_by_label("Beta").fill("0.9")
    assert page.inner_text("#beta-now") == "0.90"
    assert live.holder.current.recommender.betas[-1] == 0.9
    with page.expect_response("**/recommend"):
        page.get_by_role("button", name="As trained").click()
    assert live.holder.current.recommender.betas[-1] == 0.5
    page.get_by_label("How many").select_option("20")
    live.settled(20)
    page.get_by_role("button", name="Clear").click()
    assert live.titles("history") == []
    assert {address.rpartition("/")[0].rpartition(":")[0] for address in live.asked if address.startswith("http")} == {
        "http://127.0.0.1"
    }
    assert live.faults == []


def test_everything_by_keyboard(live: Live) -> None:
    page = live.page
    page.keyboard.press("/")
    page.keyboard.type("train 33")
    sync_api.expect(page.locator("#found > li")).to_have_count(1)

    def focused() -> str:
        return page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")

    def press(key: str, expected: str) -> None:
        page.keyboard.press(key)
        assert focused() == expected

    assert focused() == "search"
    press("Tab", "Add toy train 33")
    press("Enter", "Add toy train 33")
    press("Enter", "Add toy train 33")  # bought twice
    assert live.titles("history") == ["toy train 33"] * 2
    press("Tab", "Show toy train 33")
    press("Tab", "clear")
    press("Tab", "Remove toy train 33")
    press("Space", "Remove toy train 33")  # the focus goes to the next one
    press("Space", "search")  # and to the search when none is left
    assert live.titles("history") == []
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused() == "beta":
            break
    with page.expect_response("**/recommend"):
        press("ArrowRight", "beta")
    sync_api.expect(page.locator("#beta-now")).to_have_text("0.55")
    for name in ("beta-chosen", "k", "diversity", "filter", "caps", "boosts", "Add toy train 0", "Show toy train 0"):
        press("Tab", name)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Why
    assert page.locator("#answers details").first.get_attribute("open") is not None
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus can be seen


def test_every_control_has_a_name(live: Live) -> None:
    nameless = live.page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, select')].filter((control) =>
            !control.textContent.trim() && !control.ariaLabel && !control.labels?.length).length"""
    )
    assert nameless == 0
    assert live.page.evaluate("document.documentElement.lang") == "en"
    for place in ("found-says", "answers-say"):  # changes are read out
        assert live.page.get_attribute(f"#{place}", "role") == "status"


def test_titles_are_text_whatever_they_hold(live: Live) -> None:
    live.holder.add([{"id": NASTY, "title": NASTY, "text": None}, {"id": "<b>bold</b>", "title": "nice", "text": None}])
    page = live.page
    page.get_by_label("Part of a title").fill("onerror")
    page.get_by_role("button", name=f"Add {NASTY}", exact=True).click()
    page.get_by_label("How many").select_option("50")
    live.settled(41)  # all but the one bought
    assert live.titles("history") == [NASTY]
    assert live.titles("found") == [NASTY]
    live.holder.remove([NASTY])
    with page.expect_response("**/recommend"):
        page.get_by_label("Beta").fill("0.1")
    sync_api.expect(page.locator("#answers-say")).to_have_text(f"41 recommended; no longer in the catalogue: {NASTY}")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, #found script, #history script, #answers script").count() == 0


def test_the_policy_lets_no_other_script_run(live: Live) -> None:
    live.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked=1'}))"
    )
    live.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<button onclick=\"window.hacked=2\">x</button>')"
    )
    live.page.evaluate("document.querySelector('body > button').click()")
    assert live.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in fault for fault in live.faults)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_it_fits_a_phone(live: Live, width: int) -> None:
    live.holder.add([{"id": "L", "title": "averylongwordwithoutanyspace" * 8, "text": None}])
    live.page.set_viewport_size({"width": width, "height": 800})
    live.page.get_by_label("Part of a title").fill("averylong")
    with live.page.expect_response("**/recommend"):
        live.page.get_by_role("button", name="Add averylong").click()
    live.settled(10)
    live.page.locator("summary").first.click()  # names the item of the history that lies closest
    assert "averylong" in live.page.locator("details").first.inner_text()
    assert live.page.evaluate("document.documentElement.scrollWidth") <= width
    smallest = live.page.evaluate(
        "Math.min(...[...document.querySelectorAll('button')].map((one) => one.offsetHeight).filter((height) => height))"
    )
    assert smallest >= 32  # for a finger


def test_an_error_is_shown_and_goes_away(live: Live) -> None:
    fake = live.holder.current.recommender
    fake.fault = "recommend"
    live.page.get_by_label("How many").select_option("5")
    sync_api.expect(live.page.locator("#answers-say")).to_have_text(
        "The server failed at this request; its log says why."
    )
    fake.fault = ""
    live.page.get_by_label("How many").select_option("20")
    live.settled(20)
    sync_api.expect(live.page.locator("#answers-say")).to_have_text("20 recommended")


def test_caps_and_boosts(live: Live) -> None:
    page, fake = live.page, live.holder.current.recommender
    page.set_viewport_size({"width": 390, "height": 800})  # a phone
    page.get_by_label("Caps").focus()
    with page.expect_response("**/recommend"):
        page.keyboard.type("colour 2, price: 3")
    page.keyboard.press("Tab")
    with page.expect_response("**/recommend"):
        page.keyboard.type("0.5 price < 20")
    with page.expect_response("**/recommend"):
        page.keyboard.press("Enter")
        page.keyboard.type("-1 colour == 'red'")
    live.settled(10)
    assert fake.rules[-1][2] == {"colour": 2, "price": 3}
    assert fake.rules[-1][3] == [Boost("price < 20", 0.5), Boost("colour == 'red'", -1.0)]
    calls = len(fake.rules)
    page.get_by_label("Caps").fill("colour")
    sync_api.expect(page.locator("#answers-say")).to_have_text('caps: "colour" is not such as brand 2')
    page.get_by_label("Caps").fill("")
    page.get_by_label("Boosts").fill("price < 20")
    sync_api.expect(page.locator("#answers-say")).to_have_text('boosts: "price < 20" is not such as 0.5 price < 20')
    assert len(fake.rules) <= calls + 1
    page.get_by_label("Boosts").fill("")
    sync_api.expect(page.locator("#answers-say")).to_have_text("10 recommended")
    assert fake.rules[-1][2:] == (None, None)
    page.keyboard.press("2")  # it is typed into the field, and changes no view
    assert page.locator("#view-try").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert live.faults == []


def test_the_newest_question_wins(live: Live) -> None:
    fake = live.holder.current.recommender
    fake.delay = 0.4
    live.page.get_by_label("How many").select_option("50")
    time.sleep(0.25)  # the first question is under way
    fake.delay = 0.0
    live.page.get_by_label("How many").select_option("5")
    live.settled(5)
    time.sleep(0.5)  # the first answer has come meanwhile
    live.settled(5)


USER = {
    "id": "u/1",
    "events": [
        {"item": "A001", "time": "2026-01-02T10:00:00+00:00", "kind": "view"},
        {"item": "A007", "time": 1_772_623_800_000_000, "kind": "buy"},
        {"item": "gone", "time": "2026-02-03T12:00:00+00:00"},
    ],
}


def users(live: Live) -> list[tuple[str, str | None]]:
    """Let the page find users, as a server with a database answers; returns what it asks: address and token."""
    asked: list[tuple[str, str | None]] = []

    def answer(route: Any) -> None:
        token = route.request.headers.get("authorization")
        asked.append((route.request.url.partition("/v1")[2], token))
        if token != "Bearer s3cret":
            return route.fulfill(status=401, json={"error": "This request needs the token."})
        if "/recommendations" not in route.request.url:
            return route.fulfill(json=USER)
        why = {
            "parts": {"cf_0": 1.25, "sem_0": 0.5, "source:image": 0.25},
            "nearest_text": [{"id": "A007", "cosine": 0.5}],
            "nearest_cf": [],
        }
        item = {"id": "A002", "title": NASTY, "score": 2.0, "warm": True, "why": why}
        return route.fulfill(json={"recommendations": [{"items": [item], "unknown": []}]})

    live.page.route("**/v1/users/**", answer)
    return asked


def test_a_user_is_shown_with_history_and_what_comes_next(live: Live) -> None:
    page, asked = live.page, users(live)
    page.get_by_role("button", name="User", exact=True).click()
    page.get_by_label("User id").fill("u/1")
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#user-says")).to_have_text("This request needs the token.")
    page.get_by_label("Token").fill("s3cret")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#user-says")).to_have_text("3 events, newest first")
    assert live.titles("events") == ["toy train 7", "gone", "toy train 1"]
    times = page.locator("#events time").all()
    assert [one.get_attribute("datetime") for one in times] == [
        "2026-03-04T11:30:00.000Z", "2026-02-03T12:00:00.000Z", "2026-01-02T10:00:00.000Z"
    ]  # fmt: skip
    sync_api.expect(page.locator("#user-answers-say")).to_have_text("1 recommended")
    assert live.titles("user-answers") == [NASTY]
    page.locator("#user-answers summary").click()
    shown = page.locator("#user-answers details").inner_text()
    assert "Closest by text: toy train 7 (0.50)" in shown
    assert "image\t0.250" in shown
    assert page.evaluate("window.hacked") is None
    assert {path.partition("?")[0] for path, _ in asked} == {"/users/u%2F1", "/users/u%2F1/recommendations"}
    assert not any("s3cret" in address for address in live.asked)
    assert page.evaluate("[Object.values(localStorage).join(), sessionStorage.token]") == ["", "s3cret"]


def test_a_server_without_users_says_so(live: Live) -> None:
    page = live.page
    page.keyboard.press("2")
    page.keyboard.type("u1")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#user-says")).to_contain_text("shows no users")


def test_an_item_is_shown_with_what_is_similar(live: Live) -> None:
    page = live.page
    live.holder.patch({"A005": {"colour": NASTY}})
    page.keyboard.press("3")
    page.keyboard.type("A005")
    page.keyboard.press("Enter")
    shown = page.locator("#item-shown")
    sync_api.expect(shown.locator("h3")).to_have_text("toy train 5")
    assert shown.locator("tr").all_inner_texts() == [
        "id\tA005", "bought in training\t3", f"colour\t{NASTY}", "price\t12.5", "in_stock\ttrue"
    ]  # fmt: skip
    groups = page.locator("#similar > div")
    sync_api.expect(groups).to_have_count(4)
    assert groups.locator("h3").all_inner_texts() == [
        "Alike by text", "Bought together", "Alike by who buys it", "Alike to the model"
    ]  # fmt: skip
    assert "counts no co-occurrence" in groups.nth(1).inner_text()
    assert groups.nth(3).locator(".title").first.inner_text() == "toy train 39"
    groups.nth(3).get_by_role("button", name="Show toy train 39").click()
    sync_api.expect(shown.locator("h3")).to_have_text("toy train 39")
    shown.get_by_role("button", name="Add").click()
    assert live.titles("history") == ["toy train 39"]
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    page.get_by_label("Item id").fill("nope")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#item-says")).to_have_text("'nope' is not in the catalogue.")
    assert page.evaluate("window.hacked") is None


def test_filter_and_diversity_narrow_what_is_recommended(live: Live) -> None:
    page = live.page
    assert page.inner_text("#columns") == "Attributes: colour (text), price (number), in_stock (yes/no)"
    with page.expect_response("**/recommend"):
        page.get_by_label("Filter").fill("colour = 'blue' and price < 20")
    live.settled(4)
    page.get_by_label("Filter").fill("size > 3")
    sync_api.expect(page.locator("#answers-say")).to_contain_text("the catalogue has no such column; it has id (text)")
    page.get_by_label("Filter").fill("")
    with page.expect_response("**/recommend"):
        page.get_by_label("Diversity").fill("0.4")
    live.settled(10)
    assert live.holder.current.recommender.rules[-1][:2] == (None, 0.4)
    assert page.inner_text("#diversity-now") == "0.40"


def test_what_changed_since_yesterday(live: Live) -> None:
    live.holder.add([{"id": "N1", "title": NASTY}])
    live.holder.patch({"A001": {"price": 1.0}, "A002": {"price": 2.0}})
    live.holder.remove(["A003"])
    page = live.page
    page.keyboard.press("4")
    rows = page.locator("#changes > li .title")
    sync_api.expect(rows).to_have_count(4)
    texts = rows.all_inner_texts()
    assert "1 item removed: A003" in texts
    assert "2 items changed (price): toy train 1; toy train 2" in texts
    assert f"1 item added: {NASTY}" in texts
    assert any(text.startswith("model in service since the start: ") for text in texts)
    assert page.evaluate("window.hacked") is None
    for when, count in (("7", 4), ("", 4)):
        page.get_by_label("Since").select_option(when)
        sync_api.expect(rows).to_have_count(count)


def test_light_and_dark(live: Live) -> None:
    page = live.page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert dark != light
    sync_api.expect(page.locator("#theme")).to_have_text("Light")
    page.keyboard.press("t")
    assert page.evaluate(ground) == light
    page.reload()
    assert page.evaluate(ground) == light  # it is remembered
    page.get_by_role("button", name="Dark", exact=True).click()
    assert page.evaluate(ground) == dark


CONTRAST = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
    .getContext("2d", {willReadFrequently: true});
  const light = (colour) => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
  };
  return [...document.querySelectorAll("main *, header *, footer *")]
    .filter((one) => one.offsetHeight && !one.disabled)
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((one) => [light(getComputedStyle(one).color), light(ground(one)), one.outerHTML.slice(0, 80)])
    .map(([a, b, text]) => [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), text])
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_in_every_view(live: Live, scheme: str) -> None:
    live.page.emulate_media(color_scheme=scheme)
    for key in "1234":
        live.page.keyboard.press("Escape")
        live.page.keyboard.press(key)
        assert live.page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [320, 390])
def test_every_view_fits_a_phone(live: Live, width: int) -> None:
    page = live.page
    users(live)
    live.holder.add([{"id": "L" * 80, "title": "averylongword" * 20}])
    page.set_viewport_size({"width": width, "height": 800})
    for key, text in (("2", "u/1"), ("3", "L" * 80), ("4", "")):
        page.keyboard.press("Escape")
        page.keyboard.press(key)
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
