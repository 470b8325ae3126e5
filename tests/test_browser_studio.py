"""The studio in a real browser, started by its real command, on the toy base and on ours."""

import base64
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest
from lodging import Lodging, Studio
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from studio_toys import HOSTILE, SIDE, free_port, make_library

from studio.infotext import RECORD_KEY, Record, from_json
from studio.pictures import write_png

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
START_SECONDS = 90
JOB_MS = 60_000
# Machines that are busy with other tests are slow; what is right at last is right.
EXPECT_MS = 20_000
PATIENCE_MS = 6_000
# Gradio's own complaints when a page is left while it listens.
LEAVING = ("AbortError", "Connection errored out")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is not installed (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=EXPECT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lodging(
    browser: Browser, toy_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lodging]:
    @contextmanager
    def opens() -> Iterator[Studio]:
        folder = tmp_path_factory.mktemp("browser")
        make_library(toy_base, folder / "adapters")
        # On so small a model more threads only wait for one another.
        with served(folder, base=toy_base, adapters=folder / "adapters", threads=1) as address:
            yield Studio(folder, address)

    with Lodging(opens) as lodging:
        yield lodging


@pytest.fixture
def studio(lodging: Lodging, request: pytest.FixtureRequest) -> Studio:
    return lodging.studio(request.node)


@pytest.fixture
def address(studio: Studio) -> str:
    return studio.address


@pytest.fixture
def adapters(studio: Studio) -> Path:
    return studio.adapters


@pytest.fixture(scope="module")
def shipped_address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("shipped")
    base, adapters = ROOT / "models" / "emoji-xl", ROOT / "adapters"
    with served(folder, base=base, adapters=adapters, threads=2) as address:
        yield address


@contextmanager
def served(folder: Path, *, base: Path, adapters: Path, threads: int) -> Iterator[str]:
    """The address of an `app.py` of its own, which writes into `folder`."""
    address = f"http://127.0.0.1:{free_port()}/"
    options = {
        "base": base,
        "adapters": adapters,
        "outputs": folder / "outputs",
        "port": urlparse(address).port,
        "device": "cpu",
    }
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    with (folder / "log.txt").open("w") as log:
        app = subprocess.Popen(
            [sys.executable, "app.py", *flags],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    try:
        wait_until_served(address, app, folder / "log.txt")
        yield address
    finally:
        app.terminate()
        app.wait(20)


def wait_until_served(address: str, app: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and app.poll() is None:
        try:
            httpx.get(address)
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"app.py did not serve {address}:\n{log.read_text()}")


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, address, width=getattr(request, "param", 1280)) as page:
        yield page


@pytest.fixture
def shipped_page(browser: Browser, shipped_address: str) -> Iterator[Page]:
    with opened(browser, shipped_address, width=1280) as page:
        yield page


@contextmanager
def opened(browser: Browser, address: str, *, width: int) -> Iterator[Page]:
    """A fresh page; afterwards no console error and no request to another machine was seen."""
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    hosts: set[str] = set()
    faults: list[str] = []
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    page.on("request", lambda sent: hosts.add(urlparse(sent.url).netloc))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(address)
    page.locator(".rack-card").first.wait_for()
    yield page
    context.close()
    assert hosts <= {urlparse(address).netloc, ""}
    known = LEAVING if len(loads) > 1 else ()
    assert [fault for fault in faults if not any(words in fault for words in known)] == []


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def set_steps(page: Page, steps: int) -> None:
    """Open the settings of the tab in view if they are closed, and set the steps."""
    field = page.get_by_label("number input for Steps").locator("visible=true")
    if not field.count():
        page.get_by_text("Settings", exact=True).locator("visible=true").click()
        # Gradio mounts a closed accordion's fields when it opens, and what is typed within the
        # first instant is shown but not sent.
        page.wait_for_timeout(700)
    field.fill(str(steps))
    field.press("Tab")


def set_long(page: Page) -> None:
    """Ask for more than anyone needs to press Stop, on a busy machine too."""
    set_steps(page, 100)
    pictures = page.get_by_label("number input for Pictures")
    pictures.fill("8")
    pictures.press("Tab")


def press_stop(page: Page) -> None:
    """Press Stop until it is over: a click on a page that is still being built may be lost."""
    ended = page.get_by_role("button", name="Start again")
    for _ in range(JOB_MS // PATIENCE_MS):
        button = page.locator("#generate-stop")
        if button.is_visible():
            button.click()
        with suppress(PlaywrightTimeout):
            ended.wait_for(timeout=PATIENCE_MS)
            return
    ended.wait_for()


def finish(page: Page) -> None:
    page.locator("#stage .facts").wait_for(timeout=JOB_MS)
    page.locator("#generate-start").wait_for()


def record_of(page: Page) -> Record:
    """Download the picture on the stage and read its settings."""
    with page.expect_download() as download:
        page.get_by_text("Download PNG").click()
    with Image.open(download.value.path()) as image:
        return from_json(image.info[RECORD_KEY])


def test_two_adapters_make_a_picture(page: Page, tmp_path: Path) -> None:
    page.locator("#prompt textarea").fill("a castle <lora:lonely:0.25>")
    for name in ("ink", "robot"):
        page.locator(f".rack-card[data-name={name}]").click()
    page.locator(".rack-row[data-name=robot] .chip").click()
    prompt = "a castle <lora:lonely:0.25>, sks robot"
    expect(page.locator("#prompt textarea")).to_have_value(prompt)
    page.locator(".rack-row[data-name=ink] input[type=range]").fill("0.5")
    page.locator(".rack-row[data-name=ink] select").select_option("late")
    set_steps(page, 2)
    page.locator("#generate-start").click()
    finish(page)
    picture = page.locator("#stage .frame img")
    assert picture.evaluate("image => image.naturalWidth") == SIDE
    assert picture.bounding_box()["width"] > 300
    assert picture.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    record = record_of(page)
    assert record.recipe.prompt == "a castle, sks robot"
    assert record.recipe.mix == {"ink": 0.5, "robot": 1, "lonely": 0.25}
    assert record.recipe.timing == {"ink": "late"}
    page.get_by_text("How it was made").click()
    expect(page.locator(".settings").first).to_contain_text("ink at 0.5, late")

    page.reload()
    # The page comes back as it was: the last picture and what was asked for.
    expect(page.locator("#stage .facts")).to_contain_text(str(record.recipe.seed))
    expect(page.locator("#prompt textarea")).to_have_value("a castle, sks robot")
    expect(page.locator(".rack-row")).to_have_count(3)

    picture_file = tmp_path / "dropped.png"
    write_png(Image.new("RGB", (8, 8)), picture_file, record)
    page.locator(".rack-row[data-name=robot] .rack-remove").click()
    page.locator("#prompt textarea").fill("")
    drop(page, picture_file)
    expect(page.locator("#prompt textarea")).to_have_value("a castle, sks robot")
    expect(page.locator(".rack-row[data-name=ink] output")).to_have_text("0.50")
    expect(page.locator(".rack-row[data-name=ink] select")).to_have_value("late")
    expect(page.locator(".rack-row[data-name=robot]")).to_be_visible()


def drop(page: Page, file: Path) -> None:
    """Drop a file somewhere on the page."""
    content = base64.b64encode(file.read_bytes()).decode()
    page.evaluate(
        """([content, name]) => {
            const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            const event = { bubbles: true, cancelable: true, dataTransfer: transfer };
            document.querySelector(".masthead").dispatchEvent(new DragEvent("drop", event));
        }""",
        [content, file.name],
    )


def test_enter_in_the_prompt_generates(page: Page) -> None:
    set_steps(page, 1)
    page.locator("#prompt textarea").fill("a castle")
    page.locator("#prompt textarea").press("Enter")
    page.locator("#stage img").first.wait_for(timeout=JOB_MS)
    assert record_of(page).recipe.prompt == "a castle"
    expect(page.locator("#prompt textarea")).to_have_value("a castle")


def test_an_adapter_that_is_off_stays_out_and_a_batch_counts_its_seeds(page: Page) -> None:
    page.locator("#prompt textarea").fill("a castle")
    for name in ("ink", "robot"):
        page.locator(f".rack-card[data-name={name}]").click()
    page.locator(".rack-row[data-name=robot] .rack-on input").uncheck()
    expect(page.locator(".rack-title")).to_contain_text("1 in use")
    set_steps(page, 1)
    count = page.get_by_label("number input for Pictures")
    count.fill("3")
    count.press("Tab")
    page.locator("#generate-start").click()
    page.locator("#stage .siblings button").nth(2).wait_for(timeout=JOB_MS)
    last = record_of(page).recipe
    assert last.mix == {"ink": 1}
    page.locator("#stage .siblings button").first.click()
    expect(page.locator("#stage .siblings button").first).to_have_attribute("aria-current", "true")
    assert record_of(page).recipe.seed == last.seed - 2
    page.locator(".strip button").nth(1).click()
    expect(page.locator("#stage .siblings button").nth(1)).to_have_attribute("aria-current", "true")


def test_two_shipped_adapters_draw_a_picture(shipped_page: Page) -> None:
    page = shipped_page
    for name in ("high-contrast", "rocket"):
        page.locator(f".rack-card[data-name={name}]").click()
    page.locator("#prompt textarea").fill("rocket, ink style")
    page.locator("#generate-start").click()
    finish(page)
    with page.expect_download() as download:
        page.get_by_text("Download PNG").click()
    with Image.open(download.value.path()) as image:
        red, green, blue = (np.asarray(image.convert("RGB"), float) / 255).transpose(2, 0, 1)
    # Ink on paper: no colour, and both much black and much white.
    assert np.abs(red - blue).mean() < 0.05
    assert (green < 0.2).mean() > 0.1
    assert (green > 0.8).mean() > 0.4


def test_a_job_goes_on_while_its_page_is_loaded_again_and_ends_at_a_stop(
    shipped_page: Page,
) -> None:
    page = shipped_page
    page.locator("#prompt textarea").fill("a castle")
    page.locator(".rack-card[data-name=rocket]").click()
    # On the toy even the most steps are over before anyone can press Stop.
    set_long(page)
    page.locator("#generate-start").click()
    page.get_by_alt_text("Preview").wait_for(timeout=JOB_MS)
    page.reload()
    page.get_by_text("of 100").wait_for(timeout=JOB_MS)
    page.locator("#generate-stop").wait_for()
    expect(page.locator("#prompt textarea")).to_have_value("a castle")
    expect(page.locator(".rack-row")).to_have_count(1)
    press_stop(page)
    page.get_by_text("The base model is back as it was").wait_for()
    expect(page.locator("#stage")).to_contain_text("Stopped")
    expect(page.get_by_role("button", name="Start again")).to_be_visible()
    set_steps(page, 2)
    page.locator("#generate-start").click()
    finish(page)


def test_a_second_person_is_told_who_comes_first(
    browser: Browser, shipped_address: str, shipped_page: Page
) -> None:
    with opened(browser, shipped_address, width=1280) as other:
        for page in (shipped_page, other):
            page.locator("#prompt textarea").fill("a castle")
            set_long(page)
        for page in (shipped_page, other):
            page.locator("#generate-start").click()
        other.get_by_text("1 job before yours").wait_for(timeout=JOB_MS)
        for page in (other, shipped_page):
            press_stop(page)


def test_an_error_is_told_in_words_and_the_page_goes_on(page: Page) -> None:
    page.locator("#generate-start").click()
    page.get_by_text("The prompt is empty").wait_for()
    page.locator("#generate-start").wait_for()
    expect(page.locator("#stage")).to_contain_text("Your picture will appear here")
    page.get_by_role("button", name="a red fox, noto style").click()
    expect(page.locator("#prompt textarea")).to_have_value("a red fox, noto style")


def test_hostile_names_and_new_adapters_are_listed(page: Page, adapters: Path) -> None:
    expect(page.locator(".rack-broken summary")).to_have_text("2 folders are not usable")
    page.locator(".rack-broken summary").click()
    expect(page.locator(".rack-broken")).to_contain_text(HOSTILE)
    expect(page.locator(".rack-card")).to_have_count(3)
    page.get_by_text("Show LoRA twins").click()
    expect(page.locator(".rack-card")).to_have_count(5)
    newcomer = adapters / "newcomer"
    shutil.copytree(adapters / "lonely", newcomer)
    try:
        page.get_by_text("Rescan").click()
        expect(page.locator(".rack-card")).to_have_count(6)
        expect(page.locator(".rack-card[data-name=newcomer]")).to_be_visible()
    finally:
        shutil.rmtree(newcomer)
    page.get_by_text("Rescan").click()
    expect(page.locator(".rack-card")).to_have_count(5)


@pytest.mark.parametrize("page", [390], indirect=True)
def test_a_phone_wide_window_does_not_scroll_sideways(page: Page) -> None:
    assert overflow(page) <= 0
    page.locator("#prompt textarea").fill("a castle")
    page.locator(".rack-card[data-name=ink]").click()
    set_steps(page, 2)
    page.locator("#generate-start").click()
    finish(page)
    page.get_by_text("How it was made").click()
    page.get_by_text("As text").wait_for()
    assert overflow(page) <= 0
