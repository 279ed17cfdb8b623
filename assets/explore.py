"""Draws the README's pictures of the explorer, on the scenes: the page in headless Chromium, as WebP.

    python assets/explore.py runs/demo runs/other

It needs the extras `app` and `demo`, playwright's Python client and a Chromium (`apt-get install chromium`). The
drawings in the scenes are OpenMoji's (CC BY-SA 4.0).
"""

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = Path(__file__).resolve().parent
WIDTH = 1000  # pixels of a picture


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the checkpoints, takes the pictures, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="one or two checkpoints, such as runs/demo")
    parser.add_argument("--photos", type=int, default=1000, help="scenes (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        parser.exit(2, "The pictures are taken by playwright: pip install playwright.\n")
    command = [sys.executable, "-m", "levljepa_hf.cli", "explore", *args.models, "--max_photos", str(args.photos)]
    server = subprocess.Popen([*command, "--no_open_browser", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        address = next(line for line in server.stdout if line.startswith("http")).split()[0]
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 880})
            page.goto(f"{address}/#tab=run")
            page.wait_for_selector("html[data-ready]")
            # another of its class
            same = page.evaluate("LV.state.photos.labels.indexOf(LV.state.photos.labels[0], 1)")
            page.goto(f"{address}/#tab=patches&photo=p0&photo2=p{same}&size=224&x=0.5&y=0.62")
            page.reload()
            page.get_by_text("patches at").first.wait_for(timeout=60_000)
            save(page, "explore_patches")
            page.goto(f"{address}/#tab=space&method=tsne")
            page.reload()
            page.locator(".legend button").nth(1).wait_for(timeout=300_000)
            page.locator(".busy.on").wait_for(state="detached", timeout=300_000)
            select(page)
            save(page, "explore_space")
    finally:
        server.terminate()
        server.wait()
    return 0


def select(page: "Page") -> None:
    """Draws a lasso around a part of the first map."""
    page.get_by_role("button", name="Lasso").click()
    box = page.locator(".map canvas:last-of-type").first.bounding_box()
    corners = [(0.56, 0.08), (0.78, 0.1), (0.82, 0.36), (0.62, 0.4), (0.54, 0.25)]
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()
    page.mouse.move(0, 0)


def save(page: "Page", name: str) -> None:
    """The page as it is seen, as a WebP."""
    page.wait_for_timeout(1500)  # thumbnails
    image = Image.open(io.BytesIO(page.screenshot()))
    image = image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    path = FOLDER / f"{name}.webp"
    image.save(path, "webp", quality=82, method=6)
    print(path.relative_to(FOLDER.parent), f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
