"""The Library tab in a real browser: find, import, edit, download, delete and undo."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lodging import Lodging, Studio
from playwright.sync_api import Browser, Page, expect
from studio_toys import HOSTILE, make_adapter, make_library
from test_browser_studio import address, browser, opened, overflow, served, studio
from test_browser_train import go_to

from shira_diffusion import Adapter, AdapterInfo

__all__ = ["address", "browser", "studio"]
pytestmark = pytest.mark.browser


def fill(folder: Path, toy_base: Path) -> None:
    """A library, and beside it files to import."""
    make_library(toy_base, folder / "adapters")
    info = AdapterInfo(name="x", title=HOSTILE, trigger_words=("sks",), tags=(HOSTILE,))
    made = make_adapter(toy_base, folder / "out" / "gift", seed=5, info=info)
    (made / "adapter.safetensors").rename(folder / "gift.safetensors")
    (folder / "bad.safetensors").write_bytes(b"\x80\x04\x95pickle")


@pytest.fixture(scope="module")
def lodging(
    browser: Browser,
    toy_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lodging]:
    @contextmanager
    def opens() -> Iterator[Studio]:
        folder = tmp_path_factory.mktemp("library")
        fill(folder, toy_base)
        with served(folder, base=toy_base, adapters=folder / "adapters", threads=1) as address:
            yield Studio(folder, address)

    with Lodging(opens) as lodging:
        yield lodging


@pytest.fixture
def place(studio: Studio) -> Path:
    return studio.folder


@pytest.fixture
def page(
    browser: Browser,
    address: str,
    request: pytest.FixtureRequest,
) -> Iterator[Page]:
    with opened(browser, address, width=getattr(request, "param", 1280)) as page:
        go_to(page, "Library")
        page.locator(".shelf-card").first.wait_for()
        yield page


def field(page: Page, name: str) -> str:
    return page.locator(f"#library-{name}").locator("input, textarea").input_value()


def write(page: Page, name: str, text: str) -> None:
    page.locator(f"#library-{name}").locator("input, textarea").fill(text)


def test_search_and_filters(page: Page) -> None:
    cards = page.locator(".shelf-card")
    expect(cards).to_have_count(7)
    page.locator(".shelf-search").fill("INK style")
    expect(cards).to_have_count(2)
    page.get_by_label("Method", exact=True).select_option("LoRA")
    expect(cards).to_have_count(1)
    expect(cards).to_have_attribute("data-name", "ink-lora")
    page.locator(".shelf-search").fill("nothing like it")
    expect(page.locator(".shelf-count")).to_have_text("Nothing fits this search.")
    page.locator(".shelf-search").fill("")
    page.get_by_label("Kind", exact=True).select_option("concept")
    expect(cards).to_have_attribute("data-name", "robot-lora")


def test_import_edit_download_delete_undo(page: Page, place: Path) -> None:
    files = [place / "gift.safetensors", place / "bad.safetensors"]
    page.locator("#library-import").wait_for()
    with page.expect_file_chooser() as chooser:
        page.locator("#library-import").click()
    chooser.value.set_files(files)
    page.get_by_text("bad.safetensors was not imported").wait_for()
    expect(page.locator(".leaf-head h3")).to_have_text(HOSTILE)
    expect(page.locator(".shelf-card[data-name=gift]")).to_be_visible()
    expect(page.locator(".shelf-tags .chip")).to_have_text(f"#{HOSTILE}")
    go_to(page, "Generate")
    expect(page.locator(".rack-card[data-name=gift]")).to_be_visible()
    go_to(page, "Library")

    page.get_by_text("Edit", exact=True).click()
    page.wait_for_timeout(700)
    assert field(page, "triggers") == "sks"
    write(page, "title", "Gift of <b>ink</b>")
    write(page, "triggers", "bold ink, thin ink")
    write(page, "tags", "style")
    page.locator("#library-save").click()
    expect(page.locator(".leaf-head h3")).to_have_text("Gift of <b>ink</b>")
    saved = place / "adapters" / "gift-of-b-ink-b" / "adapter.safetensors"
    assert Adapter.load(saved).info.trigger_words == ("bold ink", "thin ink")

    with page.expect_download() as download:
        page.locator("#library-download").click()
    assert download.value.suggested_filename == "gift-of-b-ink-b.safetensors"
    assert Path(download.value.path()).read_bytes() == saved.read_bytes()

    page.locator("#library-delete").click()
    page.get_by_text("was deleted").wait_for()
    expect(page.locator(".shelf-card[data-name=gift-of-b-ink-b]")).to_have_count(0)
    page.reload()
    page.locator(".rack-card").first.wait_for()
    go_to(page, "Library")
    page.locator(".shelf .binned summary").click()
    page.get_by_text("Bring back").click()
    expect(page.locator(".leaf-head h3")).to_have_text("Gift of <b>ink</b>")
    assert saved.is_file()


def test_an_image_set_is_deleted_and_comes_back(page: Page) -> None:
    go_to(page, "Train")
    sets = page.locator("#train-set input")
    for number in range(2):
        page.locator("#train-example input").click()
        page.get_by_role("option", name="cactus").click()
        # One choice makes one set, and the same can be chosen again.
        expect(page.locator(".caption")).to_have_count(7)
        page.wait_for_timeout(800)
        assert sets.is_visible() == bool(number)
    sets.click()
    expect(page.get_by_role("option")).to_have_count(2)
    page.keyboard.press("Escape")
    page.locator(".caption textarea").first.fill("a cactus of mine")
    page.locator(".caption textarea").first.press("Tab")
    page.wait_for_timeout(500)
    page.locator("#train-delete-set").click()
    page.locator("#sets-trash").get_by_text("was deleted").wait_for()
    expect(sets).not_to_be_visible()
    expect(page.locator(".caption textarea").first).not_to_have_value("a cactus of mine")
    page.reload()
    page.locator(".rack-card").first.wait_for()
    go_to(page, "Train")
    page.locator("#sets-trash summary").click()
    page.locator("#sets-trash").get_by_text("Bring back").click()
    expect(page.locator(".caption textarea").first).to_have_value("a cactus of mine")
    expect(page.locator("#sets-trash")).not_to_be_visible()


@pytest.mark.parametrize("page", [390], indirect=True)
def test_a_phone_wide_window_and_the_keyboard_alone_will_do(page: Page) -> None:
    assert overflow(page) <= 0
    page.locator(".shelf-search").focus()
    card = page.locator(".shelf-card[data-name=lonely]")
    for _ in range(20):
        page.keyboard.press("Tab")
        if card.evaluate("node => node === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator(".leaf-head h3")).to_have_text("lonely")
    expect(page.locator(".leaf-head h3")).to_be_in_viewport()
    assert overflow(page) <= 0


@pytest.mark.parametrize("page", [1280, 390], indirect=True)
def test_details_and_undo_come_into_view_from_far_below(page: Page) -> None:
    page.set_viewport_size({"width": page.evaluate("innerWidth"), "height": 420})
    page.locator(".shelf-card[data-name=robot]").click()
    title = page.locator(".leaf-head h3")
    expect(title).to_have_text("Robot")
    expect(title).to_be_in_viewport()
    page.locator("#library-delete").click()
    page.get_by_text("(folder robot-lora) stays in the library.").wait_for()
    undo = page.locator(".shelf .notice").get_by_text("Undo")
    expect(undo).to_be_in_viewport()
    undo.click()
    expect(title).to_have_text("Robot")
