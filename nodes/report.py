"""A plan as words, as numbers for the browser, and as a small picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..liveavatar.cli.speakers import speaker_lines
from ..liveavatar.cli.tables import note_lines, plan_lines, resolved_lines
from ..liveavatar.errors import LiveAvatarError
from ..liveavatar.media.audio import AudioClip
from ..liveavatar.pipeline import LiveAvatarPipeline
from ..liveavatar.planner import Hardware, Plan
from ..liveavatar.request import Request, ResolvedRequest, image_size_for
from ..liveavatar.speakers import OpenedSpeakers, SpeakerReport, spoken_notes
from ..liveavatar.utils import format_bytes
from . import convert
from .host import device_memory
from .words import in_widgets

PARTS = {
    "weights": "#4e79a7",
    "KV cache": "#f28e2b",
    "sink": "#59a14f",
    "text": "#b07aa1",
    "workspace": "#9c9c9c",
    "conditions": "#76b7b2",
    "slots": "#edc948",
    "VAE": "#e15759",
    "audio encoder": "#ff9da7",
    "contexts": "#bab0ac",
}
"""What takes memory, and its colour."""
_ASSUMED_SECONDS = 10.0
_ROW, _WIDTH, _LABEL, _MARGIN = 34, 720, 120, 12


@dataclasses.dataclass(frozen=True)
class Report:
    """What would happen.

    Attributes:
        text: in words.
        bars: the memory per device, float [1, H, W, 3] in 0..1.
        data: the same for the browser.
    """

    text: str
    bars: torch.Tensor
    data: dict[str, Any]


def make_report(pipeline: LiveAvatarPipeline, request: Request, image: Any, audio: Any, cards: str = "") -> Report:
    """The report of a request; a refusal is a report, too.

    Args:
        pipeline: whose model is planned for.
        request, image, audio: of the video; image and audio may be None.
        cards: plan for these instead of the backend's devices: "4x24"; see `Hardware.parse`.
    """
    try:
        room: Callable[[str], int | None] = device_memory
        if cards.strip():
            hardware = Hardware.parse(cards)
            pipeline = pipeline.planned_for(hardware)
            room = {device.name: device.total for device in hardware.devices}.get
        pixels = None if image is None else convert.image_array(image)
        spoken = convert.spoken_by(audio, request.seconds) if audio is not None else None
        told = () if image is None else convert.image_notes(image)
        told = told if spoken is None else (*told, *spoken_notes(spoken))
        picture = None if pixels is None else (pixels.shape[1], pixels.shape[0])
        resolved, plan, reports = _planned(pipeline, request, picture, spoken, told)
    except LiveAvatarError as error:
        refused = in_widgets(str(error))
        return Report(f"This cannot be made. {refused}", draw([]), {"refused": refused, "devices": []})
    expected = pipeline.expected_seconds(resolved)
    time = f"about {expected:.1f} s" if expected else "not known before the first video of this size on this machine"
    notes = note_lines([in_widgets(note) for note in (*resolved.notes, *plan.notes)])
    lines = [*resolved_lines(resolved), *speaker_lines(reports), *plan_lines(plan), f"time    {time}", *notes]
    devices = devices_of(plan, room)
    return Report("\n".join(lines), draw(devices), {"refused": None, "devices": devices})


def _planned(
    pipeline: LiveAvatarPipeline,
    request: Request,
    picture: tuple[int, int] | None,
    spoken: AudioClip | OpenedSpeakers | None,
    notes: Sequence[str],
) -> tuple[ResolvedRequest, Plan, tuple[SpeakerReport, ...]]:
    """What would be made of a voice or of several speakers, and where in the picture these are.

    Args:
        picture: its width and height. Masks lie over it; without one, they are not looked at.
    """
    several = spoken if isinstance(spoken, OpenedSpeakers) else None
    audio = spoken.audio if isinstance(spoken, OpenedSpeakers) else spoken
    seconds = request.seconds or _ASSUMED_SECONDS
    length = (len(audio.samples), audio.rate) if audio is not None else (round(seconds * 16_000), 16_000)
    count = 1 if several is None else len(several)
    size = picture or image_size_for(request.size)
    resolved, plan = pipeline.plan(request, size, *length, notes, speaker_count=count)
    if several is None:
        return resolved, plan, ()
    several.check_lengths(request)
    if picture is None:
        return resolved, plan, ()
    placed = several.placed(picture, resolved.width, resolved.height, request.fit)
    return dataclasses.replace(resolved, notes=(*resolved.notes, *placed.masks.notes)), plan, placed.reports


def devices_of(plan: Plan, room: Callable[[str], int | None] = device_memory) -> list[dict[str, Any]]:
    """Per device: its parts in bytes, their sum, and what it has."""
    rows = []
    for device, sizes in plan.terms_by_device.items():
        parts = [{"name": name, "bytes": size} for name, size in sizes.items() if size]
        rows.append({"name": device, "parts": parts, "total": sum(sizes.values()), "capacity": room(device)})
    return rows


def draw(devices: list[dict[str, Any]]) -> torch.Tensor:
    """One bar per device, float [1, H, W, 3] in 0..1."""
    from PIL import Image, ImageDraw

    height = 2 * _MARGIN + _ROW * (len(devices) + 1)
    image_size = Image.new("RGB", (_WIDTH, height), "#202020")
    pen = ImageDraw.Draw(image_size)
    most = max([1, *(max(d["total"], d["capacity"] or 0) for d in devices)])
    scale = (_WIDTH - _LABEL - 120) / most
    for row, device in enumerate(devices):
        y, x = _MARGIN + row * _ROW, float(_LABEL)
        pen.text((_MARGIN, y + 8), device["name"], fill="white")
        for part in device["parts"]:
            end = x + part["bytes"] * scale
            pen.rectangle((x, y + 4, max(x, end - 1), y + _ROW - 8), fill=PARTS[part["name"]])
            x = end
        if device["capacity"]:
            edge = _LABEL + device["capacity"] * scale
            pen.line((edge, y, edge, y + _ROW - 4), fill="white", width=2)
        pen.text((x + 8, y + 8), format_bytes(device["total"], ".2f"), fill="white")
    x = float(_LABEL)
    for name, colour in PARTS.items():
        pen.rectangle((x, height - _ROW + 6, x + 10, height - _ROW + 16), fill=colour)
        pen.text((x + 14, height - _ROW + 4), name, fill="white")
        x += 85
    return torch.from_numpy(np.asarray(image_size).astype(np.float32) / 255)[None]
