"""Let torchvision and torchaudio import in a virtual environment whose torch is a CPU build.

    python tests/comfy/patch_torch.py        with the Python of that environment

ComfyUI imports both at its start. Their wheels are often built for CUDA only; on a CPU torch, torchaudio's extension
does not load, and torchvision declares meta kernels for operators that its extension failed to bring. This removes
the first extension (torchaudio then goes its own way without) and declares the second's two operators. Nothing else
changes; resizing, resampling and what ComfyUI needs of them is Python on torch. Running it twice changes nothing more.
For developers' environments only: the pack neither needs nor does this.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

MARK = "# operators declared for a CPU torch"
DECLARED = f"""

{MARK}
if not _has_ops():
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def folder_of(package: str) -> Path | None:
    """Where a package is installed, without importing it; None where it is not."""
    found = importlib.util.find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def imports(package: str) -> bool:
    """Whether a fresh interpreter can import it."""
    return subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True).returncode == 0


def main() -> int:
    """Patch what is broken, and say what was done."""
    audio, vision = folder_of("torchaudio"), folder_of("torchvision")
    if audio and not imports("torchaudio"):
        shutil.rmtree(audio / "lib", ignore_errors=True)
        print("torchaudio: its extension is removed")
    if vision and not imports("torchvision"):
        extension = vision / "extension.py"
        text = extension.read_text(encoding="utf-8")
        if MARK not in text:
            extension.write_text(text + DECLARED, encoding="utf-8")
        print("torchvision: two operators are declared")
    broken = [name for name in ("torchaudio", "torchvision") if not imports(name)]
    print("still broken: " + ", ".join(broken) if broken else "torchaudio and torchvision import")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
