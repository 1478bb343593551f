"""Draws how novelty guidance works, in both feature spaces.

    python -m demo.novelty_diagram        writes docs/art/novelty.png
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from demo.art import BACKGROUND, CAPTION, FOLDER, TEXT

SIZE = (1260, 600)
BOX, WIRE, LATENT, FEATURES = "#2b2f38", "#8b94a3", "#ff9cf9", "#8bc34a"
FLOW = 96  # height of the middle of the model's row
LOOP = 300  # and of the adapters' row
LOG = 520  # and of the memory's


class Diagram:
    """Boxes and arrows on a dark ground."""

    def __init__(self):
        self.picture = Image.new("RGB", SIZE, BACKGROUND)
        self.pen = ImageDraw.Draw(self.picture)

    def box(self, x: int, y: int, text: str, width: int = 150, height: int = 72,
            colour: str = BOX) -> None:
        """Around its middle."""
        around = (x - width // 2, y - height // 2, x + width // 2, y + height // 2)
        self.pen.rounded_rectangle(around, 10, fill=BOX, outline=colour, width=2)
        self.text(x, y, text)

    def text(self, x: int, y: int, text: str, colour: str = TEXT, size: int = 18) -> None:
        self.pen.multiline_text((x, y), text, colour, ImageFont.load_default(size), anchor="mm",
                                align="center", spacing=6)

    def plus(self, x: int, y: int, colour: str) -> None:
        self.pen.ellipse((x - 17, y - 17, x + 17, y + 17), fill=BACKGROUND, outline=colour, width=2)
        self.text(x, y, "+", colour, 26)

    def arrow(self, *points: tuple[int, int], colour: str = WIRE) -> None:
        """Along straight lines, right or left, up or down."""
        self.pen.line(points, fill=colour, width=2)
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        self.pen.polygon([(x, y), (x - 11 * dx - 6 * dy, y - 11 * dy - 6 * dx),
                          (x - 11 * dx + 6 * dy, y - 11 * dy + 6 * dx)], fill=colour)


def diagram() -> Image.Image:
    made = Diagram()
    made.box(110, FLOW, "noisy\nlatent", colour=LATENT)
    made.box(450, FLOW, "first blocks\nof the model", 170)
    made.box(790, FLOW, "last blocks\nof the model", 170)
    made.box(1010, FLOW, "clean latent,\nas guessed", 150, colour=LATENT)
    made.arrow((185, FLOW), (253, FLOW))
    made.arrow((287, FLOW), (365, FLOW))
    made.arrow((535, FLOW), (643, FLOW))
    made.arrow((677, FLOW), (705, FLOW))
    made.arrow((875, FLOW), (935, FLOW))
    made.arrow((1085, FLOW), (1200, FLOW))
    made.text(1150, FLOW - 34, "sampler,\nnext step", CAPTION, 16)
    made.text(590, FLOW - 30, "activation", FEATURES, 16)

    made.box(270, LOOP, "space latent\nP(seen before), 8 x 8\nand the way out of it", 240, 104,
             LATENT)
    made.arrow((270, LOOP - 52), (270, FLOW + 17), colour=LATENT)
    made.arrow((1010, FLOW + 36), (1010, FLOW + 106), (330, FLOW + 106), (330, LOOP - 52),
               colour=LATENT)
    made.text(880, FLOW + 88, "of the step before", LATENT, 16)
    made.box(640, LOOP, "space features\nP(seen before), 4 x 4\nand the way out of it", 240, 104,
             FEATURES)
    made.arrow((580, FLOW), (580, LOOP - 52), colour=FEATURES)
    made.arrow((660, LOOP - 52), (660, FLOW + 17), colour=FEATURES)
    made.text(870, LOOP, "with the prompt,\nnot without it (CFG)", CAPTION, 16)
    made.text(455, LOOP, "or", CAPTION, 20)
    made.plus(270, FLOW, LATENT)
    made.plus(660, FLOW, FEATURES)

    made.box(455, LOG, "novelty net: one Gaussian unit for each image,\nat most 2048, then like "
             "units become one", 430, 80)
    made.box(1010, LOG, "novelty memory: a log of\nall images by their embeddings", 300, 80)
    made.arrow((270, LOG - 40), (270, LOOP + 52))
    made.arrow((640, LOG - 40), (640, LOOP + 52))
    made.arrow((860, LOG), (670, LOG))
    made.arrow((1200, FLOW), (1200, 420), (1010, 420), (1010, LOG - 40))
    made.text(1100, 400, "when the run has ended", CAPTION, 16)
    made.text(765, LOG - 18, "learns", CAPTION, 16)
    return made.picture


if __name__ == "__main__":
    diagram().save(FOLDER / "novelty.png")
