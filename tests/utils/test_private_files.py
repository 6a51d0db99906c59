"""Private files and folders: made where nothing is, believed only where nobody else can have written."""

import os
from pathlib import Path

import pytest

from liveavatar.private_files import (
    create_private,
    is_own_folder,
    is_private_folder,
    make_private_folder,
    open_private,
    replace_private,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="this system has no modes of files")
NOBODY = 65534
as_root = pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give files away")


def test_a_folder_is_closed_to_others(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700 and is_private_folder(tmp_path / "a")
    make_private_folder(tmp_path / "a")
    (tmp_path / "a").chmod(0o755)
    assert is_own_folder(tmp_path / "a") and not is_private_folder(tmp_path / "a")
    with pytest.raises(PermissionError, match="not a private folder"):
        make_private_folder(tmp_path / "a")


def test_what_is_no_folder_is_none(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "file").touch()
    for name in ("link", "file", "none"):
        assert not is_own_folder(tmp_path / name) and not is_private_folder(tmp_path / name)
    with pytest.raises(OSError, match="link"):
        make_private_folder(tmp_path / "link")


@as_root
def test_a_folder_of_another_user_is_not_own(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a")
    os.chown(tmp_path / "a", NOBODY, NOBODY)
    assert not is_own_folder(tmp_path / "a")
    with pytest.raises(PermissionError):
        make_private_folder(tmp_path / "a")


def test_a_new_file_is_made_only_where_nothing_is(tmp_path: Path) -> None:
    victim, link, dangling = tmp_path / "victim", tmp_path / "link", tmp_path / "dangling"
    victim.write_text("mine")
    link.symlink_to(victim)
    dangling.symlink_to(tmp_path / "elsewhere")
    for taken in (victim, link, dangling):
        with pytest.raises(FileExistsError):
            create_private(taken)
    with create_private(tmp_path / "new") as file:
        file.write(b"x")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert victim.read_text() == "mine" and not (tmp_path / "elsewhere").exists()


def test_what_is_replaced_is_never_written_through(tmp_path: Path) -> None:
    victim, page = tmp_path / "victim", tmp_path / "page"
    victim.write_text("mine")
    page.symlink_to(victim)
    page.with_name(f"page.{os.getpid()}.part").symlink_to(victim)
    replace_private(page, "new")
    assert victim.read_text() == "mine"
    assert page.read_text() == "new" and not page.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "victim"]


def test_what_others_can_have_written_is_not_read(tmp_path: Path) -> None:
    page, link, pipe = tmp_path / "page", tmp_path / "link", tmp_path / "pipe"
    page.write_text("x")
    page.chmod(0o644)
    with open_private(page) as file:
        assert file.read() == b"x"
    page.chmod(0o664)
    link.symlink_to(page)
    os.mkfifo(pipe)
    for path in (page, link, pipe, tmp_path, tmp_path / "none"):
        with pytest.raises(OSError):
            open_private(path)


@as_root
def test_a_file_of_another_user_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("x")
    os.chown(tmp_path / "page", NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="written by others"):
        open_private(tmp_path / "page")
