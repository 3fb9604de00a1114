"""The command line as a user meets it: help, options and where they come from, streams, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sagittal import __version__, verbs
from sagittal.cli.main import main
from sagittal.errors import BudgetError, ConfigError, DataError, MissingPackageError, ReadError, ResourceError

COMMANDS = (
    "ingest",
    "check",
    "plan",
    "train",
    "evaluate",
    "predict",
    "explain",
    "compare",
    "report",
    "serve",
    "users",
    "audit",
    "backup",
    "restore",
    "viewer",
    "info",
    "doctor",
    "demo",
)

Capture = pytest.CaptureFixture[str]


def spawn(*arguments: str, cwd: Path, **environment: str | None) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own; a variable that is None is taken away."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "sagittal.cli.main", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env={key: value for key, value in env.items() if value is not None},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("SAGITTAL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let the verb ``info`` fail in a given way."""

    def fail(error: BaseException) -> None:
        def info(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(verbs, "info", info)

    return fail


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the verb ``train``, which then ends by a usage error."""
    calls: list[dict[str, Any]] = []

    def train(source: str | None, **options: Any) -> None:
        calls.append({"source": source, **options})
        raise ConfigError("enough")

    monkeypatch.setattr(verbs, "train", train)
    return calls


# Help ------------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_in_the_order_of_the_journey(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert tuple(line.split()[0] for line in lines) == COMMANDS
    assert not [line for line in lines if line.endswith("...")]


@pytest.mark.parametrize("name", [*COMMANDS, "fit", "test"])
def test_each_command_has_help_with_examples(name: str, capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    verb = {"fit": "train", "test": "evaluate"}.get(name, name)
    assert "Examples:" in text
    assert f"sagittal {verb}" in text.split("Examples:")[1]
    for flag in ("--json", "--quiet", "--config"):
        assert flag in text
    # The commands of the service share its own file, which `serve` prints.
    assert ("--print-config" in text) == (name not in ("users", "audit", "backup", "restore"))


def test_what_is_not_there_yet_is_not_listed(capsys: Capture) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert "  export" not in text


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sagittal {__version__}\n"


def test_no_command_shows_help_and_is_a_usage_error(capsys: Capture) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "Usage:" in captured.out + captured.err


def test_a_mistyped_command_is_a_usage_error_with_the_nearest(capsys: Capture) -> None:
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert "trian" in error
    assert "train" in error.replace("trian", "")


def test_a_mistyped_flag_is_a_usage_error_with_the_nearest(capsys: Capture) -> None:
    assert main(["train", "x", "--bugdet", "10m"]) == 2
    assert "--budget" in capsys.readouterr().err


# Exit codes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong option"), 2),
        (BudgetError("too short"), 2),
        (ReadError("cut off"), 3),
        (DataError("one class"), 3),
        (ResourceError("full"), 4),
        (MissingPackageError("captum"), 4),
        (MemoryError(), 4),
        (KeyboardInterrupt("Go on with --resume"), 130),
    ],
)
def test_errors_end_in_their_code_without_a_traceback(
    error: BaseException, code: int, failing: Callable[[BaseException], None], capsys: Capture
) -> None:
    failing(error)
    assert main(["info", "x"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sagittal info: ")
    assert str(error) in captured.err
    assert "Traceback" not in captured.err
    assert not list(Path().glob("sagittal-bug-*"))


def test_an_unexpected_error_leaves_a_report(failing: Callable[[BaseException], None], capsys: Capture) -> None:
    failing(ZeroDivisionError("division by zero"))
    assert main(["info", "x"]) == 1
    error = capsys.readouterr().err
    (path,) = Path().glob("sagittal-bug-*.txt")
    assert path.name in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(failing: Callable[[BaseException], None], capsys: Capture) -> None:
    failing(DataError("one class"))
    assert main(["info", "x", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_library_warning_is_not_told_and_our_own_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def info(*_: Any, **__: Any) -> dict[str, Any]:
        warnings.warn("library chatter", UserWarning, stacklevel=1)
        warnings.warn_explicit("spacing is assumed", UserWarning, verbs.__file__, 1)
        return {}

    monkeypatch.setattr(verbs, "info", info)
    assert main(["info", "x"]) == 0
    error = capsys.readouterr().err
    assert "library chatter" not in error
    assert error == "note: spacing is assumed\n"


# Streams ---------------------------------------------------------------------------------------------------------------


def test_json_is_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    facts = {"cases": 3, "path": Path("a"), "share": float("nan"), "names": ("ä",)}
    monkeypatch.setattr(verbs, "info", lambda *_, **__: facts)
    assert main(["info", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cases": 3, "path": "a", "share": None, "names": ["ä"]}


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "sagittal.cli.main", "train", "x", "--print-config"],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert result.returncode == 0
    assert result.stderr == b""


# Where options come from ---------------------------------------------------------------------------------------------


def test_flags_stand_above_environment_above_file_above_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[dict[str, Any]]
) -> None:
    file = tmp_path / "options.toml"
    file.write_text('source = "data"\nbudget = "1m"\nseed = 1\npreset = "fast"\nbatch = 4\n', encoding="utf-8")
    monkeypatch.setenv("SAGITTAL_SEED", "2")
    monkeypatch.setenv("SAGITTAL_PRESET", "best")
    assert main(["train", "--config", str(file), "--preset", "balanced"]) == 2
    (call,) = trained
    assert call["source"] == "data"  # the file
    assert call["budget"] == "1m"  # the file
    assert call["options"].batch == 4  # the file
    assert call["seed"] == 2  # the environment, above the file
    assert call["options"].preset == "balanced"  # the flag, above both
    assert call["task"] == "auto"  # the default


def test_json_files_and_a_table_for_each_command_are_read(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    file = tmp_path / "options.json"
    file.write_text(
        json.dumps({"seed": 1, "train": {"patient-column": "mrn", "seed": 5}, "evaluate": {"split": "val"}}),
        encoding="utf-8",
    )
    main(["train", "data", "--config", str(file)])
    assert trained[0]["seed"] == 5
    assert trained[0]["options"].read.patient_column == "mrn"


def test_changes_of_the_plan_come_after_the_source(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    file = tmp_path / "options.toml"
    file.write_text('source = "data"\n[plan_fields]\n"network.width" = 32\n"train.batch" = 8\n', encoding="utf-8")
    main(["train", "--config", str(file), "network.width=48", "augment.flip=[0]"])
    assert trained[0]["source"] == "data"
    assert trained[0]["options"].changes == {"network.width": "48", "train.batch": "8", "augment.flip": "[0]"}


def test_a_path_with_an_equals_sign_is_a_source_where_it_exists(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    (tmp_path / "site=a").mkdir()
    main(["train", "site=a", "width=48"])
    assert trained[0]["source"] == "site=a"
    assert trained[0]["options"].changes == {"width": "48"}


def test_two_sources_are_refused(trained: list[dict[str, Any]], capsys: Capture) -> None:
    assert main(["train", "a", "b"]) == 2
    assert "expected one source, found 2: a, b" in capsys.readouterr().err
    assert trained == []


def test_the_data_folder_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, trained: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("SAGITTAL_DATA", os.pathsep.join(["/a", "/b"]))
    main(["train", "medmnist:breastmnist"])
    assert trained[0]["options"].read.search == ("/a", "/b")


def test_fit_is_train(trained: list[dict[str, Any]]) -> None:
    main(["fit", "data"])
    assert trained[0]["source"] == "data"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('bugdet = "1m"', "unknown option 'bugdet'. Did you mean 'budget'"),
        ("budget = ", "is not TOML"),
        ("seed = 'many'", "Invalid value for '--seed'"),
    ],
)
def test_a_wrong_file_of_options_is_a_usage_error(text: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "options.toml"
    file.write_text(text, encoding="utf-8")
    assert main(["train", "data", "--config", str(file)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_file_of_options_is_a_usage_error(capsys: Capture) -> None:
    assert main(["train", "data", "--config", "nowhere.toml"]) == 2
    assert "nowhere.toml: cannot be read" in capsys.readouterr().err


def test_print_config_shows_what_would_be_used_and_can_be_given_back(
    tmp_path: Path, capsys: Capture, trained: list[dict[str, Any]]
) -> None:
    assert main(["train", "data", "--budget", "2h", "--print-config", "width=48"]) == 0
    text = capsys.readouterr().out
    values = json.loads(text)
    assert (values["source"], values["budget"], values["seed"]) == ("data", "2h", 0)
    assert values["plan_fields"] == {"width": "48"}
    assert trained == []
    (tmp_path / "again.json").write_text(text, encoding="utf-8")
    main(["train", "--config", "again.json"])
    assert trained[0]["budget"] == "2h"
    assert trained[0]["options"].changes == {"width": "48"}


def test_a_file_of_options_is_never_rewritten(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    file = tmp_path / "options.toml"
    file.write_text("seed = 1  # mine\n", encoding="utf-8")
    main(["train", "data", "--config", str(file), "--seed", "2"])
    assert file.read_text(encoding="utf-8") == "seed = 1  # mine\n"


# Wrong use, for real ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train"], 2, "no source given"),
        (["train", "data", "--budget", "ten minutes"], 2, "is not a time. Write 90s, 10m"),
        (["train", "data", "--task", "segmnt"], 2, "task: 'segmnt' is not a choice"),
        (["train", "data", "--preset", "fats"], 2, "Did you mean 'fast'"),
        (["train", "--resume"], 2, "--resume needs the folder of the run"),
        (["train", "-o", "nothing", "--resume"], 2, "is not the folder of a run that can go on"),
        (["train", "nowhere"], 3, "'nowhere' does not exist"),
        (["check", "nowhere"], 3, "'nowhere' does not exist"),
        (["ingest", "medmnist:brestmnist"], 2, "Did you mean 'breastmnist'"),
        (["predict", "nowhere", "x.png"], 2, "there is no model at nowhere"),
        (["evaluate", "nowhere", "x"], 2, "there is no model at nowhere"),
        (["evaluate", "nowhere", "x", "--require", "auc"], 2, "expected a measure, a sign and a number"),
        (["report", "nowhere"], 2, "nowhere holds no evidence"),
        (["predict", "m", "x", "-o", "table.xls"], 2, "the ending '.xls' is no table that can be written"),
        (["explain", "m", "x", "-o", "maps", "--method", "gradcan"], 2, "Did you mean 'gradcam'"),
    ],
)
def test_wrong_use_is_told(arguments: list[str], code: int, message: str, capsys: Capture) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_empty_folder_is_bad_input(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["train", "empty"]) == 3
    assert "'empty' is empty: no file lies in it or below it" in capsys.readouterr().err


def test_threads_wait_without_spinning_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


# Odd surroundings ------------------------------------------------------------------------------------------------------


def test_ascii_streams_do_not_end_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "胸片").mkdir()
    result = spawn("check", "胸片", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 3
    assert rb"\u80f8\u7247" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_locale_without_unicode_does_not_end_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "täbelle").mkdir()
    result = spawn("check", "täbelle", cwd=tmp_path, LC_ALL="C", LANG=None, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert result.returncode == 3
    assert b"is empty" in result.stderr
    assert b"Traceback" not in result.stderr


def test_doctor_works_without_a_home_and_names_neither_user_nor_host(tmp_path: Path) -> None:
    import getpass
    import platform

    result = spawn("doctor", "--json", cwd=tmp_path, HOME=None, XDG_CACHE_HOME=None, MPLCONFIGDIR=None)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert set(facts["self test"].values()) == {"passed"}
    assert facts["sagittal"] == __version__
    assert facts["torch"]["threads"] >= 1
    assert "RLE Lossless" in facts["decoders"]
    text = result.stdout.decode()
    for name in (platform.node(), str(tmp_path), *([getpass.getuser()] if getpass.getuser() != "root" else [])):
        assert name not in text


def test_a_read_only_output_is_an_error_of_the_environment(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert main(["train", "data", "-o", "file/run"]) == 4
    assert "cannot be written" in capsys.readouterr().err


def test_a_taken_output_is_refused_before_anything_is_read(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}", encoding="utf-8")
    assert main(["train", "nowhere", "-o", "run"]) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error
    assert "--resume" in error
    assert "-o OTHER" in error
