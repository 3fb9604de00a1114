"""Exit codes: every error ends in the documented one, and unexpected ones leave a report that can be sent."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sagittal.cli.exits import Exit, GateMissed, exit_code, explain_error, is_expected, write_bug_report
from sagittal.errors import (
    BudgetError,
    ConfigError,
    DataError,
    GeometryError,
    MaskError,
    MissingPackageError,
    PackageError,
    ReadError,
    ResourceError,
    SagittalError,
    ScopeError,
    ServeError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (BudgetError("x"), 2),
        (ReadError("x"), 3),
        (GeometryError("x"), 3),
        (MaskError("x"), 3),
        (DataError("x"), 3),
        (ScopeError("x"), 3),
        (PackageError("x"), 3),
        (ResourceError("x"), 4),
        (MissingPackageError("x"), 4),
        (MemoryError(), 4),
        (OSError(errno.ENOSPC, "No space left on device"), 4),
        (PermissionError(errno.EACCES, "Permission denied"), 4),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 4),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), 4),
        (GateMissed("auc>=0.9"), 5),
        (KeyboardInterrupt(), 130),
        (ServeError("x"), 1),
        (SagittalError("x"), 1),
        (ValueError("a bug"), 1),
        (RuntimeError("a bug"), 1),
    ],
)
def test_each_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_every_error_of_the_tree_is_mapped_on_purpose() -> None:
    """A new kind of error must be given a code here, not fall into 1 by accident."""
    known = {cls: exit_code(cls("x")) for cls in SagittalError.__subclasses__()}
    assert {cls.__name__ for cls, code in known.items() if code is Exit.FAILED} == {"ServeError"}


def test_a_full_disk_is_told_with_a_way_out() -> None:
    text = explain_error(OSError(errno.ENOSPC, "No space left on device", "/out/model"))
    assert text == "the disk is full at /out/model. Free some space, or write elsewhere with -o."


def test_a_read_only_disk_is_told_with_a_way_out() -> None:
    assert "read-only" in explain_error(OSError(errno.EROFS, "Read-only file system", "/out"))


def test_an_unexpected_error_is_told_in_one_line() -> None:
    assert explain_error(ValueError("first\nsecond")) == "unexpected ValueError: first"


def test_expected_errors_need_no_report() -> None:
    assert is_expected(DataError("x"))
    assert is_expected(OSError(errno.ENOSPC, "full"))
    assert not is_expected(ValueError("x"))
    assert not is_expected(FileNotFoundError(errno.ENOENT, "gone"))


def test_a_bug_report_tells_where_and_not_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "/patients/Doe^Jane/1.dcm"
    try:
        raise KeyError(secret)
    except KeyError as error:
        path = write_bug_report(error, "train")
    assert path is not None
    assert path.parent == tmp_path
    text = path.read_text(encoding="utf-8")
    assert "command 'train'" in text
    assert "builtins.KeyError" in text
    assert "test_a_bug_report_tells_where_and_not_what" in text
    assert "Jane" not in text
    assert str(Path.home()) not in text or Path.home() == Path("/")


def test_a_bug_report_goes_to_the_temporary_folder_where_the_current_one_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    monkeypatch.setattr(Path, "cwd", lambda: gone)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    path = write_bug_report(ValueError("x"), "train")
    assert path is not None
    assert path.parent == tmp_path
