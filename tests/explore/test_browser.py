"""The page in a real browser: every tab is opened and used, its console stays free of errors, no other host is asked.

Needs Debian's chromium and playwright's Python client (`apt-get install chromium`, `pip install playwright`).
"""

import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from levljepa_hf.explore import export as export_module
from levljepa_hf.explore.export import export
from levljepa_hf.explore.photos import embed_photos, load_photos
from levljepa_hf.explore.server import bind, build_app
from levljepa_hf.explore.session import Session

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with tempfile.TemporaryDirectory() as profile, playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=FLAGS, viewport={"width": 1400, "height": 900}
        )
        yield context
        context.close()


@pytest.fixture
def page(browser, serve) -> Iterator[object]:  # after `serve`, so that it is closed before the server ends
    """A page that fails the test for an error in its console or a request to another host."""
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if is_foreign(request.url) else None)
    page.set_default_timeout(20_000)
    yield page
    page.close()
    assert not faults


def is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "file:", "blob:", "data:"))


@pytest.fixture
def serve() -> Iterator[object]:
    """A function that serves a session in a thread and returns the address."""
    servers = []

    def start(session: Session) -> str:
        listening = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(build_app(session), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        servers.append((server, thread, listening))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield start
    for server, thread, listening in servers:
        server.should_exit = True
        thread.join(10)
        listening.close()


def lasso(page, canvas) -> None:
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.down()
    for x, y in ((0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.3)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
    page.mouse.up()


def wait_until(page, expression: str) -> None:
    """As `wait_for_function`, which the page's policy forbids: it evaluates a string in the page."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(expression)


def open_tab(page, name: str):
    page.click(f"#tab-{name}")
    panel = page.locator(f"#panel-{name}")
    panel.wait_for()
    return panel


def use_every_tab(page, address: str, session: Session, words: str) -> None:
    models = len(session.seen)
    page.goto(address)
    page.wait_for_selector("html[data-ready]")

    panel = open_tab(page, "patches")
    panel.get_by_text("patches at").first.wait_for()
    before = panel.locator(".scale span").nth(1)
    before.filter(has_text="-").or_(before.filter(has_text="0.")).first.wait_for()
    with page.expect_response("**/api/similar") as answer:
        panel.locator(".lens canvas").first.click(position={"x": 20, "y": 20})
    assert answer.value.ok and '"x":0.' in answer.value.request.post_data
    with page.expect_response("**/api/patches") as answer:
        slider = panel.get_by_label("Resolution")
        slider.focus()
        slider.press("Home")
    assert answer.value.ok and "size=" in page.url
    panel.get_by_label("Words").fill(words)
    with page.expect_response("**/api/similar") as answer:
        panel.get_by_role("button", name="Find words").click()
    assert answer.value.ok

    panel = open_tab(page, "space")
    canvas = panel.locator(".map canvas:last-of-type")
    assert canvas.count() == models
    wait_until(page, "LV.tabs.space.maps.every((map) => map.points.length > 0)")
    spot = page.evaluate("LV.tabs.space.maps[0].toScreen(0)")
    canvas.first.hover(position={"x": spot[0], "y": spot[1]})
    page.locator("#hover-card img").wait_for()
    hovered = page.evaluate("LV.tabs.space.maps.map((map) => map.hovered)")
    assert hovered[0] >= 0 and len(set(hovered)) == 1  # the same photo in every map
    panel.get_by_role("button", name="Lasso").click()
    lasso(page, canvas.first)
    panel.get_by_text(f"{len(session.photos)} photos").wait_for()
    assert page.evaluate("LV.tabs.space.maps.every((map) => map.selected.every(Boolean))")
    panel.get_by_label("Colour", exact=True).select_option("prompt")
    panel.locator(".legend button").first.wait_for()
    if models == 2:
        panel.get_by_label("Colour", exact=True).select_option("agreement")
        panel.get_by_text("nearest neighbours that both models share").wait_for()

    panel = open_tab(page, "search")
    panel.get_by_label("Words", exact=True).fill(words)
    panel.get_by_label("Words", exact=True).press("Enter")
    panel.locator(".gallery button").first.wait_for()
    assert panel.locator(".gallery").count() == models
    panel.get_by_label("Readout, of words").select_option("proj")
    panel.get_by_role("heading", name="proj").first.wait_for()
    panel.locator(".gallery button").first.click()
    page.locator("dialog").get_by_role("button", name="Search").click()
    panel.get_by_text("1.000").first.wait_for()  # the photo itself

    panel = open_tab(page, "zero_shot")
    panel.locator("table.plain").first.wait_for()
    if session.photos.labels is not None:
        panel.get_by_text("photos are right").first.wait_for()
        panel.locator(".confusion td button").first.click()
    panel.get_by_label("Class names").fill("badger\nnewt")
    panel.get_by_role("button", name="Classify").click()
    panel.get_by_text("No accuracy").first.wait_for()

    panel = open_tab(page, "sigreg")
    panel.get_by_text("Step 0").wait_for()
    panel.get_by_role("button", name="Run", exact=True).click()
    panel.get_by_text(re.compile(r"Step (9|\d\d)")).wait_for()
    panel.get_by_role("button", name="Pause").click()
    panel.get_by_label("Direction", exact=False).last.press("ArrowRight")
    panel.get_by_label("Shape").select_option("blobs")
    panel.get_by_text("Step 0").wait_for()
    panel.get_by_role("button", name="Find").click()
    panel.get_by_text("Direction 4").wait_for()

    panel = open_tab(page, "run")
    panel.get_by_text("step 40").first.wait_for()
    assert panel.locator("svg.chart").count() >= 1

    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Light or dark").click()


@pytest.fixture
def run(tmp_path: Path) -> str:
    history = '[{"step": 20, "loss": 2.0, "sigreg_text": 9.0}, {"step": 40, "loss": 1.0, "sigreg_text": 3.0}]'
    (tmp_path / "run").mkdir()
    state = f'{{"global_step": 40, "log_history": {history}}}'
    (tmp_path / "run" / "trainer_state.json").write_text(state)
    return str(tmp_path / "run")


def test_every_tab_of_two_models(page, serve, seen, photos, cache, run) -> None:
    session = Session([seen["a"], seen["coarse"]], photos, [run], ["an owl", "a red fox"], cache)
    use_every_tab(page, serve(session), session, "a red fox")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real photos")
@pytest.mark.parametrize("name", ["imagenette-500", "flickr8k-800"])
def test_every_tab_on_real_photos(page, serve, seen, cache, run, name: str) -> None:
    photos = load_photos(str(DATA / name), cache_dir=cache, show_progress=False)
    pair = [embed_photos(seen[one].encoder, photos, cache_dir=cache, show_progress=False) for one in ("a", "b")]
    session = Session(pair, photos, [run], cache_dir=cache)
    use_every_tab(page, serve(session), session, "a dog on the grass")


def test_a_model_without_texts_says_so(page, serve, seen, photos, cache) -> None:
    page.goto(serve(Session([seen["tower"]], photos, cache_dir=cache)))
    page.wait_for_selector("html[data-ready]")
    open_tab(page, "patches").get_by_text("words cannot be placed").wait_for()
    for name in ("search", "zero_shot"):
        open_tab(page, name).get_by_text("no text tower").first.wait_for()
    open_tab(page, "run").get_by_text("No training run was named").wait_for()


def test_an_upload_and_what_is_refused(page, serve, seen, folder, photos, cache, tmp_path) -> None:
    page.goto(serve(Session([seen["a"]], photos, cache_dir=cache)))
    page.wait_for_selector("html[data-ready]")
    panel = open_tab(page, "search")
    panel.locator("input[type=file]").set_input_files(str(folder / "owl" / "00.png"))
    panel.get_by_text("1.000").first.wait_for()
    assert "p0" not in page.url
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * (21 * 2**20))
    panel.locator("input[type=file]").set_input_files(str(large))
    panel.get_by_text("The file has more than 20 MB").wait_for()


def test_the_exported_folder_opens_from_disk(page, seen, photos, cache, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("levljepa_hf.explore.session.SHAPES", ("ring", "heavy tails"))
    monkeypatch.setattr(export_module, "_STEPS", tuple(range(12)))
    session = Session([seen["a"], seen["b"]], photos, (), ["an owl", "a red fox"], cache)
    page.goto(export(session, tmp_path / "explored", show_progress=False).as_uri())
    page.wait_for_selector("html[data-ready]")
    names = page.locator("#tabs button").all_inner_texts()
    assert names == ["Space", "Search", "SIGReg"]
    panel = open_tab(page, "space")
    wait_until(page, "LV.tabs.space.maps.every((map) => map.points.length > 0)")
    panel.get_by_role("button", name="Lasso").click()
    lasso(page, panel.locator(".map canvas:last-of-type").first)
    panel.get_by_text("24 photos").wait_for()
    wait_until(page, "[...document.querySelectorAll('.gallery img')].every((image) => image.naturalWidth > 0)")
    for name in ("agreement", "prompt", "label"):
        panel.get_by_label("Colour", exact=True).select_option(name)
    panel.get_by_label("Projection").select_option("tsne")
    panel = open_tab(page, "search")
    panel.get_by_label("Words").select_option("a red fox")
    panel.locator(".gallery button").first.click()
    page.locator("dialog").get_by_role("button", name="Search").click()
    panel.get_by_role("heading", name="image_embeds").first.wait_for()
    panel = open_tab(page, "sigreg")
    panel.get_by_label("Shape").select_option("heavy tails")
    panel.get_by_text("Step 0").wait_for()
    panel.get_by_role("button", name="Run", exact=True).click()
    panel.get_by_text(re.compile(r"Step (9|\d\d)")).wait_for()
    panel.get_by_role("button", name="Find").click()
    panel.get_by_text("Direction 4").wait_for()
