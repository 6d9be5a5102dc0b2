"""The page in a browser: Debian's Chromium, led by Playwright where both are installed."""

import json
import shutil
from collections.abc import Callable, Iterator
from http.client import HTTPConnection

import pytest

from benchmarks.serving_load import ask

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
POPULAR = "10 recommendations by popularity. The history is empty, so the most popular items are recommended."
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["wide", "narrow"])
def page(browser: "playwright.Browser", port: int, request: pytest.FixtureRequest) -> Iterator["playwright.Page"]:
    """Open the page; no message of the console, no error, and no request to elsewhere may come."""
    narrow = request.param == "narrow"
    size = {"width": 360, "height": 700} if narrow else {"width": 1280, "height": 900}
    context = browser.new_context(viewport=size, color_scheme="dark" if narrow else "light")
    page, wrong = context.new_page(), []
    page.set_default_timeout(10_000)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if f"127.0.0.1:{port}" not in asked.url else None)
    page.goto(f"http://127.0.0.1:{port}/")
    said(page, POPULAR)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    context.close()
    refused = "Failed to load resource: the server responded with a status of 422"  # which the page says as well
    assert [text for text in wrong if not text.startswith(refused)] == []


def said(page: "playwright.Page", text: str) -> None:
    playwright.expect(page.get_by_role("status")).to_have_text(text)


def listed(page: "playwright.Page", name: str) -> list[str]:
    """Return the names of a list's items."""
    return page.get_by_role("list", name=name).locator("li .facts > span:first-of-type").all_inner_texts()


def recommended(port: int, **body: object) -> list[str]:
    _, content = ask(HTTPConnection("127.0.0.1", port), "POST", "/recommend", json.dumps(body).encode())
    return [item["item"] for item in json.loads(content)["results"][0]["items"]]


def test_items_are_clicked_into_a_history_and_out_of_it(page: "playwright.Page", port: int):
    query = page.get_by_label("Words of an item's text or name")
    for number, name in enumerate(("I0003", "I0017"), start=1):
        query.fill(name.lower())
        page.get_by_role("button", name=f"({name})").click()
        said(page, f"10 recommendations for {number} item{'s' * (number > 1)}.")
    assert listed(page, "History, newest last") == ["I0003", "I0017"]
    assert listed(page, "Recommended, best first") == recommended(port, items=["I0003", "I0017"])
    page.get_by_role("list", name="History, newest last").get_by_role("button").first.click()
    said(page, "10 recommendations for 1 item.")
    assert listed(page, "Recommended, best first") == recommended(port, items=["I0017"])
    page.get_by_label("how many").select_option("5")
    page.get_by_label("also what is in the history").check()
    said(page, "5 recommendations for 1 item.")
    assert listed(page, "Recommended, best first") == recommended(port, items=["I0017"], k=5, exclude_seen=False)
    page.get_by_role("button", name="Remove all").click()
    assert listed(page, "History, newest last") == []


def test_the_keyboard_does_all_of_it(page: "playwright.Page", port: int):
    query, keys = page.get_by_label("Words of an item's text or name"), page.keyboard
    query.focus()
    keys.type("i0021")
    playwright.expect(page.locator("#found button")).to_have_count(1)
    keys.press("Enter")
    said(page, "10 recommendations for 1 item.")
    keys.press("Control+A")
    keys.type("i002")
    playwright.expect(page.locator("#found button")).to_have_count(10)
    found = page.locator("#found button").all_inner_texts()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        keys.press(key)
    said(page, "10 recommendations for 2 items.")
    assert f"({listed(page, 'History, newest last')[1]})" in found[1]
    keys.press("Escape")
    playwright.expect(query).to_be_focused()
    remove = page.get_by_role("list", name="History, newest last").get_by_role("button")
    remove.nth(1).focus()
    keys.press("Enter")
    said(page, "10 recommendations for 1 item.")
    playwright.expect(remove.nth(0)).to_be_focused()
    keys.press("Enter")
    said(page, POPULAR)
    playwright.expect(query).to_be_focused()
    first = listed(page, "Recommended, best first")[0]
    page.get_by_role("list", name="Recommended, best first").get_by_role("button").first.focus()
    keys.press("Space")
    said(page, "10 recommendations for 1 item.")
    assert listed(page, "History, newest last") == [first]


def test_a_user_is_taken_and_one_that_is_not_there_is_said(page: "playwright.Page", port: int):
    _, content = ask(HTTPConnection("127.0.0.1", port), "GET", "/history?user=U00005")
    history = [item["item"] for item in json.loads(content)["items"]]
    user = page.get_by_label("Or take the history of a user")
    user.fill("U00005")
    user.press("Enter")
    said(page, f"10 recommendations for {len(history)} items.")
    assert listed(page, "History, newest last") == history
    user.fill("nobody")
    user.press("Enter")
    said(page, "there is no user 'nobody'; send the items instead")


def test_shared_prefixes_show_in_the_lists_and_in_the_tree(page: "playwright.Page", port: int):
    """I0001 and I0009 share three codes of four, I0002 only the first with them; I0017 shares none."""
    query = page.get_by_label("Words of an item's text or name")
    for number, name in enumerate(("I0001", "I0009", "I0002"), start=1):
        query.fill(name)
        page.get_by_role("button", name=f"({name})").click()
        said(page, f"10 recommendations for {number} item{'s' * (number > 1)}.")
    ids = page.get_by_role("list", name="History, newest last").get_by_role("img")
    labels = [ids.nth(number).get_attribute("aria-label") for number in range(3)]
    assert labels[:2] == [f"semantic ID 0 0 0 {last}, its first 3 also in other items shown" for last in (1, 2)]
    strips = [
        ids.nth(number).locator("rect[fill]").evaluate_all("rects => rects.map((rect) => rect.getAttribute('fill'))")
        for number in range(3)
    ]
    assert strips[0] == strips[1]
    assert len(strips[0]) == 3
    assert strips[2][0] == strips[0][0]
    boxes = page.locator("#tree title").all_text_contents()
    shown = {*listed(page, "History, newest last"), *listed(page, "Recommended, best first")}
    first = sum(int(name[1:]) <= 16 for name in shown)  # of sixteen items, I0001..I0016, the first code is 0
    assert f"0: {first} of 16" in boxes
    assert "0 0 0: 2 of 2" in boxes
    assert sum(box.count(" ") == 6 for box in boxes) == len(shown)  # a box of four codes for each item
    assert "recommended items begin with" in page.locator("#summary").inner_text()


@pytest.mark.parametrize(("most", "allowed"), [(3, ["3"]), (7, ["5"]), (15, ["5", "10"])])
def test_no_more_is_asked_for_than_the_server_allows(
    browser: "playwright.Browser", port_of: Callable[..., int], most: int, allowed: list[str]
):
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port_of(max_k=most)}/")
    said(page, POPULAR.replace("10", allowed[-1]))
    count = page.get_by_label("how many")
    playwright.expect(count).to_have_value(allowed[-1])
    assert count.locator("option:enabled").all_inner_texts() == allowed
    page.close()
