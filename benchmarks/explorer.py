"""The explorer on many photos: reading and encoding them, a text query, and the frames of two linked maps in Chromium.

    python benchmarks/explorer.py --photos 10000

The photos are made on the spot, small. The models are of the preset `debug`, as what is measured is what lies around
them; of another preset the photos' features are drawn at random, and what a query costs is that preset's text tower.
Frames need playwright's Python client and a Chromium; without them they are left out.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import uvicorn
from measure import environment, report
from PIL import Image

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor
from levljepa_hf.encoders.encoders import LeVLJEPAEncoder
from levljepa_hf.explore import PhotoFeatures, embed_photos, load_photos
from levljepa_hf.explore.server import bind, build_app
from levljepa_hf.explore.session import Session

# Milliseconds of painting both maps while they are dragged, of a hover, and between frames while one is dragged.
FRAMES = """
async () => {
  const maps = LV.tabs.space.maps, next = () => new Promise((done) => requestAnimationFrame(done));
  const paint = [], hover = [], between = [];
  for (let i = 0; i < 40; i++) {
    const began = performance.now();
    maps.forEach((map) => { map.cx = 0.1 * Math.sin(i); map.paint(); });
    paint.push(performance.now() - began);
  }
  for (let i = 0; i < 200; i++) {
    const began = performance.now();
    const found = maps[0].at(maps[0].width * Math.random(), maps[0].height * Math.random());
    maps.forEach((map) => map.setHovered(found));
    hover.push(performance.now() - began);
  }
  let last = await next();
  for (let i = 0; i < 40; i++) {
    maps.forEach((map) => { map.cx = 0.1 * Math.sin(i / 5); map.draw(); });
    const now = await next();
    between.push(now - last);
    last = now;
  }
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  return [paint, hover, between].map((values) => +median(values).toFixed(2));
}
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--preset", default="debug", help="size of the models (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=20, help="text queries (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch), args.photos, args.queries, args.preset)
    report({"photos": args.photos, "preset": args.preset, **result, **environment(torch.device("cpu"))}, args.json)
    return 0


def measure(scratch: Path, num_photos: int, num_queries: int, preset: str) -> dict[str, str]:
    (scratch / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(num_photos):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(scratch / "photos" / f"{i:05d}.jpg", quality=85)
    encoders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = LeVLJEPAModel(LeVLJEPAConfig.from_preset(preset))
        processor = LeVLJEPAProcessor.from_image_size(model.config.vision_config.image_size)
        encoders.append(LeVLJEPAEncoder(f"{preset} {seed}", model, processor))
    result = {}
    for name in ("first", "again"):
        began = time.perf_counter()
        photos = load_photos(str(scratch / "photos"), cache_dir=scratch / "cache" / "features", show_progress=False)
        middle = time.perf_counter()
        options = {"cache_dir": scratch / "cache" / "features", "show_progress": False}
        if preset == "debug":
            seen = [embed_photos(encoder, photos, **options) for encoder in encoders]
        else:
            width = encoders[0].model.config.projection_dim
            names = ("cls", "image_embeds", "predictions")
            seen = [PhotoFeatures(one, {name: torch.randn(num_photos, width) for name in names}) for one in encoders]
        result[f"{name}: photos read"] = f"{middle - began:.1f} s"
        result[f"{name}: two models"] = f"{time.perf_counter() - middle:.1f} s"
    with bind("127.0.0.1", 0) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        session = Session(seen, photos, cache_dir=scratch / "cache" / "features")
        server = uvicorn.Server(uvicorn.Config(build_app(session), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            seconds = [query(address, f"a photo of number {i}") for i in range(num_queries)]
            result["text query, median"] = f"{1000 * statistics.median(seconds):.0f} ms"
            result["text query, slowest"] = f"{1000 * max(seconds):.0f} ms"
            result |= frames(address)
        finally:
            server.should_exit = True
            thread.join()
    return result


def query(address: str, text: str) -> float:
    """Seconds until the answer for both models is there, scores of all photos included."""
    body = json.dumps({"text": text, "k": 24}).encode()
    request = urllib.request.Request(f"{address}/api/search", body, {"Content-Type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        answer.read()
    return time.perf_counter() - began


def frames(address: str) -> dict[str, str]:
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        return {"frames": "left out: no playwright or no chromium"}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{address}/#tab=space")
        page.wait_for_selector("html[data-ready]")
        while not page.evaluate("LV.tabs.space.maps?.every((map) => map.points.length > 0)"):
            page.wait_for_timeout(100)
        page.wait_for_timeout(1000)
        paint, hover, between = page.evaluate(FRAMES)
    return {
        "both maps painted": f"{paint} ms",
        "a hover, found and shown": f"{hover} ms",
        "between frames while dragged": f"{between} ms",
    }


if __name__ == "__main__":
    sys.exit(main())
