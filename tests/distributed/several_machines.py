"""Makes videos on a cluster of three simulated machines and says on standard output, as JSON, what happened.

A process of its own, because the tests share one that holds Ray for this machine alone.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

TOKEN = secrets.token_hex(32)
STEPS = (("1x2", "cpu", "studio2/cpu"), ("2x1", "studio2/cpu", "cpu"), ("1x3", "cpu", "studio2/cpu", "studio3/cpu"))


def start() -> "tuple[Cluster, Any]":
    """The machines, and the one that will be lost; beside the head, the service that proves that it is the head."""
    from ray.cluster_utils import Cluster

    from liveavatar.distributed.cluster_token import HeadProof

    cluster = Cluster(initialize_head=True, head_node_args={"node_name": "studio1", "include_dashboard": False})
    cluster.add_node(node_name="studio2", num_gpus=2)
    HeadProof(TOKEN, int(cluster.address.rpartition(":")[2]))
    return cluster, cluster.add_node(node_name="studio3")


def backend(address: str, *devices: str, token: str | None = TOKEN) -> Any:
    from liveavatar.distributed import RayBackend
    from liveavatar.placement import Placement

    return RayBackend(Placement(devices, threads=1), address, token=token)


def refusal(made: Callable[[], Any]) -> dict[str, Any]:
    """What was refused."""
    from liveavatar.errors import LiveAvatarError

    try:
        made()
    except LiveAvatarError as error:
        return {"kind": type(error).__name__, "said": str(error)}
    return {"kind": "none", "said": ""}


def refusals(address: str) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
        mute = refusal(lambda: backend(closed))
    return {
        "no machine": refusal(lambda: backend(address, "studio9/cpu")),
        "no device": refusal(lambda: backend(address, "studio2/cuda:2")),
        "several": refusal(lambda: backend(address, f"{socket.gethostname()}/cpu")),
        "mute": mute,
        "unreachable": refusal(lambda: backend(closed)),
        "wrong token": refusal(lambda: backend(address, token="0" * 32)),
        "no token": refusal(lambda: backend(address, token=None)),
    }


def nodes(pids: tuple[int, ...]) -> list[str]:
    """Names of the simulated machines where processes really are."""
    import psutil
    import ray

    names = {f"--node_id={node['NodeID']}": node["NodeName"] for node in ray.nodes()}
    raylets = [set(psutil.Process(pid).parent().cmdline()) for pid in pids]
    return [name for raylet in raylets for flag, name in names.items() if flag in raylet]


def equal_videos(backend: Any, video: Any) -> Iterator[dict[str, Any]]:
    for stages, *devices in STEPS:
        equal = video.is_made_by(backend, stages, devices=tuple(devices))
        yield {"equal": equal, "nodes": nodes(backend.worker_pids), "held": sorted(backend.bytes_by_device())}


def sharing(backend: Any, video: Any) -> dict[str, Any]:
    """Two workers of another machine with the same layers in its memory, and what they have there."""
    from torch import cat, equal

    from liveavatar.planner import make_plan
    from liveavatar.storage import StorageConfig

    given = {
        "model": video.components.name,
        "storage": StorageConfig(offload_layers=2),
        "snapshot_blocks": 0,
        "processes": True,
    }
    effective, config, devices = video.job.resolved, video.components.config, ("studio2/cpu",) * 2
    plan = make_plan(effective, config, stages="2x1", devices=devices, **given)
    made = cat(list(backend.engine(video.components, plan).run(video.job)), 1)
    maps = [Path(f"/proc/{pid}/maps").read_text().splitlines() for pid in backend.worker_pids]
    copies = [{line.split()[-2] for line in lines if "/memfd:liveavatar-" in line} for lines in maps]
    shared = backend.status().workers[0].shared
    return {
        "equal": equal(made, video.expected),
        "nodes": nodes(backend.worker_pids),
        "one copy": copies[0] == copies[1] and len(copies[0]) == 1,
        "counted once": sum(w.weights for w in backend.status().workers) - shared
        == backend.bytes_by_device()["studio2/cpu"],
    }


def coding(backend: Any) -> dict[str, Any]:
    """Where encoders work, and whether they make the same numbers there."""
    from torch import equal

    from liveavatar.codec import ExecConfig, LocalEncoders
    from liveavatar.components import open_components

    components = open_components("untrained")
    there = backend.codec(components, ExecConfig("studio2/cpu", "float32", 1))
    here = LocalEncoders(components, ExecConfig("cpu", "float32", 1))
    read, expected = (codec.encode_prompts(["a calm man"])[0] for codec in (there, here))
    return {"equal": equal(read, expected), "nodes": nodes((backend.codec_pid,))}


def lose(cluster: "Cluster", node: Any, backend: Any, video: Any) -> dict[str, Any]:
    """What is said when a machine dies in the middle of a video."""
    devices = ("cpu", "studio3/cpu")

    def end() -> None:
        cluster.remove_node(node, allow_graceful=False)

    def hear(report: Any) -> None:
        if report.done == 20:
            threading.Thread(target=end).start()
        time.sleep(0.1)

    said = refusal(lambda: video.latents(backend, "1x2", hear, devices=devices))
    said["next"] = video.is_made_by(backend, "1x2", devices=("cpu", "studio2/cpu"))
    said["gone"] = refusal(lambda: video.latents(backend, "1x2", devices=devices))["said"]
    return said


def after_release(address: str, backend: Any) -> dict[str, Any]:
    import psutil
    import ray

    from liveavatar.distributed import cluster as own

    workers = [psutil.Process(pid) for pid in (*backend.worker_pids, backend.codec_pid)]
    nodes = {psutil.Process(pid).ppid() for pid in backend.worker_pids}
    folders = [f"la-{pid}-*" for pid in (os.getpid(), *backend.worker_pids, *nodes)]
    backend.release()
    _, alive = psutil.wait_procs(workers, timeout=10)
    left = [str(found) for name in folders for found in own.short_folder().glob(name)]
    known = ray.is_initialized()
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    names = sorted(node["NodeName"] for node in ray.nodes() if node["Alive"])
    ray.shutdown()
    return {"workers": len(workers), "alive": len(alive), "left": left, "connected": known, "nodes": names}


def main() -> None:
    cluster, third = start()
    try:
        said: dict[str, Any] = {"refusals": refusals(cluster.address)}
        from distributed.videos import Video

        video, here = Video(6), backend(cluster.address, "cpu", "studio2/cpu")
        said["videos"] = list(equal_videos(here, video))
        said["sharing"] = sharing(here, video)
        said["codec"] = coding(here)
        said["lost"] = lose(cluster, third, here, video)
        said["released"] = after_release(cluster.address, here)
        print(json.dumps(said), flush=True)
    finally:
        import ray

        ray.shutdown()
        for node in reversed(cluster.list_all_nodes()):
            cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    # Before Ray is imported: the machines share this token, and none of them shares the user's.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    main()
