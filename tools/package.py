"""The archive of the pack, as `comfy node pack` makes it, but the same bytes at every call.

python -m tools.package [FILE]    writes dist/NAME-VERSION.zip, or FILE

It holds the files under version control without those that .comfyignore names. Unpacked into a folder of its own in
ComfyUI's custom_nodes, it is the pack.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from liveavatar.utils import format_bytes

PROJECT = Path(__file__).parents[1]
_WHEN = (2000, 1, 1, 0, 0, 0)
"""The time of all files: what is packed does not depend on when."""
_MODE = 0o100644 << 16


def packed_files(project: Path = PROJECT) -> list[str]:
    """Names of the files of the archive, in order.

    Raises:
        RuntimeError: the project is no git checkout, so that nobody knows which files belong to it.
    """
    tracked, left_out = _listed(project), set(_listed(project, "-i", "--exclude-from=.comfyignore"))
    return sorted(name for name in tracked if name not in left_out and (project / name).is_file())


def pack(out: Path, project: Path = PROJECT) -> Path:
    """Write the archive."""
    names = packed_files(project)
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.external_attr = _MODE
            archive.writestr(entry, (project / name).read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return out


def default_name(project: Path = PROJECT) -> str:
    """Name and version of the package, from its pyproject.toml."""
    lines = (project / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    name, version = (
        next(line.split('"')[1] for line in lines if line.startswith(f"{key} = ")) for key in ("name", "version")
    )
    return f"{name}-{version}.zip"


def _listed(project: Path, *options: str) -> list[str]:
    command = ["git", "ls-files", "-z", "-c", *options]
    try:
        listed = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"{project} is no git checkout: which files belong into the archive is not known."
        ) from error
    return [name for name in listed.split("\0") if name]


def main() -> int:
    """Write it and say what it is."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "dist" / default_name()
    try:
        pack(out)
    except RuntimeError as error:
        sys.exit(str(error))
    size = format_bytes(out.stat().st_size, unit="largest")
    print(f"{out}: {len(packed_files())} files, {size}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
