"""One small picture over REST: the time that the service adds to the bare model, and throughput beside TorchServe.

    python benchmarks/predict_now.py
    python benchmarks/predict_now.py --torchserve ~/ts/bin/torchserve --callers 16

The network is what the planner takes for pictures of 32 pixels, and the same in all: as Sagittal's package, and traced for TorchServe, whose handler decodes the picture, scales
it, runs the network and takes a softmax. Sagittal's answer also holds the calibrated probability, the conformal set and the
gate's verdict, and stands in the audit trail when it goes out. The bare model is the same call in one process, without a
network between. Callers are threads of this process with a connection each that stays open; rounds are interleaved.

TorchServe needs Java 11 or newer, and an environment with torch, torchserve and torch-model-archiver.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hospital import Service, free_port, until
from machine import describe

HANDLER = """
import io
import numpy as np
import torch
from PIL import Image
from ts.torch_handler.base_handler import BaseHandler


class Handler(BaseHandler):
    def preprocess(self, data):
        made = []
        for row in data:
            raw = row.get("data") or row.get("body")
            pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB").resize((SIDE, SIDE)), dtype=np.float32)
            made.append(torch.from_numpy(pixels.transpose(2, 0, 1) / 255.0))
        return torch.stack(made)

    def inference(self, data):
        with torch.inference_mode():
            return self.model(data)

    def postprocess(self, out):
        return torch.softmax(out, 1).tolist()
"""


@dataclass
class Server:
    """One that answers pictures."""

    name: str
    port: int
    path: str
    close: Callable[[], object]
    headers: dict[str, str] = field(default_factory=dict)

    def line(self) -> http.client.HTTPConnection:
        """A connection that stays open, without Nagle's delay."""
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        made.connect()
        made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def ask(self, line: http.client.HTTPConnection, picture: bytes) -> float:
        """Seconds of one answer."""
        began = time.perf_counter()
        line.request("POST", self.path, picture, {**self.headers, "Content-Type": "image/png"})
        answer = line.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"{self.name}: {answer.status} {body[:300]!r}")
        return seconds


def make_model(path: Path, side: int, width: int) -> Any:
    """A network for pictures of two classes, as a package; and the network itself."""
    import torch

    from sagittal.labels import LabelScheme
    from sagittal.model.package import Model
    from sagittal.model.parts import IntendedUse
    from sagittal.networks.heads import build_network
    from sagittal.prepare.plan import InputPlan, NetworkPlan, Plan, PreparePlan
    from sagittal.tasks.registry import make_task

    plan = Plan(
        scheme=LabelScheme("binary", ("no", "yes"), target="made-up"),
        input=InputPlan(dimensions=2, modality="XC", unit="1", channels=3),
        network=NetworkPlan(name="resnet-small", width=width, depth=(1, 1, 1)),
        prepare=PreparePlan(
            size=(side, side), clip=(0.0, 255.0), offset=(0.0, 0.0, 0.0), scale=(255.0, 255.0, 255.0), store="uint8"
        ),
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 3, side, side), dtype=np.uint8)
    labels = np.arange(120) % 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = build_network(plan.network, channels=3, dimensions=2, head=make_task(plan).head, table=0)
        network.eval()
        with torch.no_grad():
            logits = network(torch.from_numpy(images.astype(np.float32) / 255), None).double().numpy()
    model = Model.assemble(
        "picture",
        plan,
        [network],
        logits=logits + rng.normal(0, 0.5, logits.shape) + np.eye(2)[labels],
        truth=np.eye(2)[labels],
        references=[images],
        intended_use=IntendedUse.of(plan, size=((8.0, 2048.0), (8.0, 2048.0))),
    )
    model.save(path)
    return network


def start_ours(folder: Path, package: Path) -> Server:
    """``sagittal serve`` with the package."""
    service = Service(folder, {"model": [{"path": package}]})
    token = service.admit(role="machine")
    service.start()
    return Server("sagittal", service.port, "/v1/predict", service.stop, {"Authorization": f"Bearer {token}"})


def start_torchserve(folder: Path, program: Path, network: Any, side: int) -> Server:
    """TorchServe as it is by default: a worker a core, no token, no metrics of its own machine."""
    import torch

    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x, None)

    folder.mkdir(parents=True)
    torch.jit.trace(Bare().eval(), torch.zeros(1, 3, side, side)).save(str(folder / "model.pt"))
    (folder / "handler.py").write_text(HANDLER.replace("SIDE", str(side)))
    archiver = [str(program.with_name("torch-model-archiver")), "--model-name", "picture", "--version", "1"]
    archiver += ["--serialized-file", "model.pt", "--handler", "handler.py", "--export-path", str(folder)]
    subprocess.run(archiver, cwd=folder, check=True)
    ports = [free_port() for _ in range(5)]
    names = ("inference_address", "management_address", "metrics_address")
    config = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)]
    config += [
        f"grpc_inference_port={ports[3]}",
        f"grpc_management_port={ports[4]}",
        "disable_token_authorization=true",
    ]
    (folder / "config.properties").write_text("\n".join(config))
    command = [str(program), "--start", "--foreground", "--ncs", "--disable-token-auth", "--model-store", str(folder)]
    command += ["--models", "picture=picture.mar", "--ts-config", str(folder / "config.properties")]
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)

    def close() -> None:
        subprocess.run([str(program), "--stop"], cwd=folder, env=environment, check=False, stdout=log, stderr=log)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()

    return Server("torchserve", ports[0], "/predictions/picture", close)


def wait_for(server: Server, picture: bytes) -> None:
    """Until it answers a picture."""

    def answers() -> bool:
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
            server.ask(server.line(), picture)
            return True
        return False

    until(answers, 120, f"{server.name} answers", every_s=0.25)


def throughput(server: Server, picture: bytes, callers: int, seconds: float) -> tuple[float, float]:
    """Pictures a second, and the median time of one, with so many callers."""
    times: list[float] = []
    stop = time.monotonic() + seconds

    def call() -> None:
        line = server.line()
        while time.monotonic() < stop:
            times.append(server.ask(line, picture))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) / (time.perf_counter() - began), statistics.median(times)


def bare_times(package: Path, picture: bytes, count: int) -> list[float]:
    """Seconds of the same answers without a service."""
    from sagittal.jobs.answer_instant import answer_pictures
    from sagittal.model.load import load_model

    model = load_model(package, device="cpu")
    times = []
    for number in range(count + 20):
        began = time.perf_counter()
        (answer,) = answer_pictures(model, [picture])
        if number >= 20:
            times.append(time.perf_counter() - began)
    assert answer["state"] in {"answered", "abstained"}, answer
    return times


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--count", type=int, default=300, help="pictures, one after the other")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torchserve", type=Path, default=Path(shutil.which("torchserve") or "torchserve"))
    options = parser.parse_args()
    from PIL import Image

    stream = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (options.side, options.side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    picture = stream.getvalue()
    place = Path(tempfile.mkdtemp(prefix="predict-now-"))
    servers: list[Server] = []
    alone: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    bare: list[float] = []
    try:
        network = make_model(place / "picture.sagittal", options.side, options.width)
        servers.append(start_ours(place / "ours", place / "picture.sagittal"))
        if options.torchserve.exists():
            servers.append(start_torchserve(place / "torchserve", options.torchserve, network, options.side))
        else:
            print("TorchServe is not there: name its program with --torchserve", file=sys.stderr)
        for server in servers:
            wait_for(server, picture)
            throughput(server, picture, options.callers, 1.0)  # warm
        for _ in range(options.rounds):
            bare += bare_times(place / "picture.sagittal", picture, options.count // options.rounds)
            for server in servers:
                line = server.line()
                times = [server.ask(line, picture) for _ in range(options.count // options.rounds)]
                alone.setdefault(server.name, []).extend(times)
            for server in servers:
                rates.setdefault(server.name, []).append(
                    throughput(server, picture, options.callers, options.seconds)[0]
                )
    finally:
        for server in servers:
            server.close()
        shutil.rmtree(place, ignore_errors=True)
    print(describe())
    print(f"picture of {options.side} x {options.side}, network resnet-small of width {options.width}")
    base = 1000 * statistics.median(bare)
    print(f"{'bare model':12} p50 {base:7.2f} ms")
    for name, times in alone.items():
        p50 = 1000 * statistics.median(times)
        more = f", {p50 - base:.2f} ms over the bare model" if name == "sagittal" else ""
        print(f"{name:12} p50 {p50:7.2f} ms, p95 {1000 * float(np.percentile(times, 95)):7.2f} ms{more}")
    for name, found in rates.items():
        print(
            f"{name:12} {statistics.median(found):8.1f} pictures/s with {options.callers} callers ({min(found):.1f} to {max(found):.1f})"
        )
    if len(rates) == 2:
        print(f"ratio {statistics.median(rates['sagittal']) / statistics.median(rates['torchserve']):.2f}")
    print(f"load average {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
