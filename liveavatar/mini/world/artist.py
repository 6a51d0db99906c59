"""The renderer: what stays is drawn once per person, then a frame is a moved head with a mouth painted on."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ...errors import SizeError
from . import body, face, hair, mouth
from .appearance import Appearance
from .canvas import SUPERSAMPLING, Canvas, View
from .eyes import draw_eyes
from .face import EYE_Y, MIDDLE, Geometry
from .identity import Identity
from .pose import Pose

LAYER = 2
"""Samples per pixel of layers that move: sampled bilinearly they give smooth edges at any shift."""
LIDS = 4
"""Steps in which eyes close."""
PIVOT_Y = 404.0
"""Drawing unit about which the head tilts: the neck."""
MARGIN = 6
"""128ths of the shorter side that a head may move beyond where it rests."""
_SOFT = ImageFilter.BoxBlur(0.5)
Box = tuple[int, int, int, int]


class Artist:
    """Draws one person in one appearance at one size.

    Args:
        identity: who; appearance: wall and mood, the person's own where None.
        height, width: pixels, multiples of 64.

    Raises:
        SizeError: other sizes.
    """

    def __init__(self, identity: Identity, appearance: Appearance | None = None, height: int = 128, width: int = 128):
        if min(height, width) < 64 or height % 64 or width % 64:
            raise SizeError(f"The world cannot be drawn at {width}x{height}.", "Use multiples of 64, such as 128x128.")
        self.view, self.identity = View(height, width), identity
        self.appearance = appearance or Appearance.own(identity)
        self._where = Geometry.of(identity)
        self._still, self._behind, self._front = self._backdrop()
        self._draw_head()

    def frame(self, pose: Pose) -> np.ndarray:
        """One picture: uint8 [height, width, 3]."""
        picture = self._still.copy()
        if self._behind is not None and self._front is not None:
            self._behind.over(picture, self._behind.image, self.view, pose)
            self._front.over(picture, self._front.image, self.view, None)
        self._head.over(picture, self._posed(pose), self.view, pose)
        return picture

    def clip(self, poses: Iterable[Pose]) -> np.ndarray:
        """Pictures: uint8 [n, height, width, 3]."""
        return np.stack([self.frame(pose) for pose in poses])

    def _backdrop(self) -> tuple[np.ndarray, Sprite | None, Sprite | None]:
        """Wall and body in one where no hair moves between them, else the wall, the hair and the body."""
        wall = Canvas(self.view, self.appearance.background, opaque=True)
        body.draw_wall(wall, self.appearance.background)
        torso = Canvas(self.view, self.identity.clothes)
        body.draw_body(torso, self.identity)
        if self.identity.hair_style not in hair.BEHIND:
            wall.image.paste(torso.image, mask=torso.cover)
            return np.asarray(wall.image.reduce(SUPERSAMPLING)), None, None
        strands = Canvas(self.view, self.identity.hair)
        hair.draw_behind(strands, self.identity, self._where)
        still = np.asarray(wall.image.reduce(SUPERSAMPLING))
        return still, Sprite.of(strands.layer(), self.view), Sprite.of(torso.layer(), self.view)

    def _draw_head(self) -> None:
        who, where, mood = self.identity, self._where, self.appearance.mood
        canvas = Canvas(self.view, who.skin)
        face.draw_ears(canvas, who, where)
        face.draw_face(canvas, who, where, mood)
        hair.draw_front(canvas, who, where)
        face.draw_brows(canvas, who, where, mood)
        self._bare = canvas.image.copy(), canvas.cover.copy()
        self._eye_box = self._box(where.eye_x - 62, EYE_Y - 44, 2 * MIDDLE - where.eye_x + 62, EYE_Y + 46)
        self._eyes(canvas, 0)
        self._lids: dict[int, Image.Image] = {}
        self._head = Sprite.of(canvas.layer(), self.view)
        y = where.mouth_y
        box = self._box(MIDDLE - mouth.REACH_SIDE, y - mouth.REACH_UP, MIDDLE + mouth.REACH_SIDE, y + mouth.REACH_DOWN)
        self._skin = canvas.image.crop(box)
        self._mouth = mouth.MouthPainter(who, where, mood, self.view, SUPERSAMPLING, (box[0], box[1]))
        self._mouth_at, self._eyes_at = self._layer_corner(box), self._layer_corner(self._eye_box)
        self._solid = self._head.image.getchannel(3).point([0] * 255 + [255])

    def _eyes(self, canvas: Canvas, step: int) -> None:
        draw_eyes(canvas, self.identity, self._where, self.appearance.mood, step / (LIDS - 1))
        face.draw_glasses(canvas, self.identity, self._where)

    def _lid(self, step: int) -> Image.Image:
        """The eyes closed by so many steps, drawn at their first blink."""
        if step not in self._lids:
            canvas = Canvas(self.view, self.identity.skin)
            canvas.image, canvas.cover = (layer.copy() for layer in self._bare)
            self._eyes(canvas, step)
            self._lids[step] = self._reduced(canvas.image.crop(self._eye_box))
        return self._lids[step]

    def _box(self, left: float, top: float, right: float, bottom: float) -> Box:
        """Drawing units to canvas samples, widened to whole picture pixels."""
        corners = self.view.to_pixels([(left, top), (right, bottom)])
        a, b = np.floor(corners[0]).astype(int), np.ceil(corners[1]).astype(int)
        return tuple(int(v) * SUPERSAMPLING for v in (*a, *b))  # type: ignore[return-value]

    def _layer_corner(self, box: Box) -> tuple[int, int]:
        """Where the reduced, trimmed crop of a box lies in the head's layer."""
        to_layer = SUPERSAMPLING // LAYER
        return box[0] // to_layer + 1 - self._head.left * LAYER, box[1] // to_layer + 1 - self._head.top * LAYER

    @staticmethod
    def _reduced(crop: Image.Image) -> Image.Image:
        """From canvas to layer samples; one is trimmed on each side, where softening has no neighbours."""
        small = crop.reduce(SUPERSAMPLING // LAYER).filter(_SOFT)
        return small.crop((1, 1, small.width - 1, small.height - 1)).convert("RGBX")

    def _posed(self, pose: Pose) -> Image.Image:
        """The head at rest with this mouth and these lids."""
        image = self._head.image.copy()
        step = round(min(max(pose.blink, 0.0), 1.0) * (LIDS - 1))
        if step:
            self._paste(image, self._lid(step), self._eyes_at)
        patch = self._skin.copy()
        opening, width = min(max(pose.opening, 0.0), 1.0), min(max(pose.width, -1.0), 1.0)
        self._mouth.paint(ImageDraw.Draw(patch), opening, width)
        self._paste(image, self._reduced(patch), self._mouth_at)
        return image

    def _paste(self, image: Image.Image, patch: Image.Image, at: tuple[int, int]) -> None:
        """Change samples that the head covers whole; beyond its outline a patch means nothing."""
        box = (*at, at[0] + patch.width, at[1] + patch.height)
        image.paste(patch, at, self._solid.crop(box))


class Sprite:
    """A layer that can be moved and laid over a picture: premultiplied colours and cover, LAYER samples per pixel."""

    def __init__(self, image: Image.Image, left: int, top: int):
        self.image, self.left, self.top = image, left, top

    @classmethod
    def of(cls, layer: Image.Image, view: View) -> Sprite:
        """From an RGBA drawing at canvas size, cut to what is painted."""
        margin = -(-MARGIN * min(view.height, view.width) // 128)
        small = layer.reduce(SUPERSAMPLING // LAYER).convert("RGBa")
        premultiplied = Image.frombuffer("RGBX", small.size, small.tobytes(), "raw", "RGBX", 0, 1).filter(_SOFT)
        box = premultiplied.getchannel(3).getbbox() or (0, 0, 1, 1)
        left, top = max(0, box[0] // LAYER - margin), max(0, box[1] // LAYER - margin)
        right = min(view.width, -(-box[2] // LAYER) + margin)
        bottom = min(view.height, -(-box[3] // LAYER) + margin)
        return cls(premultiplied.crop((left * LAYER, top * LAYER, right * LAYER, bottom * LAYER)), left, top)

    def over(self, picture: np.ndarray, image: Image.Image, view: View, pose: Pose | None) -> None:
        """Lay `image`, this sprite or a changed copy, over a picture in place, moved by a pose."""
        width, height = image.width // LAYER, image.height // LAYER
        if pose is None:
            moved = image.reduce(LAYER)
        else:
            moved = image.transform((width, height), Image.Transform.AFFINE, self._affine(view, pose), _BILINEAR)
        pixels = np.asarray(moved).astype(np.uint16)
        region = picture[self.top : self.top + height, self.left : self.left + width]
        under = region * (255 - pixels[..., 3:])
        region[...] = np.minimum(pixels[..., :3] + (under + 127) // 255, 255)

    def _affine(self, view: View, pose: Pose) -> tuple[float, ...]:
        """Pillow's map from pixels of the moved sprite to samples of the resting one."""
        unit = min(view.height, view.width) / 128
        px, py = view.to_pixels([(MIDDLE, PIVOT_Y)])[0]
        angle = np.deg2rad(pose.tilt)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        x, y = self.left - px - pose.dx * unit, self.top - py - pose.dy * unit
        back_x, back_y = cos * x + sin * y + px - self.left, -sin * x + cos * y + py - self.top
        return LAYER * cos, LAYER * sin, LAYER * back_x, -LAYER * sin, LAYER * cos, LAYER * back_y


_BILINEAR = Image.Resampling.BILINEAR


@functools.lru_cache(maxsize=16)
def artist(identity: Identity, appearance: Appearance, height: int, width: int) -> Artist:
    """An `Artist`, kept for the next frame."""
    return Artist(identity, appearance, height, width)


def render(
    identity: Identity,
    pose: Pose | None = None,
    size: int | tuple[int, int] = 128,
    appearance: Appearance | None = None,
) -> np.ndarray:
    """One frame of a person: uint8 [H, W, 3].

    Args:
        pose: at rest where None.
        size: pixels, one number or (height, width), multiples of 64; the portrait stands in the middle.
        appearance: wall and mood, the person's own where None.

    Raises:
        SizeError: not multiples of 64.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return artist(identity, appearance or Appearance.own(identity), height, width).frame(pose or Pose())
