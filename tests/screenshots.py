"""Pictures of a running studio for the docs: `python tests/screenshots.py ADDRESS FOLDER`.

Needs Debian's chromium. Takes the first two adapters that the rack shows, or those named with
`--adapters`.
"""

import argparse
import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390)}
JOB_MS = 180_000


def main() -> None:
    """Take both tabs in every look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", default="a red fox, noto style")
    parser.add_argument("--adapters", nargs=2, default=[])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--headless=new", "--no-sandbox"]
        )
        for look in LOOKS:
            page = open_page(browser, options.address, look)
            shoot_generate(page, options.prompt, options.adapters)
            page.screenshot(path=options.folder / f"generate-{look}.png", full_page=True)
            shoot_compare(page, options.prompt)
            page.screenshot(path=options.folder / f"compare-{look}.png", full_page=True)
        browser.close()


def open_page(browser: Browser, address: str, look: str) -> Page:
    """A fresh page in one of `LOOKS`."""
    scheme, width = LOOKS[look]
    page = browser.new_page(
        viewport={"width": width, "height": 860}, color_scheme=scheme, device_scale_factor=1.5
    )
    page.goto(address)
    page.locator(".rack-card").first.wait_for()
    return page


def shoot_generate(page: Page, prompt: str, adapters: list[str]) -> None:
    """Make a picture with two adapters and their trigger words."""
    page.locator("#prompt textarea").fill(prompt)
    names = adapters or [
        card.get_attribute("data-name") or "" for card in page.locator(".rack-card").all()[:2]
    ]
    for name in names:
        page.locator(f'.rack-card[data-name="{name}"]').click()
        for chip in page.locator(f'.rack-row[data-name="{name}"] .chip').all():
            chip.click()
            word = chip.inner_text().removeprefix("+ ")
            expect(page.locator("#prompt textarea")).to_have_value(re.compile(re.escape(word)))
    page.locator("#generate-start").click()
    page.locator("#stage .facts").wait_for(timeout=JOB_MS)
    page.locator("#generate-start").wait_for()
    page.wait_for_timeout(500)


def shoot_compare(page: Page, prompt: str) -> None:
    """Fill the grid for the two adapters that the tab proposes."""
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-prompt textarea").fill(prompt)
    page.get_by_text("Add their trigger words").click()
    page.wait_for_timeout(500)
    page.locator("#compare-start").click()
    page.locator("#grid img").first.wait_for(timeout=JOB_MS)
    page.locator("#compare-start").wait_for(timeout=JOB_MS)
    page.wait_for_timeout(500)


if __name__ == "__main__":
    main()
