"""The README's pictures of the playground, taken of a gateway with the shipped model: `make screenshots`."""

from __future__ import annotations

import io

from browser import open_browser, open_visit
from gateway_process import ROOT, start_gateway
from PIL import Image

# Name, address, colour scheme, and what is scrolled to.
PICTURES = [
    ("playground-light", "playground", "light", ""),
    ("playground-dark", "playground", "dark", ""),
    ("playground-tokens", "playground#example=cut", "light", "#token"),
]
COLOURS = 255


def main() -> None:
    with start_gateway() as gateway, open_browser() as browser:
        for name, path, scheme, target in PICTURES:
            with open_visit(browser, gateway.url, color_scheme=scheme, reduced_motion="reduce") as visit:
                page = visit.open(path)
                if target:
                    page.locator(target).evaluate("node => node.scrollIntoView()")
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            file = ROOT / "docs" / f"{name}.png"
            # Flat colours and text: a palette keeps both, at a third of the size. Without k-means the few signs in the
            # queries' colour would lose it.
            palette = picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE)
            palette.save(file, optimize=True)
            print(f"{file.relative_to(ROOT)}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
