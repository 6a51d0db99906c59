"""Thumbnails of the example graphs: what each is for, over the graph itself, small, with the portrait in it.

ComfyUI shows them as squares of about 230 pixels, with its own badge in the upper left corner.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .workflow_drawing import Drawing, display_name
from .workflow_graphs import NOTE
from .workflow_layout import TITLE, Box, wire

PORTRAIT = Path(__file__).parents[1] / "liveavatar" / "mini" / "assets" / "portrait.png"
SIZE = (600, 600)
MARGIN, BADGE, GRAPH = 28, 92, 318
"""At the sides; the strip that is left for the badge; where the graph begins."""
FINE = 2
"""Drawn so much larger and then reduced, for smooth edges."""
BACK, BODY, HEAD, OURS, TEXT, SENTENCE = "#17171c", "#2f2f37", "#3d3d48", "#3f5a8c", "#e8e8ee", "#ffd166"
COLORS = {"VIDEO": "#e8a04c", "IMAGE": "#64b5f6", "AUDIO": "#7fc97f", "LIVEAVATAR_MODEL": "#b39ddb"}
WIRE = "#7a8fb5"


class _Canvas:
    """Maps the graph's coordinates to the image's."""

    def __init__(self, drawing: Drawing) -> None:
        self.image = Image.new("RGB", (SIZE[0] * FINE, SIZE[1] * FINE), BACK)
        self.draw = ImageDraw.Draw(self.image)
        boxes = [box for key, box in drawing.layout.boxes.items() if key != NOTE]
        left, top = min(b.left for b in boxes), min(b.top for b in boxes) - TITLE
        width = max(b.left + b.width for b in boxes) - left
        height = max(b.top + b.height for b in boxes) - top
        room, high = (SIZE[0] - 2 * MARGIN) * FINE, (SIZE[1] - MARGIN - GRAPH) * FINE
        self.scale = min(room / width, high / height)
        self.left = (SIZE[0] * FINE - width * self.scale) / 2 - left * self.scale
        self.top = GRAPH * FINE + (high - height * self.scale) / 2 - top * self.scale

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x * self.scale + self.left, y * self.scale + self.top

    def rectangle(self, box: Box, color: str, radius: float) -> None:
        corners = (*self.at(box.left, box.top), *self.at(box.left + box.width, box.top + box.height))
        self.draw.rounded_rectangle(corners, radius * self.scale, fill=color)

    def text(self, x: float, y: float, text: str, size: float, color: str) -> None:
        self.draw.text((x, y), text, fill=color, font=ImageFont.load_default(size), anchor="lm")


def draw(drawing: Drawing, path: Path) -> None:
    """Write a JPEG."""
    canvas = _Canvas(drawing)
    heading = drawing.graph.note.splitlines()[0].removeprefix("# ")
    top = BADGE + 26
    for text, size, color in ((heading, 44, TEXT), (drawing.graph.sentence, 36, SENTENCE)):
        for line in _lines(text, size):
            canvas.text(MARGIN * FINE, top * FINE, line, size * FINE, color)
            top += size + 10
    for link in drawing.links:
        _wire(canvas, drawing, link)
    for item in drawing.items:
        _node(canvas, drawing, item.key)
    canvas.image.resize(SIZE, Image.Resampling.LANCZOS).save(path, quality=88, optimize=True)


def _lines(text: str, size: int) -> list[str]:
    """As many words in each as there is room for."""
    font, lines = ImageFont.load_default(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > SIZE[0] - 2 * MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _node(canvas: _Canvas, drawing: Drawing, key: str) -> None:
    item, box = drawing.by_key[key], drawing.layout.boxes[key]
    ours = item.type.startswith("LiveAvatar")
    canvas.rectangle(Box(box.left, box.top - TITLE, box.width, box.height + TITLE), OURS if ours else HEAD, 14)
    canvas.rectangle(Box(box.left, box.top + 12, box.width, box.height - 12), BODY, 14)
    x, y = canvas.at(box.left + 14, box.top - 9)
    title = display_name(item.type)
    size = max(34 * canvas.scale, 9 * FINE)
    size *= min(1.0, (box.width - 28) * canvas.scale / ImageFont.load_default(size).getlength(title))
    canvas.text(x, y, title, size, TEXT)
    if item.type in ("LoadImage", "LiveAvatarDecode", "LiveAvatarGenerate"):
        _face(canvas, box)
    elif item.type in ("LoadAudio", "RecordAudio"):
        _sound(canvas, box)
    else:
        for row in range(min(len(drawing.kinds[item.type].widgets), int((box.height - 70) // 46))):
            canvas.rectangle(Box(box.left + 20, box.top + 50 + 46 * row, box.width - 40, 30), HEAD, 12)


def _face(canvas: _Canvas, box: Box) -> None:
    side = min(box.width - 60, box.height - 70)
    pixels = round(side * canvas.scale)
    with Image.open(PORTRAIT) as picture:
        small = picture.convert("RGB").resize((pixels, pixels), Image.Resampling.LANCZOS)
    x, y = canvas.at(box.left + (box.width - side) / 2, box.top + box.height - side - 24)
    canvas.image.paste(small, (round(x), round(y)))


def _sound(canvas: _Canvas, box: Box) -> None:
    heights = (10, 26, 44, 30, 52, 38, 18, 34, 56, 40, 24, 12, 30, 46, 22, 10)
    step = (box.width - 60) / len(heights)
    middle = box.top + box.height / 2 + 10
    for n, height in enumerate(heights):
        x = box.left + 30 + step * n
        canvas.draw.rectangle(
            (*canvas.at(x, middle - height), *canvas.at(x + step * 0.5, middle + height)), COLORS["AUDIO"]
        )


def _wire(canvas: _Canvas, drawing: Drawing, link: list) -> None:
    _, source, output, target, slot, kind = link
    keys, boxes = {number: key for key, number in drawing.ids.items()}, drawing.layout.boxes
    curve = wire(boxes[keys[source]].output(output), boxes[keys[target]].input(slot), points=33)
    color = COLORS.get(kind, WIRE)
    canvas.draw.line([canvas.at(*point) for point in curve], fill=color, width=2 * FINE, joint="curve")
