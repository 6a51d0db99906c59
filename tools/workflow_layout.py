"""Where the nodes of an example graph stand.

Sizes are those of the classic canvas. Nodes 2.0 draws the same nodes larger, so rows are set apart by the larger
height, and at least `GAP` stays between any two in either. The classic canvas draws no words below 60 %, so that what a
newcomer opens first is narrow: the quickstart is shown at 75 % in a window of 1500 x 800.
"""

from __future__ import annotations

from dataclasses import dataclass

from .workflow_graphs import Graph, Item
from .workflow_kinds import Kind

GAP, BETWEEN = 60, 40
"""Between nodes of a column; between groups."""
MARGIN, CAPTION = 20, 40
"""Between a group's edge and its nodes; the strip with its title."""
TITLE = 30
"""The title bar of a node, which stands above its position."""
WIDTHS = {"LoadImage": 280, "LoadAudio": 280, "LiveAvatarDecode": 340, "SaveVideo": 280}
WIDTH, NOTE_WIDTH = 320, 290
BELOW = {
    "LoadImage": 300,
    "LoadAudio": 60,
    "LiveAvatarSample": 40,
    "LiveAvatarGenerate": 240,
    "LiveAvatarSampler": 130,
    "LiveAvatarDecode": 300,
    "LiveAvatarPlan": 220,
    "LiveAvatarTextEncode": 110,
    "CLIPTextEncode": 110,
    "SaveVideo": 200,
}
"""Room under the widgets: pictures, players, text boxes, progress."""


@dataclass(frozen=True)
class Box:
    """A rectangle of the canvas, without a node's title bar."""

    left: int
    top: int
    width: int
    height: int

    def bounding(self) -> list[int]:
        """As groups are written."""
        return [self.left, self.top, self.width, self.height]


@dataclass(frozen=True)
class Layout:
    """Boxes of all nodes by key, of the note, and of the groups with their titles."""

    boxes: dict[str, Box]
    note: Box
    groups: tuple[tuple[str, Box], ...]


def lay_out(graph: Graph, kinds: dict[str, Kind]) -> Layout:
    """Columns from left to right, all starting at one height."""
    boxes: dict[str, Box] = {}
    groups = []
    left = NOTE_WIDTH + BETWEEN + MARGIN
    for title, column in graph.columns:
        width = max(WIDTHS.get(item.type, WIDTH) for item in column)
        top = 0
        for item in column:
            rows, widgets = _rows(item, kinds[item.type])
            boxes[item.key] = Box(left, top, width, 20 + 20 * rows + 24 * widgets + BELOW.get(item.type, 0))
            top += 40 + 26 * rows + 40 * widgets + BELOW.get(item.type, 0) + TITLE + GAP
        above = TITLE + CAPTION + MARGIN
        groups.append((title, Box(left - MARGIN, -above, width + 2 * MARGIN, top - TITLE - GAP + above + MARGIN)))
        left += width + 2 * MARGIN + BETWEEN
    return Layout(boxes, Box(0, 0, NOTE_WIDTH, _note_height(graph.note)), tuple(groups))


def _rows(item: Item, kind: Kind) -> tuple[int, int]:
    """Rows of sockets and rows of widgets."""
    return max(len(kind.sockets), len(kind.outputs)), len(kind.widgets) + bool(kind.seed) + len(kind.extra)


def _note_height(text: str) -> int:
    """So that a note is read without scrolling: about 44 letters a line."""
    return 80 + sum(14 if not line else 21 * (1 + len(line) // 44) for line in text.splitlines())
