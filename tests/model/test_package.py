"""A model on disk gives back the same answers, and nothing else gets in."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import shutil
import stat
import struct
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from sagittal.errors import ConfigError, PackageError, ResourceError
from sagittal.model import archive
from sagittal.model.calibrate import Calibration
from sagittal.model.looks import looks_path, read_looks, record_look
from sagittal.model.package import Model
from sagittal.model.parts import IntendedUse
from sagittal.networks.encoder import ENCODERS
from sagittal.prepare.arrays import to_input
from sagittal.prepare.plan import CompanionPlan, DecidePlan, NetworkPlan

FORMS = ["model", "model.sagittal"]


@pytest.fixture(params=FORMS)
def saved(request, tmp_path, make_model):
    """A saved model, as a folder and as a file, with its arrays."""
    model, arrays = make_model()
    path = tmp_path / request.param
    return model.save(path), arrays, path


def files_of(path: Path) -> dict[str, bytes]:
    """The raw files of a saved model, without the index and its seal."""
    return {n: d for n, d in archive.read_files(path)[0].items() if n != archive.INDEX}


def index_of(path: Path) -> dict:
    return json.loads(archive.read_files(path)[0][archive.INDEX])


def reseal(path: Path, files: dict[str, bytes], target: Path, **changes: object) -> Path:
    """A model with other files and right checksums: what a careful attacker writes."""
    index = {**{k: v for k, v in index_of(path).items() if k not in ("files", "format")}, **changes}
    sealed, _ = archive.with_index(files, index)
    archive.write_files(target, sealed, overwrite=True)
    return target


# The same answers


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("members", [1, 3])
def test_a_loaded_model_answers_as_before(tmp_path, make_model, toy, form, members):
    model, arrays = make_model(members=members)
    model.save(tmp_path / form)
    again = Model.load(tmp_path / form)
    cases = toy.cases_of(model.plan, arrays[:10])
    for before, after in zip(model.predict_many(cases), again.predict_many(cases), strict=True):
        np.testing.assert_allclose(after.logits, before.logits, atol=1e-6)
        np.testing.assert_allclose(after.probability, before.probability, atol=1e-6)
        assert after.decision == before.decision
        assert after.conformal == before.conformal
        assert after.verdict.accepted == before.verdict.accepted
        assert after.verdict.score == pytest.approx(before.verdict.score, abs=0.01)
    assert again.plan == model.plan
    assert again.points == model.points
    assert again.intended_use == model.intended_use
    assert not any(m.training for m in again.members)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_training_and_package_agree(tmp_path, make_model, toy, dimensions):
    """The law of one preprocessing: the network on the store's arrays, and the package on the study, to 1e-5."""
    plan = toy.flat_plan() if dimensions == 2 else toy.volume_plan()
    model, arrays = make_model(plan)
    model.save(tmp_path / "model.sagittal")
    package = Model.load(tmp_path / "model.sagittal")
    cases = toy.cases_of(plan, arrays[:9])
    tables = torch.tensor([[(50 + n - 60) / 10, 0.0] for n in range(9)]) if dimensions == 3 else None
    with torch.inference_mode():
        training = model.members[0](to_input(torch.from_numpy(arrays[:9]), plan.prepare), tables).numpy()
    alone = np.stack([package.predict(case).logits for case in cases])
    together = np.stack([answer.logits for answer in package.predict_many(cases, batch=4)])
    np.testing.assert_allclose(alone, training, atol=1e-5)
    np.testing.assert_allclose(together, training, atol=1e-5)


def test_families_keep_their_networks_and_weights(tmp_path, toy):
    plan = toy.flat_plan(companions=(CompanionPlan(network=NetworkPlan(name="resnet-small", width=4, depth=(1,))),))
    networks = [toy.network_of(p, n) for n, p in enumerate(plan.families)]
    truth = toy.truth_of(60)
    logits = truth + np.random.default_rng(0).normal(0, 1, truth.shape)
    arrays = toy.stored_arrays(plan, 60)
    model = Model.assemble(
        "two",
        plan,
        networks,
        logits=logits,
        truth=truth,
        weights=(0.75, 0.25),
        families=(0, 1),
        references=[arrays] * 2,
    )
    model.save(tmp_path / "m")
    again = Model.load(tmp_path / "m")
    x = to_input(torch.from_numpy(arrays), plan.prepare)
    with torch.inference_mode():
        expected = 0.75 * networks[0](x).numpy() + 0.25 * networks[1](x).numpy()
    np.testing.assert_allclose(again.logits(arrays), expected, atol=1e-6)
    assert again.weights == (0.75, 0.25)
    assert again.families == (0, 1)
    with pytest.raises(PackageError, match="with the sum 1"):
        replace(model, weights=(0.75, 0.5))


def test_loading_leaves_the_random_state_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Model.load(saved[2])
    assert torch.equal(torch.rand(2), expected)


def test_the_same_model_gives_the_same_bytes(tmp_path, make_model):
    model, _ = make_model()
    first, second = model.save(tmp_path / "a.sagittal"), model.save(tmp_path / "b.sagittal")
    assert (tmp_path / "a.sagittal").read_bytes() == (tmp_path / "b.sagittal").read_bytes()
    assert first.checksum == second.checksum == model.save(tmp_path / "folder").checksum


def test_any_zip_tool_lists_the_file(tmp_path, make_model):
    model, _ = make_model()
    model.save(tmp_path / "m.sagittal")
    with zipfile.ZipFile(tmp_path / "m.sagittal") as z:
        assert z.testzip() is None
        assert {i.compress_type for i in z.infolist()} == {zipfile.ZIP_STORED}
        assert set(z.namelist()) == {
            "model.json",
            "model.sha256",
            "plan.json",
            "calibration.json",
            "operating.json",
            "conformal.json",
            "gate.json",
            "gate.safetensors",
            "data.json",
            "README.md",
            "weights-0.safetensors",
        }
        z.extractall(tmp_path / "unpacked")
    assert Model.load(tmp_path / "unpacked").checksum == Model.load(tmp_path / "m.sagittal").checksum


def test_operating_points_can_be_changed(saved):
    model = Model.load(saved[2])
    other = model.at("sensitivity=0.95")
    assert other.operating_point.name == "sensitivity=0.95"
    assert other.operating_point.thresholds != model.operating_point.thresholds
    assert model.operating_point.name == "most-probable"
    with pytest.raises(ConfigError, match=r"Did you mean 'sensitivity=0.95'"):
        model.at("sensitivity=0.9")


def test_the_card_and_the_index_hold_what_is_known_and_no_patient(saved, make_model):
    index = index_of(saved[2])
    assert index["task"] == "classify"
    assert {"sagittal", "python", "torch", "numpy", "safetensors"} <= set(index["versions"])
    assert index["intended_use"]["population"] == "not stated"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", index["created"])
    card = archive.read_files(saved[2])[0]["README.md"].decode()
    assert "not a medical device" in card
    assert "| population | not stated |" in card
    everything = b"".join(archive.read_files(saved[2])[0].values())
    assert b"patient-" not in everything
    assert Model.load(saved[2]).data["cases"] == 120


def test_ranges_of_the_intended_use_come_back(tmp_path, make_model):
    model, _ = make_model()
    use = IntendedUse.of(model.plan, size=((20.0, 40.0), (30.0, 50.0)), spacing_mm=((0.5, 0.7), (0.5, 0.7)))
    replace(model, intended_use=use).save(tmp_path / "m")
    assert Model.load(tmp_path / "m").intended_use == use


# Saving


def test_an_existing_model_is_not_overwritten_unless_asked(saved, make_model):
    model, _ = make_model(members=2)
    with pytest.raises(PackageError, match="exists already"):
        model.save(saved[2])
    model.save(saved[2], overwrite=True)
    assert len(Model.load(saved[2]).members) == 2


def test_a_folder_with_other_things_is_never_overwritten(tmp_path, make_model):
    model, _ = make_model()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(PackageError, match="holds more than a model"):
        model.save(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"the disk is full; \d+\.\d MB are needed"),
        (errno.EROFS, "cannot be written to. Choose another place"),
        (errno.EACCES, "cannot be written to. Choose another place"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_failing_disk_leaves_the_old_model_whole(tmp_path, make_model, monkeypatch, form, number, message):
    model, _ = make_model()
    model.save(tmp_path / form)
    before = Model.load(tmp_path / form).checksum
    calls = []

    def fail(handle: int) -> None:
        calls.append(handle)
        if form.endswith(".sagittal") or len(calls) > 3:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    bigger, _ = make_model(members=2)
    with pytest.raises(ResourceError, match=message):
        bigger.save(tmp_path / form, overwrite=True)
    monkeypatch.undo()
    assert Model.load(tmp_path / form).checksum == before
    assert os.listdir(tmp_path) == [form]


def test_a_read_only_place_is_named(make_model):
    if not Path("/proc/self").is_dir():
        pytest.skip("needs a file system that cannot be written to")
    model, _ = make_model()
    with pytest.raises(ResourceError, match="cannot be written"):
        model.save("/proc/self/model.sagittal")


# Damage


def test_every_changed_byte_is_refused(saved):
    _, _, path = saved
    rng = np.random.default_rng(0)
    targets = [path] if path.is_file() else sorted(path.iterdir())
    for file in targets:
        whole = file.read_bytes()
        count = 400 if path.is_file() else 25
        places = {0, len(whole) - 1, *rng.integers(0, len(whole), count).tolist()}
        if path.is_file():  # each byte of the directory and of the first header
            places |= set(range(60)) | set(range(len(whole) - 700, len(whole)))
        for place in places:
            changed = bytearray(whole)
            changed[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            with pytest.raises(PackageError):
                archive.read_files(path)
        file.write_bytes(whole)
    Model.load(path)


def test_the_message_names_the_changed_file(saved, tmp_path):
    _, _, path = saved
    if path.is_dir():
        weights = path / "weights-0.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        with pytest.raises(PackageError, match=r"weights-0.safetensors was changed after the model was saved"):
            Model.load(path)
        (path / "plan.json").unlink()
        with pytest.raises(PackageError, match=r"the file 'plan.json' is missing"):
            Model.load(path)
    else:
        with zipfile.ZipFile(path) as z:
            place = z.getinfo("weights-0.safetensors").header_offset + 5_000
        data = path.read_bytes()
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(PackageError, match=r"weights-0.safetensors was changed after the model was saved"):
            Model.load(path)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(saved, keep):
    _, _, path = saved
    file = path if path.is_file() else path / "weights-0.safetensors"
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(PackageError):
        Model.load(path)


def test_a_newer_format_is_refused(saved, tmp_path, monkeypatch):
    files = files_of(saved[2])
    monkeypatch.setattr(archive, "FORMAT", 2)
    newer = reseal(saved[2], files, tmp_path / "newer.sagittal")
    monkeypatch.undo()
    with pytest.raises(PackageError, match=r"has format 2, this version reads up to 1. Install a newer Sagittal"):
        Model.load(newer)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(PackageError, match="there is no model"):
        Model.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageError, match=r"is not a Sagittal model: it has no model\.json"):
        Model.load(tmp_path / "empty")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" + bytes(500))
    with pytest.raises(PackageError, match="does not end as one"):
        Model.load(tmp_path / "picture.png")
    (tmp_path / "short.sagittal").write_bytes(b"PK")
    with pytest.raises(PackageError, match="has 2 bytes"):
        Model.load(tmp_path / "short.sagittal")


# Hostile folders


def test_links_are_refused(tmp_path, make_model):
    model, _ = make_model()
    outside = tmp_path / "outside.json"
    for link in (os.symlink, os.link):
        model.save(tmp_path / "m", overwrite=True)
        data = (tmp_path / "m" / "data.json").read_bytes()
        outside.write_bytes(data)  # even with the right content
        (tmp_path / "m" / "data.json").unlink()
        link(outside, tmp_path / "m" / "data.json")
        with pytest.raises(PackageError, match=r"is a (symbolic|hard) link"):
            Model.load(tmp_path / "m")


def test_devices_and_pipes_are_refused_without_waiting(tmp_path, make_model):
    model, _ = make_model()
    model.save(tmp_path / "m")
    (tmp_path / "m" / "data.json").unlink()
    os.mkfifo(tmp_path / "m" / "data.json")
    with pytest.raises(PackageError, match=r"data.json: is not an ordinary file"):
        Model.load(tmp_path / "m")


@pytest.mark.parametrize(
    "name", ["weights-0.pkl", "model.pt", "plan.yaml", "run.py", "weights-00.safetensors", "PLAN.json"]
)
def test_foreign_names_are_refused(tmp_path, make_model, name):
    model, _ = make_model()
    model.save(tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(b"x")
    with pytest.raises(PackageError, match=f"'{re.escape(name)}' does not belong to a model"):
        Model.load(tmp_path / "m")


def test_an_allowed_name_that_is_not_listed_is_refused(tmp_path, make_model):
    model, _ = make_model()
    model.save(tmp_path / "m")
    (tmp_path / "m" / "weights-1.safetensors").write_bytes(b"x")
    with pytest.raises(PackageError, match=r"'weights-1.safetensors' does not belong to the model"):
        Model.load(tmp_path / "m")


def test_a_crowded_folder_is_refused_early(tmp_path, make_model):
    model, _ = make_model()
    model.save(tmp_path / "m")
    for n in range(200):
        (tmp_path / "m" / f"weights-{n % 100}.safetensors{n}").touch()
    with pytest.raises(PackageError, match=r"more than 128 entries|does not belong"):
        Model.load(tmp_path / "m")


# Hostile archives


def archive_with(path: Path, *entries: tuple[zipfile.ZipInfo, bytes], like: dict[str, bytes]) -> Path:
    """A zip by the standard library with the files of a model and further entries."""
    with zipfile.ZipFile(path, "w") as z:
        for name, data in like.items():
            z.writestr(zipfile.ZipInfo(name), data)
        for info, data in entries:
            z.writestr(info, data)
    return path


@pytest.fixture
def whole(tmp_path, make_model):
    """The files of a valid model, seal and all."""
    model, _ = make_model()
    model.save(tmp_path / "good")
    return {file.name: file.read_bytes() for file in (tmp_path / "good").iterdir()}


@pytest.mark.parametrize(
    "name",
    ["../plan.json", "/etc/passwd", "C:\\plan.json", "sub/plan.json", "..", "plan.json\x00.pkl", "x" * 5_000, "плaн"],
)
def test_paths_in_an_archive_are_refused(tmp_path, name):
    raw = name.encode()
    local, entry = archive._local(raw, 0, 0), archive._entry(raw, 0, 0, 0)
    path = tmp_path / "bad.sagittal"
    path.write_bytes(local + entry + archive._end(1, len(entry), len(local)))
    with pytest.raises(PackageError, match=r"does not belong to a model|directory that does not fit"):
        Model.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.sagittal"]


@pytest.mark.parametrize(("kind", "word"), [(stat.S_IFLNK, "link"), (stat.S_IFIFO, "link"), (stat.S_IFDIR, "link")])
def test_links_in_an_archive_are_refused(tmp_path, whole, kind, word):
    plan = whole.pop("plan.json")
    info = zipfile.ZipInfo("plan.json")
    info.external_attr = (kind | 0o777) << 16
    info.create_system = 3
    path = archive_with(tmp_path / "bad.sagittal", like={})
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(info, plan)
    with pytest.raises(PackageError, match=f"'plan.json' as a {word}"):
        Model.load(path)


def test_duplicates_are_refused(tmp_path, whole):
    path = tmp_path / "bad.sagittal"
    both = {**whole}
    archive.write_zip(path, both)
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    first = data[start : data.index(b"PK\x01\x02", start + 1)]
    end = data.rindex(b"PK\x05\x06")
    directory = first + data[start:end]
    path.write_bytes(data[:start] + directory + archive._end(len(whole) + 1, len(directory), start))
    with pytest.raises(PackageError, match=r"holds 'README.md' twice|holds '.*' twice|places"):
        Model.load(path)


def test_bombs_are_refused_before_they_unfold(tmp_path, whole):
    info = zipfile.ZipInfo("weights-1.safetensors")
    info.compress_type = zipfile.ZIP_DEFLATED
    path = tmp_path / "bomb.sagittal"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(info, bytes(200_000_000))
    assert path.stat().st_size < 300_000
    tracemalloc.start()
    with pytest.raises(PackageError, match="compressed or encrypted"):
        Model.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_million_entries_are_refused_at_once(tmp_path):
    path = tmp_path / "many.sagittal"
    entry = archive._entry(b"plan.json", 0, 0, 0)
    with path.open("wb") as stream:
        stream.write(entry * 1_000_000)
        stream.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65_535, 65_535, len(entry) * 1_000_000, 0, 0))
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(PackageError, match="holds 65535 entries or more, at most 128"):
        Model.load(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 2**26])
def test_forged_sizes_are_refused_without_being_allocated(tmp_path, whole, size):
    path = tmp_path / "bad.sagittal"
    archive.write_zip(path, whole)
    data = path.read_bytes()
    for field in (20, 24):  # packed and plain size of the first entry of the directory
        place = data.index(b"PK\x01\x02") + field
        data = data[:place] + struct.pack("<L", size) + data[place + 4 :]
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(PackageError, match=r"bytes, at most|places|does not belong"):
        Model.load(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_hidden_bytes_are_refused(tmp_path, whole):
    path = tmp_path / "m.sagittal"
    archive.write_zip(path, whole)
    good = path.read_bytes()
    path.write_bytes(b"#!/bin/sh\n" + good)
    with pytest.raises(PackageError, match="directory that does not fit"):
        Model.load(path)
    path.write_bytes(good + b"trailing")
    with pytest.raises(PackageError, match="does not end as one"):
        Model.load(path)
    start = good.index(b"PK\x01\x02")
    shifted = good[:start] + bytes(16) + good[start:-22]
    path.write_bytes(shifted + archive._end(len(whole), len(good) - 22 - start, start + 16))
    with pytest.raises(PackageError, match="bytes that belong to no entry"):
        Model.load(path)


# Hostile content with right checksums


class Harm:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harm-was-done",)


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_is_refused_and_never_tried_in_another_way(tmp_path, make_model, monkeypatch, form):
    model, _ = make_model()
    model.save(tmp_path / "good")
    buffer = io.BytesIO()
    torch.save(model.members[0].state_dict(), buffer)
    for data in (pickle.dumps(Harm()), buffer.getvalue(), b"\x80\x04N."):
        bad = reseal(tmp_path / "good", {**files_of(tmp_path / "good"), "weights-0.safetensors": data}, tmp_path / form)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
        with pytest.raises(PackageError, match=r"weights-0.safetensors: (states a header|is too short|cannot be read)"):
            Model.load(bad)
        assert not (tmp_path / "harm-was-done").exists()


def tensors(header: dict | bytes, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (b"\xff" * 16, "states a header of"),
        ((2**62).to_bytes(8, "little") + b"{}", "states a header of"),
        (tensors(b"[1, 2]"), "expected a JSON object"),
        (tensors(b'{"a": 1, "a": 1}'), "a key stands twice"),
        (tensors(b"[" * 100_000), "nested deeper"),
        (tensors(b'{"a": NaN}'), "is not JSON"),
        (tensors(b"\xff\xfe{}"), "cannot be read"),
        (tensors({"a": {"dtype": "F32", "shape": [2]}}), "incomplete"),
        (
            tensors({"a": {"dtype": "object", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
            "numbers of type 'object'",
        ),
        (tensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "does not fit its shape"),
        (tensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}), "does not fit its shape"),
        (tensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(4)), "tensors cover"),
        (
            tensors(
                {
                    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                    "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
                },
                bytes(12),
            ),
            "overlap or leave a gap",
        ),
        (tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)), "overlap or leave a gap"),
        (tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(400)), "tensors cover 4 bytes"),
        (tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "has no tensor"),
    ],
)
def test_crafted_weights_are_refused(tmp_path, make_model, data, message):
    model, _ = make_model()
    model.save(tmp_path / "good")
    files = {**files_of(tmp_path / "good"), "weights-0.safetensors": data}
    with pytest.raises(PackageError, match=message):
        Model.load(reseal(tmp_path / "good", files, tmp_path / "bad.sagittal"))


def test_weights_of_another_network_are_refused(tmp_path, make_model):
    model, _ = make_model()
    model.save(tmp_path / "good")
    state = {k: v.contiguous() for k, v in model.members[0].state_dict().items()}
    name = next(k for k, v in state.items() if v.ndim == 4)
    for changed, message in (
        ({**state, name: torch.zeros(1, 2, 3, 3)}, "has shape"),
        ({**state, "extra": torch.zeros(1)}, "holds the tensor 'extra'"),
    ):
        files = {**files_of(tmp_path / "good"), "weights-0.safetensors": save(changed)}
        with pytest.raises(PackageError, match=message):
            Model.load(reseal(tmp_path / "good", files, tmp_path / "bad", name="x"))


def test_inconsistent_parts_are_refused(tmp_path, make_model):
    model, _ = make_model()
    model.save(tmp_path / "good")
    files = files_of(tmp_path / "good")
    good = tmp_path / "good"

    def altered(name: str, **changes: object) -> dict[str, bytes]:
        return {**files, name: archive.json_bytes({**json.loads(files[name]), **changes})}

    two = [{"family": 0, "weight": 0.5}] * 2
    for bad, index, message in [
        (files, {"members": two}, "states 2 networks, there are 1"),
        (files, {"members": [{"family": 3, "weight": 1.0}]}, "names a family"),
        (files, {"members": 7}, "misses an entry"),
        (files, {"intended_use": {"modallity": "CT"}}, "Did you mean 'modality'"),
        (altered("plan.json", taks="classify"), {}, "unknown key 'taks'. Did you mean 'task'"),
        (altered("plan.json", task="clasify"), {}, "Did you mean 'classify'"),
        (altered("plan.json", format=99), {}, "Install a newer Sagittal"),
        (altered("calibration.json", method="magic"), {}, "unknown method 'magic'"),
        (altered("operating.json", points=[{"name": "p", "thresholds": [0.5]}]), {}, "do not fit 2 classes"),
        (altered("gate.json", spaces=[]), {}, "no reference or no limit|misses one|of 1"),
        ({k: v for k, v in files.items() if k != "calibration.json"}, {}, "'calibration.json' is missing"),
    ]:
        with pytest.raises(PackageError, match=message):
            Model.load(reseal(good, bad, tmp_path / "bad", **index))


def test_devices(saved):
    with pytest.raises(ConfigError, match="Did you mean 'cuda'"):
        Model.load(saved[2], device="cudda")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="the device cuda is not there"):
            Model.load(saved[2], device="cuda")
        assert Model.load(saved[2], device="auto").device == torch.device("cpu")


# Looks at test data


def test_looks_are_kept_in_a_chain(saved):
    model, _, path = saved
    assert read_looks(path) == ()
    for n in range(3):
        record_look(path, dataset="hospital-b", split="test", cases=100 + n, scores={"auc": 0.9})
    looks = read_looks(path)
    assert [look.number for look in looks] == [1, 2, 3]
    assert [look.cases for look in looks] == [100, 101, 102]
    assert looks[0].previous == looks[0].model == model.checksum
    assert Model.load(path).checksum == model.checksum  # the record does not break the model

    record = looks_path(path)
    whole = record.read_bytes()
    lines = whole.splitlines(keepends=True)
    for bad, message in [
        (whole.replace(b'"cases": 101', b'"cases": 1'), "line 3 does not follow"),
        (lines[0] + lines[2], "line 2 does not follow"),
        (lines[1] + lines[2], "line 1 does not follow"),
        (whole[:-5], "cut off"),
        (whole + b"{}\n", "is not a look"),
    ]:
        record.write_bytes(bad)
        with pytest.raises(PackageError, match=message):
            read_looks(path)
    record.write_bytes(whole)
    assert record_look(path, dataset="d", split="test", cases=1).number == 4


def test_looks_at_the_same_time_all_count(saved):
    path = saved[2]
    with ThreadPoolExecutor(8) as pool:  # the lock is on each opening of the file, as between processes
        list(pool.map(lambda n: record_look(path, dataset="d", split="test", cases=n), range(16)))
    looks = read_looks(path)
    assert [look.number for look in looks] == list(range(1, 17))
    assert sorted(look.cases for look in looks) == list(range(16))


def test_a_look_at_a_read_only_place_says_so(saved, monkeypatch):
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    record_look(saved[2], dataset="d", split="test", cases=1)
    monkeypatch.setattr(os, "fsync", lambda handle: refuse(Path()))
    with pytest.raises(ResourceError, match=r"looks.jsonl: cannot be written"):
        record_look(saved[2], dataset="d", split="test", cases=1)


def test_calibration_and_points_follow_the_plan(make_model, toy):
    for method in ("none", "temperature", "vector", "isotonic"):
        plan = toy.flat_plan(decide=DecidePlan(calibration=method, operating_point="youden", confidence=0.8))
        model, _ = make_model(plan)
        assert model.calibration.method == method
        assert model.operating_point.name == "youden"
        assert model.conformal.confidence == 0.8


# Every family of networks


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"transformers"}))
def test_every_network_comes_back(tmp_path, toy, name):
    base = toy.flat_plan()
    plan = replace(
        base,
        network=NetworkPlan(name=name, width=8, depth=(1, 1)),
        prepare=replace(base.prepare, size=(32, 32)),
        input=replace(base.input, channels=3),
    )
    network = toy.network_of(plan)
    Model("net", plan, (network,), Calibration(), ()).save(tmp_path / "m.sagittal")
    again = Model.load(tmp_path / "m.sagittal")
    arrays = toy.stored_arrays(plan, 2)
    with torch.inference_mode():
        expected = network(to_input(torch.from_numpy(arrays), plan.prepare)).numpy()
    np.testing.assert_allclose(again.logits(arrays), expected, atol=1e-5)


@pytest.mark.filterwarnings("default")  # transformers warns of its own matters
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_network_from_a_folder_needs_the_folder_no_more(tmp_path, toy, tuning):
    transformers = pytest.importorskip("transformers")
    if tuning == "lora":
        pytest.importorskip("peft")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    base = toy.flat_plan()
    plan = replace(
        base,
        network=NetworkPlan(name="transformers", pretrained=f"folder:{tmp_path / 'vit'}", tuning=tuning),
        prepare=replace(base.prepare, size=(32, 32)),
    )
    network = toy.network_of(plan)
    arrays = toy.stored_arrays(plan, 2)
    with torch.inference_mode():
        expected = network(to_input(torch.from_numpy(arrays), plan.prepare)).numpy()
    Model("vit", plan, (network,), Calibration(), ()).save(tmp_path / "m.sagittal")
    shutil.rmtree(tmp_path / "vit")
    again = Model.load(tmp_path / "m.sagittal")
    np.testing.assert_allclose(again.logits(arrays), expected, atol=1e-5)

    files = files_of(tmp_path / "m.sagittal")
    config = {**json.loads(files["encoder-0.json"]), "auto_map": {"AutoModel": "evil.Model"}}
    bad = {**files, "encoder-0.json": archive.json_bytes(config)}
    with pytest.raises(PackageError, match="holds 'auto_map'"):
        Model.load(reseal(tmp_path / "m.sagittal", bad, tmp_path / "bad.sagittal"))
    del files["encoder-0.json"]
    with pytest.raises(PackageError, match=r"'encoder-0.json' is missing"):
        Model.load(reseal(tmp_path / "m.sagittal", files, tmp_path / "bad.sagittal"))
