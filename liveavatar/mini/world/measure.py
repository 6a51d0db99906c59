"""Reading pictures back: how far a mouth is open, which mood a face has, which wall is behind it. Pixels only.

A measure knows who is shown (as a person who saw the reference picture does), never how the frame was made.
"""

from __future__ import annotations

import functools

import numpy as np

from .appearance import MOODS, Appearance
from .artist import Artist
from .canvas import View
from .face import EYE_Y, MIDDLE, Geometry
from .identity import Identity
from .mouth import OPEN_UNITS
from .palette import BACKGROUNDS, MOUTH_DARK, RGB
from .pose import Pose

_STEPS = np.linspace(0, 1, 21)
_WIDTHS = np.linspace(-1, 1, 9)
_FINE = 161
"""Openings told apart."""
_AVERAGED = 48
"""Frames that are averaged to tell a mood."""


def opening(frames: np.ndarray, identity: Identity) -> np.ndarray:
    """How far the mouth is open in frames uint8 [n, H, W, 3]: float32 [n], 0 shut, 1 wide open.

    Measures height and area of the mouth's dark inside, within a box that no head movement leaves, and finds the
    opening that has them in a table of this person's own pictures. Sums bear blur and noise.
    """
    seen, at = _table(identity, frames.shape[1], frames.shape[2])
    dark = _darkness(frames, identity)
    distance = np.square(dark[:, None] - seen[None]).sum(axis=-1)
    return at[distance.argmin(axis=1)]


def outside_mouth(identity: Identity, height: int, width: int) -> np.ndarray:
    """bool [H, W]: where neither mouth nor eyes move, for distances between pictures of one person."""
    where, view = Geometry.of(identity), View(height, width)
    rest = np.ones((height, width), bool)
    y = where.mouth_y
    rest[_box(view, MIDDLE - 64, y - 32, MIDDLE + 64, y + 68)] = False
    rest[_box(view, where.eye_x - 62, EYE_Y - 40, 2 * MIDDLE - where.eye_x + 62, EYE_Y + 40)] = False
    return rest


def background_colour(frames: np.ndarray) -> RGB:
    """Colour of the wall in frames uint8 [n, H, W, 3] or one frame: the median of both upper corners."""
    frames = frames[None] if frames.ndim == 3 else frames
    side = max(2, min(frames.shape[1:3]) // 12)
    corners = np.concatenate([frames[:, :side, :side], frames[:, :side, -side:]], 2).reshape(-1, 3)
    r, g, b = (int(v) for v in np.median(corners, axis=0))
    return r, g, b


def background_word(frames: np.ndarray) -> str:
    """The word of BACKGROUNDS that is nearest to the wall in frames."""
    seen = np.array(background_colour(frames), np.float64)
    return min(BACKGROUNDS, key=lambda word: float(np.sum((seen - BACKGROUNDS[word]) ** 2)))


def mood(frames: np.ndarray, identity: Identity) -> str:
    """The word of MOODS whose brows and cheeks this person shows in frames uint8 [n, H, W, 3], all of one mood."""
    return min((distances := mood_distances(frames, identity)), key=lambda word: distances[word])


def mood_distances(frames: np.ndarray, identity: Identity) -> dict[str, float]:
    """Mean squared distance of brows and cheeks to this person's in every mood, at the nearest place of the head."""
    picked = frames[np.linspace(0, len(frames) - 1, min(len(frames), _AVERAGED)).astype(int)]
    average = picked.mean(axis=0, dtype=np.float64)
    mask, templates = _moods(identity, frames.shape[1], frames.shape[2])
    seen = average[mask]
    return {word: float(np.min(np.mean((shown - seen) ** 2, axis=(1, 2)))) for word, shown in templates.items()}


@functools.lru_cache(maxsize=64)
def _table(identity: Identity, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Darkness [k, 2] of this person's mouth over openings and widths, and the openings float32 [k]."""
    artist = Artist(identity, None, height, width)
    poses = [Pose(opening=float(o), width=float(w), dy=1.0) for o in _STEPS for w in _WIDTHS]
    dark = _darkness(artist.clip(poses), identity).reshape(len(_STEPS), len(_WIDTHS), 2)
    fine = np.linspace(0, len(_STEPS) - 1, _FINE)
    low = np.minimum(fine.astype(int), len(_STEPS) - 2)
    share = (fine - low)[:, None, None]
    dark = (1 - share) * dark[low] + share * dark[low + 1]
    at = np.repeat(np.linspace(0, 1, _FINE, dtype=np.float32), len(_WIDTHS))
    return dark.reshape(-1, 2), at


def _darkness(frames: np.ndarray, identity: Identity) -> np.ndarray:
    """The dark inside: height in its deepest columns in pixels, root of its area in pixels; float64 [n, 2]."""
    where, view = Geometry.of(identity), View(frames.shape[1], frames.shape[2])
    y = where.mouth_y
    low = y + (0.84 if identity.beard else 1.2) * OPEN_UNITS
    rows, columns = _box(view, MIDDLE - 46, y - 26, MIDDLE + 46, low)
    box = frames[:, rows, columns].astype(np.float32)
    red, green = box[..., 0], box[..., 1]
    tones = identity.tones
    bright = 0.92 * min(tones.base[0], tones.shade[0], tones.lip_line[0] + 20)
    dark = np.clip((bright - red) / (bright - MOUTH_DARK[0]), 0, 1)
    dark *= np.clip((red - green) / (MOUTH_DARK[0] - MOUTH_DARK[1]), 0, 1)
    sums = np.sort(dark.sum(axis=1, dtype=np.float64), axis=1)
    deepest = max(3, round(20 * view.scale))
    return np.stack([sums[:, -deepest:].mean(axis=1), np.sqrt(sums.sum(axis=1))], axis=1)


@functools.lru_cache(maxsize=32)
def _moods(identity: Identity, height: int, width: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Mask of brows and cheeks, and for every mood their colours [places, pixels, 3] at the places a head rests."""
    where, view = Geometry.of(identity), View(height, width)
    mask = np.zeros((height, width), bool)
    mask[_box(view, where.eye_x - 44, 184, 2 * MIDDLE - where.eye_x + 44, 228)] = True
    for x in (where.across(180), 2 * MIDDLE - where.across(180)):
        mask[_box(view, x - 24, 288, x + 24, 316)] = True
    shown = {}
    for word in MOODS:
        artist = Artist(identity, Appearance(identity.background, word), height, width)
        poses = [Pose(dx=dx, dy=dy) for dx in (-1.0, 0.0, 1.0) for dy in (0.0, 0.7, 1.4, 2.1)]
        shown[word] = artist.clip(poses)[:, mask].astype(np.float64)
    return mask, shown


def _box(view: View, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
    """Drawing units to rows and columns."""
    (x0, y0), (x1, y1) = np.rint(view.to_pixels([(left, top), (right, bottom)])).astype(int).tolist()
    return slice(max(0, y0), y1), slice(max(0, x0), x1)
