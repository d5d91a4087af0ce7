"""The page in a real headless Chromium: what a person sees, reaches by keyboard, and what hostile data cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.dashboard.browser import PHONE, WIDE, Tab
from tests.dashboard.extras import with_everything
from tests.dashboard.hostile import SCRIPT, hostile

from nearcast.dashboard.document import build_document
from nearcast.dashboard.page import build_static_page

MakeTab = Callable[..., Tab]
VIEWS = ("/", "/g/shop", "/g/shop/lists")


@pytest.fixture(scope="module")
def full(troubled: Path) -> Any:
    """A document with every panel filled."""
    return with_everything(build_document(troubled))


@pytest.fixture(scope="module")
def full_file(full: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "page.html"
    path.write_bytes(build_static_page(full))
    return path


def key_of(full: Any) -> str:
    return str(full["generators"][0]["explorer"]["queries"][0]["key"])


def test_the_first_screen_says_which_generator_what_and_since_when(tab: MakeTab, page_file: Path) -> None:
    page = tab().open(page_file)
    assert page.locator("h1").inner_text() == "1 of 2 generators has a problem"
    card = page.locator(".cards article").first
    assert card.bounding_box()["y"] + card.bounding_box()["height"] < WIDE["height"]
    said = card.inner_text()
    for words in ("Problem", "shop", "Vectors of queries are of another model", "13 Mar 2026", "snapshot 000006"):
        assert words in said
    assert "Users get snapshot 000005" in said
    assert "a newer one is not published" in said
    rows = page.locator("table.generators tbody tr")
    assert rows.locator("th a").all_inner_texts() == ["shop", "home-feed"]
    assert rows.nth(1).locator(".badge").inner_text().split() == ["✓", "Healthy"]


def test_a_state_is_a_word_and_a_sign_beside_its_colour(tab: MakeTab, page_file: Path) -> None:
    page = tab().open(page_file)
    signs = [text.split() for text in page.locator("tbody .badge").all_inner_texts()]
    assert signs == [["✕", "Problem"], ["✓", "Healthy"]]


def test_the_file_asks_nothing_of_the_network(tab: MakeTab, full_file: Path) -> None:
    one = tab()
    for view in VIEWS:
        one.open(full_file, view)
        one.scroll_through()
    assert one.elsewhere == []


def test_a_generator_shows_every_panel_that_its_record_fills(tab: MakeTab, full_file: Path) -> None:
    one = tab()
    page = one.open(full_file, "/g/shop")
    one.scroll_through()
    titles = page.locator("figure h3").all_inner_texts()
    for title in (
        *("Recall", "Lists kept", "Slots filled", "Coverage", "Exposure", "Seconds by stage", "Memory", "Age"),
        *("Metrics by labels", "Lead over other lists", "hit_rate_at_10 by slice"),
        *("Recall by slice", "Scores", "Norms of vectors", "What each recall costs", "The last replay"),
    ):
        assert title in titles
    assert page.locator("figure canvas").count() == len(titles)
    moved = page.locator("section", has_text="Why the figures moved").last
    assert moved.locator("tbody th").first.inner_text() == "before"
    assert "vectors" in moved.locator("tbody th").all_inner_texts()
    assert "Promise broken: hit_rate_at_10 is 0.2, and 0.25 is promised" in page.locator("main").inner_text()
    assert "dense cells 800" in page.locator("figure", has_text="What each recall costs").inner_text()
    assert page.locator("section", has_text="Manifest").locator("summary").count() > 5


def test_panels_without_a_record_are_not_there(tab: MakeTab, page_file: Path) -> None:
    page = tab().open(page_file, "/g/home-feed")
    titles = page.locator("h2, h3").all_inner_texts()
    assert not {"Tuning", "Replay", "The last replay", "By labels"} & set(titles)


def test_a_mark_on_a_line_tells_its_reason_on_hover_and_in_the_list(tab: MakeTab, page_file: Path) -> None:
    one = tab()
    page = one.open(page_file, "/g/shop")
    figure = page.locator("figure", has=page.locator("h3", has_text="Lists kept"))
    figure.scroll_into_view_if_needed()
    over = figure.locator(".u-over")
    over.wait_for()
    box = over.bounding_box()
    told = ""
    for back in range(2, 30, 2):  # from the right, where the last night is
        page.mouse.move(box["x"] + box["width"] - back, box["y"] + 40)
        told = figure.locator(".readout").inner_text()
        if "overlap" in told or "another model" in told:
            break
    assert "overlap" in told or "another model" in told
    listed = page.locator("table.events", has_text="the audit refused").first.inner_text()
    assert "the audit refused 000006: overlap:" in listed
    assert "alert" in listed


def test_arrow_keys_step_through_a_line_and_say_each_value(tab: MakeTab, page_file: Path) -> None:
    one = tab()
    page = one.open(page_file, "/g/shop")
    figure = page.locator("figure", has=page.locator("h3", has_text="Recall")).first
    chart = figure.locator(".canvas")
    figure.locator("canvas").wait_for()
    chart.focus()
    page.keyboard.press("Home")
    first = figure.locator(".readout").inner_text()
    page.keyboard.press("ArrowRight")
    second = figure.locator(".readout").inner_text()
    assert first != second
    assert "Mar 2026" in first
    assert "Left and right arrows" in chart.get_attribute("aria-label")


def test_the_span_of_the_lines_can_be_chosen(tab: MakeTab, page_file: Path) -> None:
    page = tab().open(page_file, "/g/shop")
    page.get_by_role("button", name="30 days").click()
    assert page.get_by_role("button", name="30 days").get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="90 days").get_attribute("aria-pressed") == "false"


def test_the_explorer_completes_a_key_and_shows_its_list_beside_the_one_before(
    tab: MakeTab, full: Any, full_file: Path
) -> None:
    page = tab().open(full_file, "/g/shop/lists")
    key = key_of(full)
    box = page.get_by_role("combobox", name="Key")
    box.fill(key[:4])
    page.get_by_role("option", name=key).first.wait_for()
    box.fill(key)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=key).wait_for()
    assert page.locator(".list h3").count() == 2
    diff = next(q["diff"] for q in full["generators"][0]["explorer"]["queries"] if str(q["key"]) == key)
    assert page.locator(".summary .came").inner_text() == f"{len(diff['came'])} came"
    assert page.locator(".list").nth(1).locator(".tag.came").count() == len(diff["came"])
    assert page.locator(".list").nth(0).locator(".tag.went").count() == len(diff["went"])
    assert page.locator(".tag.moved").count() == 1 + 2 * len(diff["moved"])


def test_a_removed_candidate_stands_in_its_list_with_the_rule(tab: MakeTab, full: Any, full_file: Path) -> None:
    page = tab().open(full_file, f"/g/shop/lists?key={key_of(full)}")
    removed = page.locator("tr.removed")
    removed.wait_for()
    assert "removed by the overlay until 2026-03-14T00:00:00Z (out of stock)" in removed.inner_text()


def test_pictures_are_shown_where_items_have_them(tab: MakeTab, full: Any, full_file: Path) -> None:
    page = tab().open(full_file, f"/g/shop/lists?key={key_of(full)}")
    page.locator("img.picture").first.wait_for()
    assert page.evaluate("[...document.images].every((image) => image.src.startsWith('data:image/png'))")


def test_a_key_that_the_file_does_not_hold_is_told_so(tab: MakeTab, page_file: Path) -> None:
    page = tab().open(page_file, "/g/shop/lists?key=nobody")
    assert "nobody is not among the" in page.get_by_role("alert").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(tab: MakeTab, page_file: Path, scheme: str) -> None:
    page = tab(scheme=scheme).open(page_file)

    def ground() -> tuple[int, ...]:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return tuple(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    assert (sum(ground()) < 200) == (scheme == "dark")
    button = page.get_by_role("button", name="Theme")
    button.click()
    assert sum(ground()) > 600  # light
    button.click()
    assert sum(ground()) < 200  # dark


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        (WIDE, "dark"),
        (PHONE, "light"),
        pytest.param(WIDE, "light", marks=pytest.mark.slow),
        pytest.param(PHONE, "dark", marks=pytest.mark.slow),
    ],
    ids=["wide-dark", "phone-light", "wide-light", "phone-dark"],
)
def test_axe_finds_nothing_serious(tab: MakeTab, full: Any, full_file: Path, scheme: str, size: dict[str, int]) -> None:
    one = tab(size, scheme)
    for view in (*VIEWS, f"/g/shop/lists?key={key_of(full)}"):
        one.open(full_file, view)
        one.scroll_through()
        assert one.axe() == []


def test_on_a_phone_nothing_is_wider_than_the_screen(tab: MakeTab, full: Any, full_file: Path) -> None:
    one = tab(PHONE)
    for view in (*VIEWS, f"/g/shop/lists?key={key_of(full)}"):
        page = one.open(full_file, view)
        one.scroll_through()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_page_can_be_walked_with_the_keyboard_alone(tab: MakeTab, full: Any, full_file: Path) -> None:
    page = tab().open(full_file)

    def tab_to(name: str, most: int = 60) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent.trim()") == name:
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        raise AssertionError(f"{name} is not reached")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab_to("shop")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="shop", exact=True).wait_for()
    page.locator("h1:focus").wait_for()  # where a screen reader goes on reading
    tab_to("Look into lists")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Lists of shop").wait_for()
    page.locator("h1:focus").wait_for()
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "key":
            break
    page.keyboard.type(key_of(full))
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".candidates").first.wait_for()


def test_an_address_that_is_none_of_ours_leads_to_words(tab: MakeTab, page_file: Path) -> None:
    one = tab()
    assert one.open(page_file, "/g/nobody").locator("h1").inner_text() == "There is no generator of this name"
    assert "generators" in one.open(page_file, "/g/%E0%A4%A").locator("h1").inner_text()


def test_hostile_data_in_every_field_stays_text(tab: MakeTab, full: Any, tmp_path: Path) -> None:
    bad = hostile(full)
    for page in bad["generators"]:
        page["explorer"] = page.get("explorer") or {"queries": [], "columns": []}
        for query in page["explorer"]["queries"]:
            for side in ("now", "before"):
                for row in (query.get(side) or {"candidates": []})["candidates"]:
                    row["columns"] = {name: f"{value}{SCRIPT}" for name, value in row["columns"].items()}
    path = tmp_path / "hostile.html"
    path.write_bytes(build_static_page(bad))
    one = tab()
    name, key = bad["generators"][0]["name"], bad["generators"][0]["explorer"]["queries"][0]["key"]
    at = f"/g/{quote(name, safe='')}"
    for view in ("/", at, f"{at}/lists", f"{at}/lists?key={quote(key, safe='')}", f"/g/{quote(SCRIPT, safe='')}"):
        page = one.open(path, view)
        for summary in page.locator("summary").all():
            summary.click()
        one.scroll_through()
        assert page.evaluate("window.taken") is None
        assert page.evaluate("document.querySelectorAll('main img, main svg, main script').length") == 0
        if view.startswith(at):
            assert SCRIPT in page.locator("main").inner_text()
    assert one.elsewhere == []


def test_what_is_not_ours_does_not_run_even_if_it_gets_into_the_file(
    tab: MakeTab, page_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "injected.html"
    inside = "<script>window.taken=1</script><img src=x onerror=window.taken=1><style>body{display:none}</style>"
    path.write_text(page_file.read_text().replace("</body>", f"{inside}</body>"))
    one = tab()
    page = one.open(path)
    assert page.evaluate("window.taken") is None
    assert page.locator("h1").is_visible()
    assert any("Content Security Policy" in text for text in one.complaints)
    one.complaints.clear()


def test_the_data_of_a_page_never_ends_its_element(full: Any) -> None:
    text = build_static_page(json.loads(json.dumps(hostile(full)))).decode()
    assert SCRIPT not in text
    assert "onerror" not in text.split('id="data">')[1].split("</script>")[0]
