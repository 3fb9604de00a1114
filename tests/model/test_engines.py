"""An engine is used only where its answer is torch's; nothing is sent anywhere by trying one."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import nn

from sagittal.errors import ConfigError, MissingPackageError
from sagittal.model import engines
from sagittal.model.engines import Engines, Parts, TorchEngine, choose_engine, distance, import_openvino
from sagittal.networks.heads import Head, build_network
from sagittal.prepare.plan import NetworkPlan

CPU = torch.device("cpu")


def u_net(dimensions: int = 3, seed: int = 0) -> nn.Module:
    """A small U-Net whose batch statistics have moved."""
    plan = NetworkPlan(
        name="unet",
        width=8,
        depth=(1, 1),
        strides=((1,) * dimensions, (2,) * dimensions),
        kernels=((3,) * dimensions,) * 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(plan, channels=1, dimensions=dimensions, head=Head("dense", 3)).train()
        network(torch.randn(2, 1, *(16,) * dimensions))
    return network.eval()


def images_of(*size: int) -> torch.Tensor:
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))


class Off:
    """An engine that is torch and a little more."""

    def __init__(self, parts: Parts, images: torch.Tensor, *, by: float, name: str = "off") -> None:
        self.inner, self.by, self.name = TorchEngine(parts, CPU), by, name

    def run(self, images: torch.Tensor):
        logits, embedding = self.inner.run(images)
        logits = logits.clone()
        logits.view(-1)[7] += self.by
        return logits, embedding


class Sleeper(nn.Module):
    """A network that takes its time, so that another engine is the faster one."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.03

    def forward(self, image):
        if self.seconds:
            engines.time.sleep(self.seconds)
        return 2 * image


def quick(parts: Parts, images: torch.Tensor):
    """The same answer without the wait."""

    class Quick:
        name = "quick"

        def run(self, images):
            return 2 * images, None

    return Quick()


def test_a_wrong_answer_is_refused_however_fast():
    reference = TorchEngine(Parts(Sleeper()), CPU)

    def wrong(parts, images):
        class Wrong:
            name = "wrong"

            def run(self, images):
                return 2 * images + 1e-2, None

        return Wrong()

    engine, choice = choose_engine(reference, images_of(8, 8), candidates={"wrong": wrong, "quick": quick})
    assert engine.name == choice.name == "quick"
    assert choice.refused["wrong"].startswith("differs from torch by ")
    assert choice.difference["wrong"] > 1e-3
    assert choice.difference["quick"] == 0
    assert "wrong" not in choice.ms
    assert choice.ms["quick"] < choice.ms["torch"]


@pytest.mark.parametrize("by", [1e-2, float("nan"), float("inf")])
def test_one_wrong_number_is_enough(by):
    reference = TorchEngine(Parts(u_net()), CPU)
    engine, choice = choose_engine(
        reference, images_of(8, 8, 8), candidates={"off": lambda p, i: Off(p, i, by=by)}, asked=True
    )
    assert engine is reference
    assert "off" in choice.refused
    agreed = {"off": lambda p, i: Off(p, i, by=1e-5)}
    assert choose_engine(reference, images_of(8, 8, 8), candidates=agreed, asked=True)[0].name == "off"


def test_a_wrong_embedding_is_refused_too():
    ones = torch.ones(1, 3)
    assert distance((ones, ones + 1e-2), (ones, ones)) == pytest.approx(1e-2, rel=1e-3)
    assert not distance((ones, None), (ones, ones)) <= 1
    assert not distance((ones[:, :2], None), (ones, None)) <= 1
    assert distance((100 * ones + 0.05, None), (100 * ones, None)) == pytest.approx(5e-4, rel=1e-2)  # relative


def test_an_engine_that_fails_or_comes_late_is_told():
    def failing(parts, images):
        raise RuntimeError("operator not supported: MÜLLER^HANS")

    reference = TorchEngine(Parts(Sleeper()), CPU)
    candidates = {"failing": failing, "quick": quick, "late": quick}
    engine, choice = choose_engine(reference, images_of(8, 8), candidates=candidates, enough=0.8)
    assert engine.name == "quick"
    assert choice.refused["failing"] == "cannot run this network (RuntimeError)"
    assert choice.refused["late"] == "not tried: quick is fast enough"
    _, choice = choose_engine(reference, images_of(8, 8), candidates=candidates, limit_s=0)
    assert choice.refused["quick"] == "not tried: 0 s were over"


def test_a_slower_engine_is_not_taken():
    def slow(parts, images):
        class Slow:
            name = "slow"

            def run(self, images):
                engines.time.sleep(0.06)
                return 2 * images, None

        return Slow()

    engine, choice = choose_engine(TorchEngine(Parts(Sleeper()), CPU), images_of(4, 4), candidates={"slow": slow})
    assert engine.name == "torch"
    assert "takes" in choice.refused["slow"]


def test_parts_give_answer_and_embedding_of_the_network():
    network, images = u_net(), images_of(10, 12, 9)
    with torch.inference_mode():
        expected, features = network(images), network.embed(images)
    logits, embedding = TorchEngine(Parts(network), CPU).run(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedding, features, atol=1e-5, rtol=1e-5)
    alone, lone = TorchEngine(Parts(network), CPU).run(images[:1])
    torch.testing.assert_close(alone, expected[:1], atol=1e-5, rtol=1e-5)
    assert lone.shape == (1, features.shape[1])


@pytest.fixture
def openvino():
    """OpenVINO as Sagittal imports it; a plain import would begin to send telemetry."""
    sys.modules.setdefault("openvino_telemetry", None)
    return pytest.importorskip("openvino")


def test_openvino_gives_torch_its_answer(openvino):
    network, images = u_net(), images_of(9, 12, 10)
    torch_answer = Engines(network, CPU, "torch").run(images)
    asked = Engines(network, CPU, "openvino")
    answer = asked.run(images)
    choice = asked.choices[(1, 9, 12, 10)]
    assert choice.name == "openvino", choice
    assert choice.difference["openvino"] < 1e-4
    assert distance(answer, torch_answer) < 1e-4


@pytest.mark.slow
def test_onnx_runtime_gives_torch_its_answer():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, images = u_net(2), images_of(16, 14)
    asked = Engines(network, CPU, "onnxruntime")
    assert distance(asked.run(images), Engines(network, CPU, "torch").run(images)) < 1e-4
    assert asked.choices[(1, 16, 14)].name == "onnxruntime"


def test_narrow_numbers_are_used_only_where_asked_for():
    assert not any("bf16" in name for name in engines.SAME_ANSWER)
    network, images = u_net(), images_of(12, 12, 12)
    asked = Engines(network, CPU, "torch-bf16")
    logits, _ = asked.run(images)
    assert logits.dtype == torch.float32
    choice = asked.choices[(1, 12, 12, 12)]
    assert choice.name == "torch-bf16"
    assert 0 < choice.difference["torch-bf16"] < 0.1


def test_conversion_waits_until_enough_windows_come(monkeypatch):
    tried = []

    def candidate(parts, images):
        tried.append(tuple(images.shape[1:]))
        return quick(parts, images)

    monkeypatch.setattr(engines, "SAME_ANSWER", {"quick": (candidate, "torch")})
    monkeypatch.setattr(engines, "CONVERSION_S", 1.0)
    pool, images = Engines(Sleeper(), CPU), images_of(6, 6)[:1]
    pool.run(images, coming=5)  # 0.03 s each
    pool.run(images, coming=5)
    assert tried == []
    pool.run(images, coming=1000)
    assert tried == [(1, 6, 6)]
    assert pool.choices[(1, 6, 6)].name == "quick"
    pool.run(images, coming=1000)
    pool.run(images_of(5, 5)[:1], coming=1000)  # its first: nothing is known of its time yet
    assert tried == [(1, 6, 6)]
    pool.run(images, coming=1000, plain=True)
    assert pool.choices.keys() == {(1, 6, 6)}


def test_a_study_after_the_other_adds_up(monkeypatch):
    monkeypatch.setattr(engines, "SAME_ANSWER", {"quick": (quick, "torch")})
    monkeypatch.setattr(engines, "CONVERSION_S", 0.3)
    monkeypatch.setattr(engines, "CHECKED_WINDOWS", 0)
    pool, images = Engines(Sleeper(), CPU), images_of(6, 6)[:1]
    for _ in range(20):
        pool.run(images)
    assert pool.choices[(1, 6, 6)].name == "quick"


def test_an_engine_that_breaks_later_is_replaced_by_torch(monkeypatch, caplog):
    def breaking(parts, images):
        class Breaking:
            name = "breaking"

            def __init__(self):
                self.left = 2 + engines._TIMES  # two probes, and as often as it is timed

            def run(self, images):
                if not self.left:
                    raise RuntimeError("out of handles")
                self.left -= 1
                return 2 * images, None

        return Breaking()

    monkeypatch.setattr(engines, "SAME_ANSWER", {"breaking": (breaking, "torch")})
    monkeypatch.setattr(engines, "ENGINES", ("auto", "torch", "breaking"))
    pool, images = Engines(Sleeper(), CPU, "breaking"), images_of(4, 4)
    with caplog.at_level(logging.WARNING):
        logits, _ = pool.run(images)
    torch.testing.assert_close(logits, 2 * images)
    assert "engine breaking failed (RuntimeError): going on with torch" in caplog.text


def test_openvino_never_reports_home(openvino):
    assert import_openvino() is openvino
    assert sys.modules["openvino_telemetry"] is None
    from openvino.tools.ovc import convert_impl, telemetry_utils

    for module in (convert_impl, telemetry_utils):
        assert module.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_names_and_devices_are_checked():
    with pytest.raises(ConfigError, match="there is no engine 'openvin'. Did you mean 'openvino'"):
        Engines(Sleeper(), CPU, "openvin")
    with pytest.raises(ConfigError, match="the engine 'onnxruntime' runs on the CPU, not on cuda"):
        Engines(Sleeper(), torch.device("cuda"), "onnxruntime")


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'sagittal\[engines\]'"):
        Engines(Sleeper(), CPU, "onnxruntime")
