"""Take the screenshots of the dashboard that pages show: of the generator of docs/start.md after eight nights, of the
demo after `make demo`, and of ten injected problems.

    python docs/draw_dashboard.py                  all of them
    python docs/draw_dashboard.py start effort-cut some of them

Needs Chromium, playwright and pillow, and the folder of `make demo` for the pictures of the demo.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import nearcast
from nearcast.dashboard.document import build_document
from nearcast.dashboard.page import build_static_page
from nearcast.dashboard.removals import make_removals_reader

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
from tests.dashboard.browser import PHONE, program  # noqa: E402
from tests.dashboard.troubles import LAST_NIGHT, TROUBLES, history_with  # noqa: E402
from tests.documentation.pages import blocks  # noqa: E402

IMAGES = HERE / "images" / "dashboard"
DEMO = HERE.parent / "examples" / "similar_products" / "nearcast"
NAME = "similar-products"
CHEESE = "79289"  # one of the sample queries of the demo's page
MORNING = LAST_NIGHT + 6 * 3_600  # the page is opened six hours after the night
A_DAY_APART = """update events set seconds = seconds - 86400 * (
  select count(*) from events as later where later.kind = 'run' and later.number > events.number)"""
COLOURS = 192  # of a palette: text and lines stay sharp, and a picture stays below 120 kB


def main() -> None:
    """Take the named pictures, or all."""
    from playwright.sync_api import sync_playwright

    names = sys.argv[1:] or ["start", "demo", *TROUBLES]
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as library, tempfile.TemporaryDirectory() as folder:
        browser = library.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        for name in names:
            if name == "demo":
                demo(browser, Path(folder))
            elif name == "start":
                start(browser, Path(folder))
            else:
                trouble(browser, Path(folder), name)
            print(name, flush=True)
        browser.close()


def trouble(browser: Any, folder: Path, name: str) -> None:
    """Take the overview of a history with one planted problem."""
    data = build_document(history_with(name, folder / name)) | {"made": MORNING}
    path = folder / f"{name}.html"
    path.write_bytes(build_static_page(data))
    take(browser, path, "/", name, height=760)
    if name == "queries-of-another-model":
        take(browser, path, "/g/shop", "generator", height=1420)
        take(browser, path, "/", "phone", size=PHONE)
    if name == "effort-cut":
        key = next(q["key"] for q in data["generators"][0]["explorer"]["queries"] if q["why"].startswith("lowest"))
        take(browser, path, f"/g/shop/lists?key={key}", "diff-dark", scheme="dark", height=900)
    shutil.rmtree(folder / name)


def start(browser: Any, folder: Path) -> None:
    """Take the page that a reader of docs/start.md sees, after eight nights in which the model changed a little."""
    first, init = next(b for b in blocks(HERE / "start.md") if b.language == "python"), "nearcast init"
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(compile(first.body, str(first), "exec"), names)
        command = next(b.body for b in blocks(HERE / "start.md") if b.body.startswith(init))
        subprocess.run(["bash", "-c", command], check=True, stdout=subprocess.DEVNULL)
        items, rng = pq.read_table("products.parquet"), np.random.default_rng(7)
        vectors = np.array(items["vector"].to_pylist())
        for _ in range(8):
            nearcast.refresh("shop.toml", with_monitor=True)
            vectors = vectors + 0.02 * rng.normal(size=vectors.shape)
            changed = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            column = pa.array(list(changed.astype("float32")))
            pq.write_table(items.set_column(items.column_names.index("vector"), "vector", column), "products.parquet")
    with contextlib.closing(sqlite3.connect(folder / "nearcast" / "history.sqlite")) as history:
        history.execute(A_DAY_APART)
        history.commit()
    path = folder / "start.html"
    path.write_bytes(build_static_page(build_document(folder / "nearcast")))
    take(browser, path, "/g/shop", "start-generator", height=900)
    take(browser, path, "/g/shop/lists?key=green%20tea", "start-lists", height=700)


def demo(browser: Any, folder: Path) -> None:
    """Take the page of the demo: overview, generator, and the list of a cream cheese."""
    data = build_document(DEMO, removals=make_removals_reader(f"lmdb:{DEMO / 'store'}"))
    path = folder / "demo.html"
    path.write_bytes(build_static_page(data))
    take(browser, path, "/", "demo", height=560)
    keys = [str(query["key"]) for query in data["generators"][0]["explorer"]["queries"]]
    key = CHEESE if CHEESE in keys else keys[0]
    take(browser, path, f"/g/{NAME}/lists?key={key}", "demo-lists", height=1000)
    take(browser, path, f"/g/{NAME}", "demo-generator", height=1300)


def take(
    browser: Any,
    path: Path,
    view: str,
    name: str,
    *,
    height: int = 760,
    scheme: str = "light",
    size: dict[str, int] | None = None,
) -> None:
    """Take one picture, with a palette."""
    context = browser.new_context(viewport=size or {"width": 1280, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{path.as_uri()}#{view}")
    page.wait_for_selector("main h1")
    page.wait_for_timeout(600)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)
    context.close()


if __name__ == "__main__":
    main()
