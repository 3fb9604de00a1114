"""``sagittal check`` as a person types it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as Pillow

import sagittal
from sagittal.cli.main import main
from sagittal.errors import ConfigError


@pytest.fixture
def leaky(tmp_path, monkeypatch, make_pixels):
    """A table of 40 pictures with splits, one of training mirrored in the test, one file cut off."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    rows = ["file,label,split"]
    for n in range(40):
        pixels = make_pixels(3, (48, 48))[:, ::-1] if n == 35 else make_pixels(n, (48, 48))
        path = tmp_path / "set" / f"{n:02d}.png"
        Pillow.fromarray(np.ascontiguousarray(pixels)).save(path)
        rows.append(f"{n:02d}.png,{'ab'[n % 2]},{'train' if n < 30 else 'test'}")
    path = tmp_path / "set" / "07.png"
    path.write_bytes(path.read_bytes()[:900])
    (tmp_path / "set" / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def test_page_json_text_and_exit_codes(leaky, capsys):
    assert main(["check", "set", "-o", "check.html"]) == 3
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "1 error"
    assert lines[1].startswith(
        "  near-copy-in-two-splits: 1 pair of cases in two splits show the same picture: 03 = 35."
    )
    assert lines[-1] == "not ready for training: mend the errors"
    assert "checking images 40/40" in err
    assert "page  check.html" in err
    page = (leaky / "check.html").read_text(encoding="utf-8")
    assert "the same values, mirrored or turned" in page
    assert page.count("<img") >= 39
    assert main(["check", "set", "--json", "-q", "-o", "check.json"]) == 3
    out, err = capsys.readouterr()
    assert err == ""
    found = {finding["code"]: finding for finding in json.loads(out)}
    assert found["near-copy-in-two-splits"]["pairs"] == [["03", "35"]]
    assert found["unreadable"]["cases"] == ["07"]
    assert json.loads((leaky / "check.json").read_text(encoding="utf-8")) == json.loads(out)


def test_a_page_that_is_there_is_kept(leaky, capsys):
    (leaky / "check.html").write_text("mine")
    assert main(["check", "set", "-o", "check.html"]) == 2
    assert "check.html exists already and is kept" in capsys.readouterr().err
    assert (leaky / "check.html").read_text() == "mine"
    assert main(["check", "set", "-o", "check.html", "--overwrite", "-q"]) == 3
    assert (leaky / "check.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_allowed_leakage_warns(leaky, capsys):
    assert main(["check", "set", "--allow-leakage", "-q"]) == 0
    out = capsys.readouterr().out
    assert "error" not in out.splitlines()[0]
    assert "(Allowed on request.)" in out
    assert out.splitlines()[-1] == "ready for training"


def test_in_python(leaky):
    findings = sagittal.check("set", output="out/check.html")
    assert not findings.may_train
    assert (leaky / "out" / "check.html").is_file()
    with pytest.raises(ConfigError, match="ends in .html or .json"):
        sagittal.check("set", output="check.docx")
    assert sagittal.check("set", pixels="none").may_train
