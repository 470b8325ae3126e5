"""Compare and Blend in a real browser: their main flows, a stop and a page that comes back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from test_browser_studio import (
    JOB_MS,
    adapters,
    address,
    browser,
    lodging,
    opened,
    overflow,
    set_steps,
    studio,
)

from studio.library import AdapterLibrary

__all__ = ["adapters", "address", "browser", "lodging", "studio"]
pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, address, width=getattr(request, "param", 1280)) as page:
        yield page


def open_tab(page: Page, name: str) -> None:
    if not page.get_by_role("tab", name=name).is_visible():
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown").get_by_text(name).click()
    else:
        page.get_by_role("tab", name=name).click()
    page.locator(f"#{name.lower()}-start, #{name.lower()}-stop").locator("visible=true").wait_for()
    # Opening brings the tab up to date, which must not fall into what is typed next.
    page.wait_for_timeout(800)


def cross(page: Page) -> None:
    """Ask for as large a grid as there may be, of guidance and seeds."""
    page.locator("#compare-layout").get_by_text("X/Y grid").last.click()
    axes = (("rows", "Guidance", "2, 4, 6", "1, 2, 3, 4, 5, 6"), ("columns", "Seed", "0:3", "0:23"))
    for side, kind, first, values in axes:
        page.locator(f"#axis-{side} input").click()
        page.get_by_role("option", name=kind, exact=True).click()
        expect(page.get_by_role("option")).to_have_count(0)
        field = page.locator(f"#axis-{side}-values textarea")
        expect(field).to_have_value(first)
        field.fill(values)


def test_compare_fills_eight_places_and_gives_them_away(page: Page, tmp_path: Path) -> None:
    open_tab(page, "Compare")
    expect(page.locator("#grid")).to_contain_text("One seed, many pictures")
    expect(page.locator("#plan-size")).to_contain_text("2 × 4 = 8 places, 7 different pictures")
    page.locator("#compare-prompt textarea").fill("a castle")
    page.get_by_text("Add their trigger words").locator("visible=true").click()
    expect(page.locator("#compare-prompt textarea")).to_have_value("a castle, ink style, sks robot")
    set_steps(page, 2)
    page.locator("#compare-start").click()
    expect(page.locator("#grid img")).to_have_count(8, timeout=JOB_MS)
    page.locator("#compare-start").wait_for(timeout=JOB_MS)
    heads = page.locator("#grid .cells-head:not(.corner)").all_inner_texts()
    assert heads == ["Base", "Ink", "Robot", "Ink + Robot", "SHiRA", "LoRA"]
    with page.expect_download() as download:
        page.get_by_text("Download as one picture").click()
    with Image.open(download.value.path()) as sheet:
        assert sheet.width > 1000
    with page.expect_download() as download:
        page.get_by_text("Download as one page").click()
    download.value.save_as(tmp_path / "grid.html")
    alone = page.context.new_page()
    alone.goto((tmp_path / "grid.html").as_uri())
    assert alone.locator("img").count() == 8
    assert alone.locator("img").first.evaluate("image => image.naturalWidth") == 32
    alone.close()


def begin_long_grid(page: Page) -> None:
    """Start a grid that takes longer than anyone needs to press Stop, and await its first."""
    open_tab(page, "Compare")
    page.locator("#compare-prompt textarea").fill("a castle")
    cross(page)
    expect(page.locator("#plan-size")).to_contain_text("6 × 24 = 144 places")
    set_steps(page, 100)
    page.locator("#compare-start").click()
    expect(page.locator("#compare-progress")).to_contain_text("of 100", timeout=JOB_MS)
    page.locator("#grid img").first.wait_for(timeout=JOB_MS)


def stop_grid(page: Page) -> int:
    """Stop the grid on the page and return how many pictures it has then."""
    page.locator("#compare-stop").click()
    page.locator("#compare-resume").wait_for(timeout=JOB_MS)
    return page.locator("#grid img").count()


def test_a_stopped_grid_is_there_after_a_reload_and_goes_on(page: Page) -> None:
    begin_long_grid(page)
    before = stop_grid(page)
    page.get_by_text("places are filled and kept").wait_for()
    assert 1 <= before < 144
    first = page.locator("#grid img").first.get_attribute("src")
    page.reload()
    page.locator(".rack-card").first.wait_for()
    open_tab(page, "Compare")
    page.locator("#compare-earlier input").click()
    page.get_by_role("option", name=f"{before} of 144 so far").first.click()
    expect(page.locator("#grid img")).to_have_count(before)
    assert page.locator("#grid img").first.get_attribute("src") == first
    page.locator("#compare-resume").click()
    page.locator("#grid img").nth(before).wait_for(timeout=JOB_MS)
    made = stop_grid(page)
    assert made > before
    page.locator("#compare-delete").click()
    page.locator("#compare-trash").get_by_text("was deleted").wait_for()
    expect(page.locator("#grid")).to_contain_text("One seed, many pictures")
    expect(page.locator("#compare-resume")).not_to_be_visible()
    page.locator("#compare-trash").get_by_text("Undo").click()
    expect(page.locator("#grid img")).to_have_count(made)
    page.locator("#compare-resume").wait_for()


def test_earlier_grids_can_be_left_without_a_choice(page: Page) -> None:
    open_tab(page, "Compare")
    page.locator("#compare-earlier input").click()
    page.keyboard.press("Escape")
    page.locator("#compare-prompt textarea").click()
    page.wait_for_timeout(1000)
    assert page.locator(".toast-body").count() == 0
    expect(page.locator("#grid")).to_contain_text("One seed, many pictures")


def test_a_page_that_comes_back_finds_the_grid_at_work(browser: Browser, address: str) -> None:
    with opened(browser, address, width=1280) as page:
        begin_long_grid(page)
        with opened(browser, address, width=1280) as other:
            open_tab(other, "Compare")
            other.locator("#grid img").first.wait_for(timeout=JOB_MS)
            expect(other.locator("#compare-progress")).to_contain_text("of 144")
            made = stop_grid(other)
            assert 1 <= made < 144
        page.locator("#compare-resume").wait_for(timeout=JOB_MS)
        expect(page.locator("#grid img")).to_have_count(made)


def test_a_blend_is_made_tried_and_kept(page: Page, adapters: Path) -> None:
    open_tab(page, "Blend")
    expect(page.locator("#blend-strength-1")).to_contain_text("Ink")
    page.locator("#blend-adapters input").click()
    page.get_by_role("option", name="lonely").click()
    page.keyboard.press("Escape")
    expect(page.locator("#blend-strength-3")).to_contain_text("lonely")
    page.locator("#blend-meeting").get_by_text("TIES").last.click()
    page.locator("#blend-start").click()
    page.locator("#blend-heat figure").wait_for(timeout=JOB_MS)
    expect(page.locator("#blend-outcome")).to_contain_text("ties", ignore_case=True)
    expect(page.locator("#blend-report tbody th")).to_have_text(
        ["Ink and Robot", "Ink and lonely", "Robot and lonely"]
    )
    before = page.locator("#blend-heat").inner_text()
    page.locator("#blend-measure").get_by_text("AWOM").last.click()
    expect(page.locator("#blend-heat")).not_to_have_text(before)
    page.get_by_text("Add their trigger words").locator("visible=true").click()
    expect(page.locator("#blend-prompt textarea")).to_have_value("ink style, sks robot")
    set_steps(page, 2)
    page.locator("#blend-try-start").click()
    expect(page.locator("#blend-grid img")).to_have_count(3, timeout=JOB_MS)
    expect(page.locator("#blend-slider img")).to_have_count(2)
    expect(page.locator("#blend-slider")).to_contain_text("Plain sum (left), blend (right)")
    page.locator("#blend-beside").get_by_text("Base").last.click()
    expect(page.locator("#blend-slider")).to_contain_text("Base (left), blend (right)")
    page.locator("#blend-title input, #blend-title textarea").fill("")
    page.locator("#blend-save").click()
    page.get_by_text("The title is empty").wait_for()
    page.locator("#blend-title input, #blend-title textarea").fill("Three & more")
    page.locator("#blend-save").click()
    expect(page.locator("#blend-kept")).to_contain_text("Saved as Three & more")
    entry = AdapterLibrary(adapters).find("three-more")
    assert entry.title == "Three & more"
    assert entry.info.trigger_words == ("ink style", "sks robot")
    assert entry.thumbnail.is_file()


def test_a_blend_and_its_trial_come_back_with_the_page(page: Page) -> None:
    open_tab(page, "Blend")
    page.locator("#blend-strength-2").get_by_label("number input").fill("0.5")
    page.locator("#blend-strength-2").get_by_label("number input").press("Tab")
    page.locator("#blend-meeting").get_by_text("Mean").last.click()
    page.locator("#blend-thinning").get_by_text("DARE").last.click()
    page.locator("#blend-start").click()
    page.locator("#blend-heat figure").wait_for(timeout=JOB_MS)
    page.locator("#blend-prompt textarea").fill("a castle, ink style")
    set_steps(page, 100)
    page.locator("#blend-try-start").click()
    page.locator("#blend-grid img").first.wait_for(timeout=JOB_MS)
    page.reload()
    page.locator(".rack-card").first.wait_for()
    open_tab(page, "Blend")
    expect(page.locator("#blend-strength-2").get_by_label("number input")).to_have_value("0.5")
    expect(page.locator("#blend-strength-2")).to_contain_text("Robot")
    expect(page.locator("#blend-strength-3")).not_to_be_visible()
    expect(page.get_by_role("radio", name="Mean")).to_be_checked()
    expect(page.locator("#blend-keep").get_by_label("number input")).to_have_value("50")
    expect(page.locator("#blend-outcome")).to_contain_text("DARE: 50 % of each at random")
    expect(page.locator("#blend-heat figcaption")).to_contain_text("Overlap in % of Ink and Robot")
    expect(page.locator("#blend-title input, #blend-title textarea")).to_have_value("Ink + Robot")
    expect(page.locator("#blend-prompt textarea")).to_have_value("a castle, ink style")
    # The trial goes on, or has come to its end: the pictures are there either way.
    expect(page.locator("#blend-grid img")).to_have_count(3, timeout=JOB_MS)
    expect(page.locator("#blend-slider img")).to_have_count(2)
    page.locator("#blend-try-start").wait_for(timeout=JOB_MS)
    page.locator("#blend-beside").get_by_text("Base").last.click()
    expect(page.locator("#blend-slider")).to_contain_text("Base (left), blend (right)")
    # Another blend has no trial yet.
    page.locator("#blend-meeting").get_by_text("Sum").last.click()
    page.locator("#blend-start").click()
    expect(page.locator("#blend-grid")).to_contain_text("The same words, seed and noise")
    expect(page.locator("#blend-slider img")).to_have_count(0)


def test_a_blend_of_one_is_refused_in_words(page: Page) -> None:
    open_tab(page, "Blend")
    page.locator("#blend-adapters").get_by_role("button").first.click()
    page.locator("#blend-start").click()
    page.get_by_text("A blend takes 2 to 6 adapters").wait_for()
    expect(page.locator("#blend-report")).to_contain_text("One adapter out of several")


@pytest.mark.parametrize("page", [390], indirect=True)
def test_a_phone_wide_window_does_not_scroll_sideways(page: Page) -> None:
    open_tab(page, "Blend")
    page.locator("#blend-start").click()
    page.locator("#blend-heat figure").wait_for(timeout=JOB_MS)
    assert overflow(page) <= 0
    open_tab(page, "Compare")
    page.locator("#compare-prompt textarea").fill("a castle")
    set_steps(page, 2)
    page.locator("#compare-start").click()
    expect(page.locator("#grid img")).to_have_count(8, timeout=JOB_MS)
    assert overflow(page) <= 0
