"""A lack of open files is named as what it is."""

import errno
import os
import socket

import pytest

from liveavatar.distributed.cluster import is_listening, start_error
from liveavatar.distributed.cluster_token import new_token, proved_head
from liveavatar.distributed.wire import fault_from
from liveavatar.errors import PlanError
from liveavatar.utils import is_out_of_files

FULL = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def caused(error: BaseException) -> BaseException:
    outer = RuntimeError("the store cannot be opened")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [FULL, OSError(errno.ENFILE, os.strerror(errno.ENFILE)), RuntimeError("gloo: Too many open files"), caused(FULL)],
)
def test_it_is_found_in_errors_of_all_kinds(error: BaseException) -> None:
    assert is_out_of_files(error)
    fault = fault_from(error)
    assert fault.kind == "failed" and fault.what.startswith("too many open files") and "ulimit -n" in fault.nearest


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "x"), ValueError("files"), caused(KeyError("x"))])
def test_other_errors_are_not_it(error: BaseException) -> None:
    assert not is_out_of_files(error)
    assert "ulimit" not in fault_from(error).nearest


def test_what_cannot_be_asked_for_want_of_files_is_not_called_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise FULL

    monkeypatch.setattr(socket, "create_connection", full)
    with pytest.raises(PlanError, match=r"may have .* files open.*ulimit -n"):
        is_listening("127.0.0.1", 1)
    with pytest.raises(PlanError, match=r"cannot be asked.*ulimit -n"):
        proved_head("127.0.0.1:1", new_token())


def test_why_ray_does_not_start_is_said() -> None:
    assert "ulimit -n" in str(start_error(FULL))
