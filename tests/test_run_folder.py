"""The folder of a run: names, clashes, options that repeat it, its log."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from sagittal.errors import ConfigError, ResourceError
from sagittal.progress import Quiet
from sagittal.run_folder import (
    claim_folder,
    keep_log,
    load_config,
    run_folder,
    safe_name,
    save_config,
    save_environment,
    writable,
)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("medmnist:breastmnist_64", "breastmnist_64"),
        ("/data/chest CT/", "chest-CT"),
        ("labels.csv", "labels"),
        ("../x/../y", "y"),
        ("数据/胸片", "胸片"),
        ("a" * 300, "a" * 80),
        ("///", None),
        ("..", None),
    ],
)
def test_names_are_safe_for_a_folder(source: str, name: str | None) -> None:
    found = safe_name(source)
    assert found
    assert found not in (".", "..")
    assert "/" not in found
    if name is not None:
        assert found == name


def test_a_folder_whose_name_has_a_dot_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "study.v2").mkdir()
    assert safe_name(str(tmp_path / "study.v2")) == "study.v2"


def test_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    claim_folder(tmp_path / "a" / "b", what="a run")
    claim_folder(tmp_path / "a" / "b", what="a run")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_taken_folder_is_refused_with_three_ways_out(tmp_path: Path) -> None:
    save_config(tmp_path, {"source": "x"})
    with pytest.raises(ConfigError, match=r"exists already and is kept.*--resume.*--overwrite.*-o OTHER"):
        claim_folder(tmp_path, what="a run", resumable=True)
    assert load_config(tmp_path) == {"source": "x"}


def test_overwriting_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "thesis"
    run.mkdir()
    other.mkdir()
    save_config(run, {"source": "x"})
    (other / "chapter1.tex").write_text("years of work", encoding="utf-8")
    claim_folder(run, what="a run", overwrite=True)
    assert list(run.iterdir()) == []
    with pytest.raises(ConfigError, match="holds files that Sagittal did not write; --overwrite does not remove them"):
        claim_folder(other, what="a run", overwrite=True)
    assert (other / "chapter1.tex").read_text(encoding="utf-8") == "years of work"


def test_overwriting_does_not_follow_a_link_out_of_the_folder(tmp_path: Path) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    precious.mkdir()
    (precious / "data.txt").write_text("x", encoding="utf-8")
    save_config(run, {"source": "x"})
    (run / "link").symlink_to(precious)
    claim_folder(run, what="a run", overwrite=True)
    assert (precious / "data.txt").exists()


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="is a file; a run needs a folder"):
        claim_folder(path, what="a run")


def test_a_place_that_cannot_be_made_is_an_error_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ResourceError, match="cannot be written.*or write elsewhere with -o"):
        claim_folder(tmp_path / "file" / "run", what="a run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_an_error_of_the_environment(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResourceError, match="Permission denied"):
            claim_folder(tmp_path / "run", what="a run")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_is_an_error_of_the_environment(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(ResourceError, match="No space left on device"), writable(tmp_path):
        full.write_text("x", encoding="utf-8")


def test_options_come_back(tmp_path: Path) -> None:
    save_config(tmp_path, {"source": "täbelle.csv", "target": None, "plan_fields": {"network.width": "48"}})
    assert load_config(tmp_path) == {"source": "täbelle.csv", "plan_fields": {"network.width": "48"}}


@pytest.mark.parametrize("text", [None, "not json", "[1]"])
def test_a_folder_without_options_cannot_go_on(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(tmp_path)


def test_the_environment_is_kept_as_pip_takes_it(tmp_path: Path) -> None:
    save_environment(tmp_path)
    lines = (tmp_path / "environment.lock").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# Python 3.")
    assert any(line.startswith("numpy==") for line in lines)
    names = [line.partition("==")[0] for line in lines[1:]]
    assert names == sorted(set(names))


def test_what_is_said_and_logged_stays_in_the_log(tmp_path: Path) -> None:
    level = logging.getLogger("sagittal").level
    with keep_log(tmp_path) as logged:
        reporter = logged(Quiet())
        reporter.say("case 0001 is left out")
        with reporter.track("prepare", 3) as advance:
            advance(3, "done")
        logging.getLogger("sagittal.read").warning("spacing is not stated")
    logging.getLogger("sagittal").warning("after the end")
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "case 0001 is left out" in text
    assert "prepare: " in text
    assert "spacing is not stated" in text
    assert "after the end" not in text
    assert logging.getLogger("sagittal").level == level


def test_the_log_says_how_it_ended_but_not_with_what_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Doe"), keep_log(tmp_path):
        raise ValueError("Doe^Jane")
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "ends with ValueError" in text
    assert "Jane" not in text


def test_the_name_of_a_run_is_that_of_its_source() -> None:
    assert run_folder("medmnist:breastmnist") == Path("runs/breastmnist")


def test_config_is_json_for_people(tmp_path: Path) -> None:
    save_config(tmp_path, {"source": "胸片", "seed": 3})
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"source": "胸片", "seed": 3}
    assert "胸片" in text
