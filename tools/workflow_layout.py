"""Where the nodes of an example graph stand.

ComfyUI fits a template into three quarters of its canvas when it opens, and the classic canvas draws no words below
57 %. In a window of 1500 x 800 it is shown at 60 % or more if its nodes, with their title bars, take at most
1855 x 980. Both renderers draw nodes of the same size, no smaller than they are saved; `BELOW` holds what either needs
under the widgets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .workflow_graphs import NOTE, Graph, Item
from .workflow_kinds import Kind

TITLE = 30
"""The title bar of a node, which stands above its position."""
GAP = 10
"""Between a node and the title bar of the one under it."""
MARGIN, CAPTION, BETWEEN = 14, 30, 12
"""Between a group's edge and its nodes; the strip with its title; between two groups."""
CLEAR = 8
"""Between a wire and a node that it passes."""
SLOT, FIRST_SLOT, INSET = 20, 14, 10
"""Between two sockets; from a node's top to the first; from its side to the dot."""
BELOW = {
    "LoadImage": 240,
    "LoadAudio": 26,
    "RecordAudio": 60,
    "LiveAvatarSample": 18,
    "LiveAvatarSamplePair": 18,
    "LiveAvatarSpeakers": 60,
    "LiveAvatarGenerate": 124,
    "LiveAvatarSampler": 60,
    "LiveAvatarDecode": 230,
    "LiveAvatarLive": 426,
    "LiveAvatarPlan": 172,
    "LiveAvatarTextEncode": 60,
    "LiveAvatarAudioFeatures": 22,
    "CLIPTextEncode": 60,
    "SolidMask": 8,
    "MaskComposite": 8,
    "CLIPLoader": 6,
    "AudioEncoderLoader": 26,
    "AudioEncoderEncode": 10,
    "SaveVideo": 14,
}
"""Room under the widgets: pictures, players, text boxes, progress."""


@dataclass(frozen=True)
class Box:
    """A rectangle of the canvas, without a node's title bar."""

    left: int
    top: int
    width: int
    height: int

    @property
    def bottom(self) -> int:
        """The lower edge."""
        return self.top + self.height

    def bounding(self) -> list[int]:
        """As groups are written."""
        return [self.left, self.top, self.width, self.height]

    def output(self, slot: int) -> tuple[int, int]:
        """Where a wire leaves a node."""
        return self.left + self.width - INSET, self.top + FIRST_SLOT + SLOT * slot

    def input(self, slot: int) -> tuple[int, int]:
        """Where a wire enters a node."""
        return self.left + INSET, self.top + FIRST_SLOT + SLOT * slot


@dataclass(frozen=True)
class Layout:
    """Boxes of all nodes by key (the note is `NOTE`), and of the groups with their titles."""

    boxes: dict[str, Box]
    groups: tuple[tuple[str, Box], ...]


def lay_out(graph: Graph, kinds: dict[str, Kind]) -> Layout:
    """Columns from left to right; in each, its groups from top to bottom."""
    boxes: dict[str, Box] = {}
    groups: list[tuple[str, Box]] = []
    left = 0
    for column in graph.columns:
        width = max(graph.widths.get(item.type, graph.width) for _, items in column for item in items)
        top = 0
        for caption, items in column:
            top += CAPTION + BETWEEN - GAP if caption and top else 0
            for item in items:
                strip = CAPTION if caption and item is items[0] else 0
                lowest = [_under(boxes[key], kinds[graph.item(key).type]) + strip for key in item.under]
                if item.past:
                    lowest.append(_height(graph, graph.item(item.past), kinds, width) + CLEAR - FIRST_SLOT)
                box = Box(left, max(top + item.above, *lowest, 0), width, _height(graph, item, kinds, width))
                boxes[item.key] = box
                top = box.bottom + GAP + TITLE
            if caption:
                groups.append((caption, _frame([boxes[item.key] for item in items])))
                top += MARGIN
        left += width + graph.gap
    return Layout(boxes, tuple(groups))


def view(boxes: Iterable[Box], window: tuple[int, int] = (1500, 800)) -> tuple[float, list[float]]:
    """Scale and offset at which all nodes are in the middle three quarters of a window.

    ComfyUI finds them itself; older frontends take those of the file.
    """
    boxes = list(boxes)
    left, top = min(box.left for box in boxes) - 10, min(box.top for box in boxes) - TITLE - 10
    width = max(box.left + box.width for box in boxes) + 10 - left
    height = max(box.bottom for box in boxes) + 10 - top
    scale = 0.75 * min(window[0] / width, window[1] / height)
    offset = (window[0] / scale / 2 - left - width / 2, window[1] / scale / 2 - top - height / 2)
    return round(scale, 4), [round(one, 1) for one in offset]


def wire(start: tuple[float, float], end: tuple[float, float], points: int = 65) -> list[tuple[float, float]]:
    """Points of the curve that both renderers draw from an output to an input."""
    (x0, y0), (x1, y1) = start, end
    bend = max(30.0, 0.25 * ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
    curve = []
    for n in range(points):
        t = n / (points - 1)
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        curve.append((a * x0 + b * (x0 + bend) + c * (x1 - bend) + d * x1, (a + b) * y0 + (c + d) * y1))
    return curve


def note_height(text: str, width: int) -> int:
    """So that a note is read without scrolling. Chinese letters are twice as wide as Latin ones."""
    letters = max(20, (width - 24) // 6)
    height = 30
    for line in text.splitlines():
        size = sum(2 if ord(letter) > 0x2E7F else 1 for letter in line)
        height += (34 if line.startswith("#") else 16) * -(-size // letters) + (6 if line.startswith("-") else 0)
        height += 8 if not line else 0
    return height


def _height(graph: Graph, item: Item, kinds: dict[str, Kind], width: int) -> int:
    if item.key == NOTE:
        return note_height(graph.note, width)
    kind = kinds[item.type]
    rows = max(len(kind.sockets), len(kind.outputs))
    widgets = len(kind.widgets) + bool(kind.seed) + len(kind.extra)
    return 20 + SLOT * rows + 24 * widgets + BELOW.get(item.type, 0)


def _under(box: Box, kind: Kind) -> int:
    """The first place under all wires that leave a node to the right."""
    return box.output(len(kind.outputs) - 1)[1] + CLEAR + TITLE


def _frame(boxes: list[Box]) -> Box:
    """Around some nodes of a column."""
    left, top, bottom = boxes[0].left, boxes[0].top, max(box.bottom for box in boxes)
    above = TITLE + CAPTION
    return Box(left - MARGIN, top - above, boxes[0].width + 2 * MARGIN, bottom - top + above + MARGIN)
