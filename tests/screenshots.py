"""Pictures of a running studio for the docs: `python tests/screenshots.py ADDRESS FOLDER`.

Needs Debian's chromium and the base that ships, with its adapters. `--tabs` and `--looks` choose
some. A training is started for the picture of its tab, and stopped and removed after it.
"""

import argparse
import io
import re
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390)}
COLOURS = 160
JOB_MS = 180_000
PAIR = ("rocket", "high-contrast")


def main() -> None:
    """Take the tabs in the looks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tabs", nargs="+", default=[*TABS], choices=TABS)
    parser.add_argument("--looks", nargs="+", default=[*LOOKS], choices=LOOKS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--headless=new", "--no-sandbox"]
        )
        for look in options.looks:
            for tab in options.tabs:
                page = open_page(browser, options.address, look)
                TABS[tab](page)
                keep(page.screenshot(full_page=True), options.folder / f"{tab}-{look}.png")
                if tab == "train":
                    end_training(page)
                page.close()
        browser.close()


def keep(data: bytes, path: Path) -> None:
    """Write the picture with few colours: every version stays in the repository's history."""
    with Image.open(io.BytesIO(data)) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


def open_page(browser: Browser, address: str, look: str) -> Page:
    """A fresh page in one of `LOOKS`."""
    scheme, width = LOOKS[look]
    page = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme)
    page.goto(address)
    page.locator(".rack-card").first.wait_for()
    return page


def go_to(page: Page, tab: str) -> None:
    """Open a tab, in the menu of those that have no room too."""
    if page.get_by_role("tab", name=tab).is_visible():
        page.get_by_role("tab", name=tab).click()
    else:
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown").get_by_text(tab).click()
    page.wait_for_timeout(1000)


def choose(page: Page, field: str, option: str) -> None:
    """Pick an option of a dropdown."""
    page.locator(f"{field} input").click()
    page.get_by_role("option", name=option, exact=True).click()
    page.wait_for_timeout(500)


def generate(page: Page) -> None:
    """A picture with two adapters and their trigger words."""
    for name in PAIR:
        page.locator(f'.rack-card[data-name="{name}"]').click()
        for chip in page.locator(f'.rack-row[data-name="{name}"] .chip').all():
            chip.click()
            word = chip.inner_text().removeprefix("+ ")
            expect(page.locator("#prompt textarea")).to_have_value(re.compile(re.escape(word)))
    page.locator("#generate-start").click()
    page.locator("#stage .facts").wait_for(timeout=JOB_MS)
    page.locator("#generate-start").wait_for()
    page.wait_for_timeout(500)


def blend(page: Page) -> None:
    """Two adapters blended and tried."""
    go_to(page, "Blend")
    page.locator("#blend-meeting").get_by_text("Strongest").last.click()
    page.locator("#blend-start").click()
    page.locator("#blend-heat figure").wait_for(timeout=JOB_MS)
    page.get_by_text("Add their trigger words").locator("visible=true").click()
    expect(page.locator("#blend-prompt textarea")).not_to_have_value("")
    page.locator("#blend-try-start").click()
    expect(page.locator("#blend-grid img")).to_have_count(3, timeout=JOB_MS)
    page.locator("#blend-try-start").wait_for(timeout=JOB_MS)
    page.wait_for_timeout(1000)


def compare(page: Page) -> None:
    """The grid for the two adapters that the tab proposes."""
    go_to(page, "Compare")
    page.get_by_text("Add their trigger words").locator("visible=true").click()
    expect(page.locator("#compare-prompt textarea")).not_to_have_value("")
    page.locator("#compare-start").click()
    expect(page.locator("#grid img")).to_have_count(8, timeout=JOB_MS)
    page.locator("#compare-start").wait_for(timeout=JOB_MS)
    page.wait_for_timeout(1000)


def train(page: Page) -> None:
    """A training under way, with its first samples."""
    go_to(page, "Train")
    choose(page, "#train-example", "high-contrast")
    page.locator(".caption").first.wait_for()
    page.locator("#train-title").locator("input, textarea").fill("My ink")
    page.locator("#train-trigger").locator("input, textarea").fill("ink style")
    page.locator("#train-start").click()
    page.locator(".state-training").first.wait_for(timeout=JOB_MS)
    page.locator(".run-plot path").nth(1).wait_for(timeout=JOB_MS)
    page.wait_for_timeout(20_000)


def end_training(page: Page) -> None:
    """Stop the training and take it and its pictures off the page."""
    page.locator(".run-head [data-action=halt]").click()
    page.locator(".run-head [data-action=remove]").click(timeout=JOB_MS)
    page.locator("#train-delete-set").click()
    page.locator("#sets-trash").get_by_text("was deleted").wait_for()


def library(page: Page) -> None:
    """An adapter opened."""
    go_to(page, "Library")
    page.locator('.shelf-card[data-name="robot"]').click()
    page.locator(".leaf-head").wait_for()
    page.wait_for_timeout(1000)


TABS = {
    "generate": generate,
    "blend": blend,
    "compare": compare,
    "train": train,
    "library": library,
}

if __name__ == "__main__":
    main()
