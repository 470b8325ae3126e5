"""The Train tab in a real browser: from dropped pictures to an adapter, through any restart."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from studio_toys import make_library
from test_browser_studio import browser, opened, overflow, served

from studio.workshop.process import read_process

__all__ = ["browser"]
pytestmark = pytest.mark.browser

RUN_MS = 120_000


class House:
    """A studio that can be started again on what it has."""

    def __init__(self, place: Path, base: Path) -> None:
        self.place = place
        self._base = base
        self._stack = ExitStack()
        self.address = self.start()

    def start(self) -> str:
        adapters = self.place / "adapters"
        studio = served(self.place, base=self._base, adapters=adapters, threads=1)
        return self._stack.enter_context(studio)

    def restart(self) -> None:
        self.close()
        self.address = self.start()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def house(
    browser: Browser,
    toy_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    """A running studio of the test's own; at the end nothing that it started runs on."""
    folder = tmp_path_factory.mktemp("train")
    make_library(toy_base, folder / "adapters")
    house = House(folder, toy_base)
    yield house
    house.close()
    for training in (folder / "outputs" / "trainings").glob("2*"):
        process = read_process(training)
        if process:
            process.stop()
            process.stop()


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("dropped")
    files = [folder / "red_fox.png", folder / "IMG_1.png", folder / "notes.png"]
    Image.new("RGB", (40, 40), "red").save(files[0])
    Image.new("RGB", (40, 40), "teal").save(files[1])
    files[2].write_text("no picture")
    return files


@contextmanager
def train_tab(chromium: Browser, address: str, width: int = 1280) -> Iterator[Page]:
    with opened(chromium, address, width=width) as page:
        go_to(page, "Train")
        page.locator("#train-start").wait_for()
        yield page


def go_to(page: Page, tab: str) -> None:
    """Open a tab, which on a narrow window is behind "More tabs"."""
    button = page.get_by_role("tab", name=tab, exact=True)
    if not button.is_visible():
        page.get_by_label("More tabs").click()
        button = page.locator(".overflow-dropdown button", has_text=tab)
    button.click()


def fill_in(page: Page, title: str, steps: int) -> None:
    """The form for a quick run on the toy."""
    page.locator("#train-title").locator("input, textarea").fill(title)
    page.locator("#train-trigger").locator("input, textarea").fill("ink style")
    page.locator("#train-preset input").click()
    page.get_by_role("option", name="quick").click()
    page.locator("#train-more button").first.click()
    page.wait_for_timeout(700)
    further = page.locator("#train-more").get_by_placeholder("batch=2")
    further.fill("sample_steps=2\ncheckpoint_every=1000")
    number = page.get_by_label("Steps", exact=True)
    number.fill(str(steps))
    number.press("Tab")
    page.wait_for_timeout(300)


def show(page: Page, title: str) -> None:
    """Open a run of the list, and wait: its buttons are those of the run that is shown."""
    page.locator(".runs-item", has_text=title).click()
    expect(page.locator(".run-head h3")).to_contain_text(title)


def caption(page: Page, at: int) -> str:
    return page.locator(".caption textarea").nth(at).input_value()


def test_the_check_and_a_refused_run_speak_plainly_on_a_phone(
    browser: Browser,
    house: House,
    dropped: list[Path],
) -> None:
    with train_tab(browser, house.address, width=390) as page:
        page.locator("#train-drop input[type=file]").set_input_files(dropped[:2])
        expect(page.locator(".caption textarea")).to_have_count(2)
        fill_in(page, "No caption", steps=4)
        page.locator("#train-check").click()
        page.get_by_text("To be mended first").wait_for()
        expect(page.locator("#train-estimate .faults")).to_contain_text("what “IMG_1.png” shows")
        page.locator("#train-start").click()
        page.locator(".toast-body").get_by_text("Write what “IMG_1.png” shows").wait_for()
        expect(page.locator(".runs-item")).to_have_count(0)
        page.locator(".caption textarea").first.fill("castle")
        page.locator("#train-more").get_by_placeholder("batch=2").fill("batch=0")
        page.locator("#train-start").click()
        expect(page.locator(".run-head .state")).to_have_text("failed", timeout=RUN_MS)
        expect(page.locator(".run-problem")).to_contain_text("batch")
        assert str(house.place) not in page.locator(".run").inner_text()
        assert overflow(page) <= 0
        page.locator(".run [data-action=remove]").click()
        page.get_by_text("“No caption” was removed.").wait_for()
        expect(page.locator(".runs-item")).to_have_count(0)
        page.locator(".runs .notice").get_by_text("Undo").click()
        expect(page.locator(".runs-item")).to_have_count(1)
        page.locator("#train-new").click()
        expect(page.locator(".caption textarea")).to_have_count(0)
        page.locator(".run [data-action=reuse]").click()
        expect(page.locator(".caption textarea")).to_have_count(2)
        assert caption(page, 0) == "castle"


def test_from_dropped_pictures_through_stop_and_restart_to_an_adapter(
    browser: Browser,
    house: House,
    dropped: list[Path],
) -> None:
    with train_tab(browser, house.address) as page:
        page.locator("#train-start").click()
        page.get_by_text("Give the adapter a name").wait_for()
        page.locator("#train-drop input[type=file]").set_input_files(dropped)
        page.get_by_text("notes.png: it is not a picture").wait_for()
        expect(page.locator(".caption textarea")).to_have_count(2)
        assert [caption(page, 0), caption(page, 1)] == ["", "red fox"]
        fill_in(page, "Bold ink", steps=20_000)
        page.locator("#train-words").click()
        expect(page.locator(".caption textarea").nth(1)).to_have_value("red fox, ink style")
        page.locator(".caption textarea").first.fill("castle, ink style")
        page.locator("#train-start").click()
        page.get_by_text("of 20000").first.wait_for(timeout=RUN_MS)

        page.reload()
        page.locator(".rack-card").first.wait_for()
        go_to(page, "Train")
        page.get_by_text("of 20000").first.wait_for()
        assert caption(page, 0) == "castle, ink style"
        page.locator(".run-plot svg").wait_for()

    house.restart()  # the training goes on meanwhile
    with train_tab(browser, house.address) as page:
        state = page.locator(".run-head .state")
        expect(state).to_have_text("training")
        page.locator(".run [data-action=reuse]").click()
        expect(page.locator("#train-title").locator("input, textarea")).to_have_value("Bold ink")
        page.locator(".run [data-action=halt]").click()
        expect(state).to_have_text("stopped", timeout=RUN_MS)
        page.locator(".run [data-action=resume]").click()
        expect(state).to_have_text("training", timeout=RUN_MS)
        fill_in(page, "Short ink", steps=6)
        page.locator("#train-start").click()
        expect(state).to_have_text("waiting")
        show(page, "Bold ink")
        page.locator(".run [data-action=halt]").click()
        expect(state).not_to_have_text("training", timeout=RUN_MS)
        show(page, "Short ink")
        page.get_by_text("Short ink is in the library").wait_for(timeout=RUN_MS)
        expect(page.locator(".run-samples img")).to_have_count(1)
        assert page.locator(".run-samples img").evaluate("image => image.naturalWidth") == 32
        go_to(page, "Library")
        page.locator(".shelf-card[data-name=short-ink]").wait_for()
