"""The Open Inference Protocol: JSON and binary tensors, and the codes of errors."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from sagittal.errors import DataError
from sagittal.serve.inference_protocol import read_request

ARRAY = {"name": "array", "shape": [2, 3, 8, 8], "datatype": "UINT8"}


@pytest.fixture
def models(make_service: Any, run_service: Any, request: Any) -> Any:
    """A service with one model."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location("rest_fakes", Path(__file__).with_name("test_rest.py"))
    assert spec is not None
    assert spec.loader is not None
    fakes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fakes)
    return run_service(make_service(pool=fakes.FakePool(fakes.make_model())))


def infer(running: Any, body: Any, path: str = "skin", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        f"{running.url}/v2/models/{path}/infer", content=content, headers={**running.headers("machine"), **headers}
    )


def test_metadata_and_readiness(models: Any) -> None:
    def get(path: str, role: str | None = "machine") -> httpx.Response:
        return httpx.get(models.url + path, headers=models.headers(role) if role else {})

    assert get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert get("/v2/health/live", None).json() == {"live": True}
    assert get("/v2/health/ready", None).status_code == 200
    told = get("/v2/models/skin").json()
    assert told["inputs"][0] == {"name": "array", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}
    assert told["outputs"][0]["name"] == "probability"
    version = told["versions"][0]
    assert get(f"/v2/models/skin/versions/{version}/ready").json() == {"name": "skin", "ready": True}
    assert get("/v2/models/skin/ready").status_code == 200
    for path in (
        "/v2/models/other",
        "/v2/models/other/ready",
        "/v2/models/skin/versions/zz",
        "/v2/models/skin/versions/zz/ready",
    ):
        answer = get(path)
        assert answer.status_code == 404
        assert "error" in answer.json()
    assert get("/v2/models/skin", None).status_code == 401
    assert get("/v2/models/skin", "reader").status_code == 403


def test_json_tensors(models: Any) -> None:
    values = np.arange(2 * 3 * 8 * 8) % 256
    for data in (values.tolist(), values.reshape(2, 3, 8, 8).tolist()):
        answer = infer(models, {"id": "7", "inputs": [{**ARRAY, "data": data}]})
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["model_name"], told["id"]) == ("skin", "7")
        outputs = {one["name"]: one for one in told["outputs"]}
        assert outputs["probability"] == {
            "name": "probability",
            "datatype": "FP64",
            "shape": [2, 2],
            "data": [0.25, 0.75] * 2,
        }
        assert outputs["decision"]["data"] == [False, True] * 2
        assert outputs["gate_score"]["data"] == [None, None]
    assert np.array_equal(models.service.pool.asked[-1]["tensors"]["array"].reshape(-1), values)
    assert models.service.pool.asked[-1]["tensors"]["array"].dtype == np.uint8
    chosen = infer(models, {"inputs": [{**ARRAY, "data": values.tolist()}], "outputs": [{"name": "decision"}]})
    assert [one["name"] for one in chosen.json()["outputs"]] == ["decision"]


def test_binary_tensors(models: Any) -> None:
    values = np.arange(2 * 3 * 8 * 8, dtype=np.uint8)
    head = {
        "inputs": [{**ARRAY, "parameters": {"binary_data_size": values.nbytes}}],
        "outputs": [{"name": "probability", "parameters": {"binary_data": True}}, {"name": "decision"}],
    }
    text = json.dumps(head).encode()
    answer = infer(models, text + values.tobytes(), **{"Inference-Header-Content-Length": str(len(text))})
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    told = json.loads(answer.content[:length])
    assert told["outputs"][0]["parameters"] == {"binary_data_size": 32}
    assert np.array_equal(np.frombuffer(answer.content[length:], "<f8"), [0.25, 0.75] * 2)
    assert told["outputs"][1]["data"] == [False, True] * 2
    head["parameters"] = {"binary_data_output": True}
    del head["outputs"]
    text = json.dumps(head).encode()
    every = infer(models, text + values.tobytes(), **{"Inference-Header-Content-Length": str(len(text))})
    assert all(
        "data" not in one
        for one in json.loads(every.content[: int(every.headers["inference-header-content-length"])])["outputs"]
    )


def test_texts_and_numbers_of_every_kind() -> None:
    body = {"inputs": [{"name": "sex", "shape": [2], "datatype": "BYTES", "data": ["F", "M"]}]}
    assert read_request(json.dumps(body).encode(), None)[1]["sex"] == ["F", "M"]
    head = json.dumps(
        {"inputs": [{"name": "sex", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 7}}]}
    ).encode()
    assert read_request(head + b"\x03\0\0\0abc", str(len(head)))[1]["sex"] == ["abc"]
    for datatype, kind in (
        ("FP16", "float16"),
        ("FP32", "float32"),
        ("INT64", "int64"),
        ("BOOL", "bool"),
        ("UINT16", "uint16"),
    ):
        one = {"name": "x", "shape": [2, 1], "datatype": datatype, "data": [[1], [0]]}
        found = read_request(json.dumps({"inputs": [one]}).encode(), None)[1]["x"]
        assert (found.dtype.name, found.tolist()) == (kind, [[1], [0]])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"{}", b'{"inputs": []}', b'{"inputs": 5}', b'{"inputs": [5]}', b"[" * 100_000,
        b'{"inputs": [{"name": 5, "shape": [1], "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "x", "shape": [-1], "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "x", "shape": [9999999999], "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "x", "shape": [65536, 65536], "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "x", "shape": [true], "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP99", "data": [1]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": ["FP32"], "data": [1]}]}',
        b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, [2]]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ["a"]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [null]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "UINT8", "data": [300]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "UINT8", "data": [1.5]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1e999]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [123456789012345678901234567890]}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1], "parameters": 5}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": "4"}}]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}], "outputs": [5]}',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [1]}]}',
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(models: Any, body: bytes) -> None:
    with pytest.raises(DataError):
        read_request(body, None)
    assert infer(models, body).status_code == 400


def test_lengths_that_lie(models: Any) -> None:
    body = json.dumps({"inputs": [{**ARRAY, "data": [0] * 384}]}).encode()
    for length in ("x", "-1", "99999999999999999", str(len(body) + 1), ""):
        assert infer(models, body, **{"Inference-Header-Content-Length": length}).status_code == 400, length
    assert infer(models, body + b"more", **{"Inference-Header-Content-Length": str(len(body))}).status_code == 400
    assert infer(models, {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).status_code == 400
    assert infer(models, body, "other").status_code == 404
    assert infer(models, {"inputs": [{**ARRAY, "data": [0] * 384}], "outputs": [{"name": "zz"}]}).status_code == 400
