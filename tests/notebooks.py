"""The notebooks of `examples/notebooks`: run in a kernel, their outputs made small, compared, stored.

    python -m tests.notebooks            # run all, say where a stored output is not the code's
    python -m tests.notebooks --write    # run all and store the outputs

Tables and text are stored as they are. A plotly figure would bring megabytes of its library, and a
code host shows nothing of it: it is stored as an image, drawn by the Chromium that
``MARKETDATA_CHROMIUM`` names (or ``chromium`` on the path), beside a line that says what is in it.
Without one an image is kept as long as that line stays. Durations differ from run to run and are
left out when outputs are compared; a cell whose output depends on the machine is tagged ``machine``.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[1]
NOTEBOOKS: Final = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
FIGURE: Final = "application/vnd.plotly.v1+json"
IMAGE: Final = "image/png"
LONGEST: Final = 30.0
"""Seconds that a notebook may take."""

_WIDTH: Final = 940
_COLOURS: Final = 256
_ATTEMPTS: Final = 4
_DURATION: Final = re.compile(r"\b\d[\d,]*(\.\d+)?(e-\d+)? ?(ms|s|seconds|µs)\b")

Notebook = dict[str, Any]
Output = dict[str, Any]
Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]


def read(path: Path) -> Notebook:
    found: Notebook = json.loads(path.read_text("utf-8"))
    return found


def run(path: Path, directory: Path) -> Notebook:
    """Run a notebook in a kernel of its own and return it with the outputs it has now.

    The kernel has this process's environment, and `directory` as its working directory.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raised.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "PLOTLY_RENDERER": "plotly_mimetype",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],  # it warns of its own local sockets
        resources={"metadata": {"path": str(directory)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment)
    found: Notebook = json.loads(nbformat.writes(notebook))
    return found


def code_cells(notebook: Notebook) -> Iterator[dict[str, Any]]:
    return (cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def told(cell: dict[str, Any]) -> list[str]:
    """Return what a cell's outputs say, without durations and widths that follow from them."""
    found = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        text = output.get("text") or described(data) or data.get("text/plain", "")
        html = "" if described(data) else _joined(data.get("text/html", ""))
        for part in (_joined(text), html):
            if part.strip():
                found.append(re.sub(r"\s+", " ", _DURATION.sub("TIME", part)).strip())
    return found


def described(data: dict[str, Any]) -> str:
    """Return one line about the figure of an output; nothing where it has none."""
    figure = data.get(FIGURE)
    if figure is None:
        text = _joined(data.get("text/plain", ""))
        return text if text.startswith("[picture]") else ""
    heading = figure["layout"].get("title", {}).get("text", "")
    heading = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", heading)).strip()
    traces = [trace.get("name") or trace["type"] for trace in figure["data"]]
    return f"[picture] {heading}: " + ", ".join(dict.fromkeys(traces))


def stored(fresh: Notebook, before: Notebook) -> Notebook:
    """Return a notebook as it is committed: outputs made small, figures as images."""
    images = {
        text: data[IMAGE]
        for cell in code_cells(before)
        for output in cell["outputs"]
        if IMAGE in (data := output.get("data", {})) and (text := described(data))
    }
    for number, cell in enumerate(code_cells(fresh), 1):
        cell["execution_count"] = number
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        cell["outputs"] = [_stored(output, number, images) for output in cell["outputs"]]
    fresh["metadata"] = before["metadata"]
    return fresh


def _stored(output: Output, number: int, images: dict[str, Any]) -> Output:
    output = dict(output)
    if "execution_count" in output:
        output["execution_count"] = number
    data = output.get("data")
    if not data:
        return output
    line = described(data)
    if not line:
        output["data"] = {k: v for k, v in data.items() if k in ("text/plain", "text/html")}
        return output
    image = _drawn(data[FIGURE]) or images.get(line)
    output["data"] = {"text/plain": [line]} | ({} if image is None else {IMAGE: image})
    return output


def _drawn(figure: dict[str, Any]) -> str | None:
    """Return a figure as PNG in base64; None where there is no Chromium."""
    browser = os.environ.get("MARKETDATA_CHROMIUM") or shutil.which("chromium")
    if browser is None:
        return None
    height = int(figure["layout"].get("height") or 450)
    size = f"width: {_WIDTH}, height: {height}"
    # Menus and buttons do nothing in an image.
    layout = {k: v for k, v in figure["layout"].items() if k != "updatemenus"}
    from plotly.offline import get_plotlyjs

    page = f"""<html><body><div id=f></div><script>{get_plotlyjs()}</script><script>
        async function draw(data, layout) {{
            const f = await Plotly.newPlot('f', data, {{...layout, {size}}});
            const image = new Image();
            image.src = await Plotly.toImage(f, {{format: 'png', {size}}});
            await image.decode();
            const canvas = new OffscreenCanvas({_WIDTH}, {height}).getContext('2d');
            canvas.fillStyle = 'white';
            canvas.fillRect(0, 0, {_WIDTH}, {height});
            canvas.drawImage(image, 0, 0);
            const bytes = canvas.getImageData(0, 0, {_WIDTH}, {height}).data;
            let text = '';
            for (let n = 0; n < bytes.length; n += 4)
                text += String.fromCharCode(bytes[n], bytes[n + 1], bytes[n + 2]);
            document.body.innerHTML = '<pre>' + btoa(text) + '</pre>';
        }}
        draw({json.dumps(figure["data"])}, {json.dumps(layout)})
        </script></body></html>"""
    for _ in range(_ATTEMPTS):  # a busy machine runs out of the page's time budget
        found = re.search(r"<pre>([A-Za-z0-9+/=]+)</pre>", _dom(browser, page))
        if found is not None:
            break
    else:
        raise RuntimeError("Chromium did not draw the figure")
    pixels = np.frombuffer(base64.b64decode(found[1]), np.uint8).reshape(height, _WIDTH, 3)
    return base64.b64encode(png(pixels)).decode("ascii")


def _dom(browser: str, page: str) -> str:
    """Return a page as it stands after its scripts have run."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "figure.html")
        file.write_text(page, "utf-8")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            f"--user-data-dir={directory}/profile", "--virtual-time-budget=30000", file.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def png(pixels: Pixels) -> bytes:
    """Return pixels as a PNG with a palette: a fifth of the size, and a chart has few colours.

    Source: PNG specification (third edition), sections 5.6 and 11.2, colour type 3.
    """
    height, width, _ = pixels.shape
    flat = pixels.reshape(-1, 3)
    colours, inverse, counts = np.unique(flat, axis=0, return_inverse=True, return_counts=True)
    wide = colours.astype(np.int64)
    # The commonest colours, and after them whatever is worst served: a thin line is not common.
    chosen = [int(n) for n in np.argsort(-counts, kind="stable")[: _COLOURS // 4]]
    far = np.stack([((wide - wide[n]) ** 2).sum(axis=1) for n in chosen], axis=1)
    nearest, least = far.argmin(axis=1), far.min(axis=1)
    while len(chosen) < _COLOURS and least.max() > 0:
        chosen.append(int(least.argmax()))
        distance = ((wide - wide[chosen[-1]]) ** 2).sum(axis=1)
        nearest[distance < least] = len(chosen) - 1
        least = np.minimum(least, distance)
    palette = colours[chosen]
    rows = nearest.astype(np.uint8)[inverse.reshape(-1)].reshape(height, width)
    filtered = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter: none
    filtered[:, 1:] = rows

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", palette.tobytes())
        + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def differences(fresh: Notebook, before: Notebook) -> list[str]:
    """Return where the outputs of a run are not those that are stored."""
    found = []
    pairs = zip(code_cells(fresh), code_cells(before), strict=True)
    for number, (now, then) in enumerate(pairs, 1):
        if "machine" in now["metadata"].get("tags", []):
            continue
        if told(now) != told(then):
            found.append(f"[{number}] stored:\n{told(then)}\nnow:\n{told(now)}")
    return found


def _joined(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else str(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks; compare or store outputs.")
    parser.add_argument("names", nargs="*", help="parts of names; all by default")
    parser.add_argument("--write", action="store_true", help="store the outputs")
    options = parser.parse_args()
    failed = False
    for path in NOTEBOOKS:
        if options.names and not any(name in path.name for name in options.names):
            continue
        before = read(path)
        with tempfile.TemporaryDirectory() as directory:
            fresh = run(path, Path(directory))
        if options.write:
            text = json.dumps(stored(fresh, before), indent=1, ensure_ascii=False)
            path.write_text(text + "\n", "utf-8")
            print(f"{path.name}: {path.stat().st_size / 1024:,.0f} KiB")
            continue
        for line in differences(fresh, before):
            failed = True
            print(f"{path.name} {line}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
