"""Talk live in the graph: a microphone or sounds in, the face in the node, and its recording as a video."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from comfy_api.v0_0_2 import io

from ..liveavatar.errors import Cancelled, RequestError, SpeakerError
from ..liveavatar.events import ENCODING_IMAGE, ENCODING_PROMPT, LOADING_NETWORK, LOADING_VAE, Callback, Event
from ..liveavatar.live.addresses import OutputAddress, parse_address
from ..liveavatar.live.audio_feed import BLOCK_SECONDS
from ..liveavatar.live.block import LivePiece
from ..liveavatar.live.hosted import HostedRoom
from ..liveavatar.live.network import NetworkOutput, OutputStatus
from ..liveavatar.live.recording import TalkRecording
from ..liveavatar.live.session import LiveSession
from ..liveavatar.live.sound_queue import SoundQueue
from ..liveavatar.live.talk import Talk
from ..liveavatar.media.audio import AudioClip
from ..liveavatar.pipeline import LiveAvatarPipeline
from ..liveavatar.request import Request
from ..liveavatar.speakers import OpenedMask, OpenedSpeakers, place_masks
from . import convert, talks
from .host import NodeProgress, executing_node, invite, place_video, server_loop, video_output
from .schema import (
    CATEGORY,
    ModelSocket,
    mask_input,
    prompt_input,
    seed_input,
    size_fault,
    size_input,
    spoken_input,
    steps_input,
    supported,
)
from .words import refused_in_widgets

MICROPHONE, SOUNDS = "microphone", "AUDIO input"
TALKING = "talking"
PHASES = (LOADING_VAE, ENCODING_PROMPT, ENCODING_IMAGE, LOADING_NETWORK, TALKING)
ANSWER_SECONDS = {MICROPHONE: 10.0, SOUNDS: 3.0}
"""How long a page may take to answer."""
_LOOK_SECONDS = 0.1
"""How often Cancel and the end are looked for."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a talk is to be.

    Attributes:
        request, image: of the video.
        source: MICROPHONE or SOUNDS.
        sounds: of each speaker, said first, or all there is to say.
        masks: of several speakers; none: there is one.
        longest: seconds.
        prefix: of the file's name.
        address: where it is sent besides, or None.
    """

    request: Request
    image: np.ndarray
    source: str
    sounds: tuple[tuple[AudioClip, ...], ...]
    masks: tuple[OpenedMask, ...]
    longest: float
    prefix: str
    address: OutputAddress | None = None


class Live(io.ComfyNode):
    """A portrait that talks while it is spoken to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarLive",
            display_name="Live (Live Avatar)",
            category=CATEGORY,
            description="The portrait talks in the node while you speak into this browser's microphone, or while "
            "sounds are played. Stop ends it and gives the recording, so that the graph goes on.",
            is_input_list=True,
            inputs=[
                ModelSocket.Input("model", tooltip="From Load Model."),
                io.Image.Input("image", tooltip="The portrait. Of a batch the first picture is taken."),
                io.Combo.Input(
                    "source",
                    options=[MICROPHONE, SOUNDS],
                    default=MICROPHONE,
                    tooltip="microphone: of this browser, which gives it to pages of localhost and https only. AUDIO "
                    "input: what is connected there, and nothing else; without a browser it is recorded as fast as "
                    "it can be made.",
                ),
                prompt_input(),
                size_input(),
                steps_input(),
                seed_input(),
                io.Float.Input(
                    "longest_minutes",
                    default=10.0,
                    min=0.1,
                    max=600.0,
                    step=0.5,
                    tooltip="It ends by itself after so many minutes, as if Stop were pressed.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="LiveAvatar",
                    tooltip="Name of the temporary file; connect core Save Video to keep it.",
                ),
                spoken_input(
                    "Said first: one sound, a batch or a list of them, one after the other. With source AUDIO input it "
                    "ends after them. Several people in the picture: from Speakers; the panel asks who speaks then.",
                    optional=True,
                ),
                mask_input(),
                io.String.Input(
                    "out_url",
                    default="",
                    optional=True,
                    tooltip="Also sent to this address while it goes on: rtmp://, rtmps://, rtsp://, srt:// or "
                    "whip+https://. Empty: nowhere. ComfyUI writes a graph into the files that it saves: so that the "
                    "stream's key is not in them, write $LIVEAVATAR_OUT_URL, an environment variable of ComfyUI.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The recording, for core Save Video."),
                io.String.Output(display_name="receipt", tooltip="What was really made, as JSON."),
            ],
            **supported(search_aliases=["real time avatar", "microphone", "streaming avatar", "talk live"]),
        )

    @classmethod
    def validate_inputs(cls, size: Sequence[str | None] = (), out_url: Sequence[str | None] = ()) -> bool | str:
        """Whether size and address can be read, said before anything runs."""
        faults = [*map(size_fault, size), *map(address_fault, out_url)]
        return next((fault for fault in faults if fault is not True), True)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        """Never the same: what will be said is not known."""
        return secrets.token_hex(8)

    @classmethod
    def execute(
        cls,
        model: list[Any],
        image: list[Any],
        source: list[str],
        prompt: list[str],
        size: list[str],
        steps: list[int],
        seed: list[int],
        longest_minutes: list[float],
        filename_prefix: list[str],
        audio: Sequence[Any] = (),
        mask: Sequence[Any] = (),
        out_url: Sequence[str] = ("",),
    ) -> io.NodeOutput:
        """The talk, from its first moment to its last. Every input is a list, because `audio` may be one."""
        sounds, masks = _spoken(audio, source[0])
        if source[0] == SOUNDS and not any(sounds):
            raise RequestError(
                "Nothing is connected to the audio input, and the source is AUDIO input.",
                "Connect core Load Audio, or choose the source microphone.",
            )
        wishes = Wishes(
            Request(size=size[0], prompt=prompt[0], steps=steps[0], seed=seed[0]),
            convert.image_array(image[0], mask[0] if mask else None),
            source[0],
            sounds,
            masks,
            60 * longest_minutes[0],
            filename_prefix[0],
            parse_address(out_url[0]) if out_url[0].strip() else None,
        )
        with refused_in_widgets():
            _check(model[0], wishes)
        with NodeProgress.current(PHASES) as progress:
            return talk_live(progress, model[0], wishes)


def _spoken(audio: Sequence[Any], source: str) -> tuple[tuple[tuple[AudioClip, ...], ...], tuple[OpenedMask, ...]]:
    """What each speaker says, and where they are; of one voice no mask. Where others speak later, nobody waits for
    silence to end.

    Raises:
        LiveAvatarError: a sound that cannot be used, or several speakers and other sounds.
    """
    several = next((one for one in audio if isinstance(one, OpenedSpeakers)), None)
    if several is None:
        clips = [
            [one] if isinstance(one, AudioClip) else map(convert.audio_clip, convert.split_audio(one)) for one in audio
        ]
        return (tuple(itertools.chain(*clips)),), ()
    if len(audio) > 1:
        raise SpeakerError(
            "The audio input has several speakers and other sounds.",
            "Connect one node Speakers there, or sounds alone.",
        )
    sounds = ((clip,) if source == SOUNDS or not clip.is_silent else () for clip in several.each)
    return tuple(sounds), several.masks


def _check(model: LiveAvatarPipeline, wishes: Wishes) -> None:
    """Make sure that a talk can be held, before a page is asked and anything is loaded.

    Raises:
        LiveAvatarError: it cannot.
    """
    size = wishes.image.shape[1], wishes.image.shape[0]
    resolved, _ = model.plan_open(wishes.request, size, len(wishes.masks) or 1)
    if wishes.masks:
        place_masks(wishes.masks, size, resolved.width, resolved.height, wishes.request.fit)


def address_fault(url: str | None) -> bool | str:
    """Whether an address can be read; None: it comes from another node."""
    if url is None or not url.strip():
        return True
    try:
        parse_address(url)
    except RequestError as error:
        return f"out_url: {error}"
    return True


def talk_live(progress: NodeProgress, model: LiveAvatarPipeline, wishes: Wishes) -> io.NodeOutput:
    """Invite the page, load, talk until it ends, and hand out the recording.

    Raises:
        RequestError: the microphone is asked for and no page answers, or there is nothing to hand out.
        Cancelled: by ComfyUI's Cancel; nothing is kept.
    """
    node, prompt = executing_node()
    details = {"source": wishes.source, "longest_s": wishes.longest}
    room = HostedRoom(model.components.name, server_loop(), details, needs_page=wishes.source == MICROPHONE)
    room.speaker_count = len(wishes.masks) or 1
    with talks.opened(room, prompt, node):
        watched = _wait_for_page(progress, room, invite(room, node, prompt, details), wishes.source)
        loading = _only_loading(progress)
        is_seen = watched or wishes.address is not None
        asked = model, wishes.image, wishes.request
        with LiveSession(*asked, real_time=is_seen, callback=loading, speakers=wishes.masks) as session:
            e = session.resolved
            out = place_video(progress, wishes.prefix, e.width, e.height)
            try:
                with (
                    TalkRecording(out, e.width, e.height, dataclasses.asdict(e)) as recording,
                    _network(wishes.address, e.width, e.height) as network,
                ):
                    _talk(progress, room, session, recording, network, wishes)
            except Cancelled:
                out.unlink(missing_ok=True)
                raise
            progress.details = {"file": progress.file, "seconds": recording.seconds}
            return video_output(progress, _receipt(session, recording, network, model, out))


@contextlib.contextmanager
def _network(address: OutputAddress | None, width: int, height: int) -> Iterator[NetworkOutput | None]:
    """What sends to an address inside."""
    if address is None:
        yield None
        return
    network = NetworkOutput(address, width, height, _say_lost)
    try:
        yield network
    finally:
        network.close()


def _say_lost(status: OutputStatus) -> None:
    if status.state == "lost":
        _log.warning("Live Avatar: %s", status.what)


def _only_loading(progress: NodeProgress) -> Callback:
    """Leaves out what is told of single tasks later, in the session's thread."""

    def callback(event: Event) -> None:
        if event.phase in PHASES:
            progress(event)

    return callback


def _wait_for_page(progress: NodeProgress, room: HostedRoom, invited: bool, source: str) -> bool:
    """Whether a page has joined; what needs none goes on without it.

    Raises:
        RequestError: none has, and the microphone is one of a page.
    """
    until = time.monotonic() + ANSWER_SECONDS[source]
    while invited and time.monotonic() < until:
        if room.answered.wait(_LOOK_SECONDS):
            return True
        progress.check()
    if source == SOUNDS:
        return False
    if not invited:
        raise RequestError(
            "This graph was queued by a program, and the microphone is that of a browser.",
            f"Queue it in ComfyUI's own page, or choose the source {SOUNDS}, which needs no page.",
        )
    raise RequestError(
        f"The page that queued this graph did not answer for {ANSWER_SECONDS[source]:g} s: the microphone needs this "
        "pack's script in ComfyUI's own page.",
        f"Reload the page and queue the graph there, or choose the source {SOUNDS}, which needs no page.",
    )


def _talk(
    progress: NodeProgress,
    room: HostedRoom,
    session: LiveSession,
    recording: TalkRecording,
    network: NetworkOutput | None,
    wishes: Wishes,
) -> None:
    """Until everything is said, the page stops it, the time is over, or the user cancels."""
    most = math.ceil(wishes.longest / BLOCK_SECONDS)
    sounds = SoundQueue(*wishes.sounds, then_end=wishes.source == SOUNDS)
    if room.stopped.is_set():
        raise RequestError("It was stopped before it began, so there is no recording.", "Queue the graph again.")

    def write(piece: LivePiece) -> None:
        if network is not None:
            network.put(piece)
        recording.write(piece)

    room.begin(lambda on_end: Talk(session, on_end, write, sounds, most), network)
    told = -1
    try:
        while not room.over.wait(_LOOK_SECONDS):
            progress.check()
            if (block := session.stats.block) != told:
                progress(Event(TALKING, block, most))
                told = block
    finally:
        room.close()
    if room.error is not None:
        raise room.error
    if not recording.seconds:
        raise RequestError("It was stopped before the first picture, so there is no recording.", "Queue it again.")


def _receipt(
    session: LiveSession,
    recording: TalkRecording,
    network: NetworkOutput | None,
    model: LiveAvatarPipeline,
    out: Path,
) -> str:
    """What was really made, as JSON."""
    e, stats = session.resolved, session.stats
    told = {
        "model": model.components.name,
        "video": str(out),
        "width": e.width,
        "height": e.height,
        "steps": e.steps,
        "seed": e.seed,
        "seconds": recording.seconds,
        "speakers": [dataclasses.asdict(speaker) for speaker in session.speaker_reports],
        "late_blocks": stats.late_blocks,
        "changes": [list(change) for change in stats.changes],
        "sent": None if network is None else dataclasses.asdict(network.status),
        "notes": [*e.notes, *session.plan.notes, *filter(None, [recording.note])],
    }
    return json.dumps(told, ensure_ascii=False, indent=1)
