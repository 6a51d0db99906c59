"""What a video leaves for the next one, as a file."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.errors import StateError
from ..liveavatar.events import DECODING
from ..liveavatar.utils import format_bytes
from ..liveavatar.video_state import check_state_output, state_bytes
from . import paths
from .convert import video_tail
from .host import NodeProgress, seconds_of
from .schema import CATEGORY, StateSocket, supported
from .words import refused_in_widgets


class SaveState(io.ComfyNode):
    """Writes a state into the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarSaveState",
            display_name="Save State (Live Avatar)",
            category=CATEGORY,
            description="Keeps what the network remembers of a video in a file, so that it can be continued on another "
            "day as if it had never ended. Large: some gigabytes for the 14B model.",
            inputs=[
                StateSocket.Input("state", tooltip="From a Sampler whose keep_state is on."),
                io.String.Input(
                    "filename_prefix",
                    default="state",
                    tooltip=f"Name of the file, which lies in the folder {paths.OWN_CATEGORY} of the output folder.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Where it is, and how large.")],
            **supported(is_output_node=True, search_aliases=["live avatar state", "extend video"]),
        )

    @classmethod
    def execute(cls, state: Any, filename_prefix: str) -> io.NodeOutput:
        """The file; the video is made now where it was not yet."""
        known, source = seconds_of(state) if hasattr(state, "spec") else None, state_of(state)
        if not hasattr(source, "open"):
            raise StateError("There is no state to save.", "Connect a Sampler whose keep_state is on.")
        with refused_in_widgets():
            place = check_state_output(paths.new_state(filename_prefix), _bytes_of(state))
        with NodeProgress.current(DECODING, known) as progress:
            saved = source.open(progress).copied(place)
        size = format_bytes(saved.path.stat().st_size, ".3g")
        return io.NodeOutput(f"{saved.path}: {saved.info.seconds:.2f} s of video, {size}")


class LoadState(io.ComfyNode):
    """A state that was saved."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarLoadState",
            display_name="Load State (Live Avatar)",
            category=CATEGORY,
            description="A state that Save State, a cancelled video whose keep_state was on, or --save-state of the "
            "command line has written: the state input of the Sampler continues its video with another voice. Or a "
            "video, continued approximately from its last frames.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=paths.states(),
                    default=paths.NO_STATE,
                    tooltip=f"Files in the folder {paths.OWN_CATEGORY} of the output folder. none: the video begins "
                    "anew.",
                ),
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="In place of a file: the new video begins with the motion of the last 73 frames of this "
                    "one, which comes close; what the network remembered of it is not in it.",
                ),
            ],
            outputs=[StateSocket.Output(display_name="state", tooltip="For the state input of a Sampler.")],
            **supported(search_aliases=["live avatar state", "extend video", "continue"]),
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Whether the file is here, said before anything runs."""
        return (file is not None and paths.state_fault(file)) or True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str:
        """Changes with the file."""
        return paths.state_fingerprint(file or paths.NO_STATE)

    @classmethod
    def execute(cls, file: str, video: Any = None) -> io.NodeOutput:
        """The state, or the end of a video; whether it fits the model is for the Sampler to say."""
        with refused_in_widgets():
            state = paths.open_state(file)
            if video is None:
                return io.NodeOutput(state)
            if state is not None:
                raise StateError(
                    f"Both the state {file} and a video are given.", f"Set file to {paths.NO_STATE}, or disconnect one."
                )
            return io.NodeOutput(video_tail(video, paths.temporary_folder()))


def _bytes_of(given: Any) -> int:
    """Of what comes over a state socket, in a file."""
    if hasattr(given, "spec"):
        return state_bytes(given.config, given.spec.resolved, given.spec.plan)
    size: int = given.path.stat().st_size
    return size


def state_of(given: Any) -> Any:
    """What comes over a state socket, as the library takes it: of a Sampler what its video leaves; of Load State a
    state, or nothing."""
    with refused_in_widgets():
        return given.left if hasattr(given, "left") else given
