"""A photograph that talks: lower lip and chin move down as far as is asked, and the gap between the lips is dark."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_DARK = np.array([45, 18, 18], np.float32)


@dataclasses.dataclass(frozen=True)
class Mouth:
    """Where a mouth is in a picture, in pixels: its middle, half its width, and from there to the chin."""

    x: float
    y: float
    half_width: float
    to_chin: float


def find_mouth(picture: np.ndarray) -> Mouth:
    """By dlib's landmarks; needs the extra."""
    import dlib
    from face_recognition_models import pose_predictor_model_location

    detect: Any = dlib.get_frontal_face_detector()
    boxes = detect(picture, 1)
    shape = dlib.shape_predictor(pose_predictor_model_location())(picture, max(boxes, key=lambda b: b.width()))
    points = np.array([(p.x, p.y) for p in shape.parts()], float)
    left, right = points[48], points[54]
    middle = points[[61, 62, 63, 65, 66, 67]].mean(axis=0)
    return Mouth(middle[0], middle[1], (right[0] - left[0]) / 2, points[8][1] - middle[1])


def talking(picture: np.ndarray, mouth: Mouth, openings: np.ndarray, widest: float = 0.6) -> np.ndarray:
    """The picture with the mouth open so far, for each of openings 0..1: uint8 [n, H, W, 3].

    Args:
        widest: gap between the lips at 1, in halves of the mouth's width.
    """
    low, high = int(mouth.y), min(int(mouth.y + 2 * mouth.to_chin) + 1, len(picture))
    left, right = max(0, int(mouth.x - 2.5 * mouth.half_width)), int(mouth.x + 2.5 * mouth.half_width)
    rows, columns = np.mgrid[low:high, left : min(right, picture.shape[1])]
    bow = np.clip(1 - ((columns - mouth.x) / mouth.half_width) ** 2, 0, 1)
    jaw = np.clip(1.5 - np.abs(columns - mouth.x) / (1.6 * mouth.half_width), 0, 1)
    below = rows - mouth.y
    fades = np.clip(2 - below / mouth.to_chin, 0, 1)
    frames = np.repeat(picture[None], len(openings), 0)
    for frame, opening in zip(frames, openings, strict=True):
        gap = opening * widest * mouth.half_width
        moved = gap * np.where(below < gap * bow, bow, np.maximum(bow, jaw))
        source = np.clip((rows - moved * fades).round().astype(int), low, None)
        inside = (np.clip(np.minimum(below, gap * bow - below) + 0.5, 0, 1) * (gap * bow > 0.5))[..., None]
        face = picture[source, columns] * (1 - inside) + _DARK * inside
        frame[low:high, columns[0]] = face.round().astype(np.uint8)
    return frames
