"""The Open Inference Protocol (KServe v2): tensors in, tensors out, as JSON or with the binary extension of Triton.

Source: kserve.github.io, "Open Inference Protocol (V2)"; the binary tensor data extension of Triton Inference Server.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from sagittal import __version__
from sagittal.errors import ConfigError, DataError, ReadError, ResourceError, ScopeError
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.predict_now import DATATYPES, Busy, PredictNow, describe_tensors
from sagittal.jobs.queue import models_off
from sagittal.jobs.worker import AnswerError
from sagittal.serve.security import Caller, allow, anyone

if TYPE_CHECKING:
    from sagittal.database.connect import Database
    from sagittal.serve.service import Service

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
Sender = Annotated[Caller, Depends(allow("send"))]
Name = Annotated[str, Path(max_length=256)]
#: Values of one tensor, tensors of one request, and levels of JSON.
_MOST_VALUES, _MOST_TENSORS, _MOST_AXES = 2**28, 64, 16
_LENGTH = "inference-header-content-length"
_EXTENSIONS = ["binary_tensor_data"]
_INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name", "shape", "datatype", "data"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                                    "datatype": {"enum": sorted([*DATATYPES, "BYTES"])},
                                    "data": {"type": "array", "items": {}},
                                },
                            },
                        },
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class SwitchedOff:
    """Names of the models that are switched off, asked of the database once a second at most."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: tuple[float, frozenset[str]] = (-1.0, frozenset())

    def names(self) -> frozenset[str]:
        """As they were within the last second."""
        known = self.recall()
        if known is None:
            now = time.monotonic()
            known = models_off(self._db)
            self._known = (now, known)
        return known

    def recall(self) -> frozenset[str] | None:
        """The same without asking the database; ``None`` where that must be done."""
        at, names = self._known
        return names if at >= 0 and time.monotonic() - at <= 1.0 else None

    def forget(self) -> None:
        """One of them was switched."""
        self._known = (-1.0, frozenset())


def switched_off(app: FastAPI) -> SwitchedOff:
    """The one of an application."""
    if getattr(app.state, "switched_off", None) is None:
        app.state.switched_off = SwitchedOff(app.state.service.db)
    found: SwitchedOff = app.state.switched_off
    return found


def model_named(app: FastAPI, name: str, version: str = "") -> ServedModel:
    """A model by name and version.

    Raises
    ------
    HTTPException
        404 if there is none, 503 if it is switched off.
    """
    try:
        model: ServedModel = app.state.service.pool.find(name, version)
    except ConfigError as error:
        raise HTTPException(404, str(error)) from error
    if model.name in switched_off(app).names():
        raise HTTPException(503, f"the model '{model.name}' is switched off")
    return model


@router.get("")
def server_metadata(_: Sender) -> dict[str, Any]:
    """What this server is."""
    return {"name": "sagittal", "version": __version__, "extensions": _EXTENSIONS}


@router.get("/health/live", dependencies=[Depends(anyone)])
async def server_live() -> dict[str, bool]:
    """Whether the server answers."""
    return {"live": True}


@router.get("/health/ready", dependencies=[Depends(anyone)])
def server_ready(request: Request) -> Response:
    """Whether it can take requests."""
    ready = not request.app.state.service.health.reasons()
    return JSONResponse({"ready": ready}, 200 if ready else 503)


@router.get("/models/{name}")
def model_metadata(request: Request, _: Sender, name: Name) -> dict[str, Any]:
    """Inputs and outputs of a model."""
    return _metadata(request.app.state.service, name)


@router.get("/models/{name}/versions/{version}")
def version_metadata(request: Request, _: Sender, name: Name, version: Name) -> dict[str, Any]:
    """Inputs and outputs of one version of a model."""
    return _metadata(request.app.state.service, name, version)


@router.get("/models/{name}/ready")
def model_ready(request: Request, _: Sender, name: Name) -> Response:
    """Whether a model can be asked: it is loaded, or is loaded when it is asked."""
    return _ready(request.app, name)


@router.get("/models/{name}/versions/{version}/ready")
def version_ready(request: Request, _: Sender, name: Name, version: Name) -> Response:
    """Whether one version of a model can be asked."""
    return _ready(request.app, name, version)


def _metadata(service: Service, name: str, version: str = "") -> dict[str, Any]:
    try:
        model = service.pool.find(name, version)
    except ConfigError as error:
        raise HTTPException(404, str(error)) from error
    versions = [one.version for one in service.pool.models if one.name == model.name]
    return {**describe_tensors(model), "versions": versions}


def _ready(app: FastAPI, name: str, version: str = "") -> Response:
    model = model_named(app, name, version)
    states = {one["version"]: one["state"] for one in app.state.service.pool.states() if one["name"] == model.name}
    ready = states.get(model.version) != "failed"
    return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)


@router.post("/models/{name}/infer", openapi_extra=_INFER)
async def infer(request: Request, caller: Sender, name: Name) -> Response:
    """Answer tensors."""
    return await _infer(request, caller, name)


@router.post("/models/{name}/versions/{version}/infer", openapi_extra=_INFER)
async def infer_version(request: Request, caller: Sender, name: Name, version: Name) -> Response:
    """Answer tensors by one version of a model."""
    return await _infer(request, caller, name, version)


async def _infer(request: Request, caller: Caller, name: str, version: str = "") -> Response:
    service: Service = request.app.state.service
    model = await run_in_threadpool(model_named, request.app, name, version)
    body = await request.body()
    try:
        asked, tensors = read_request(body, request.headers.get(_LENGTH))
        found = await run_in_threadpool(_answered, service.predict_now, service, caller, model, tensors)
        return write_answer(asked, found, model)
    except Busy as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    except AnswerError as error:
        kind = type(error.original)
        if issubclass(kind, (ConfigError, DataError, ReadError)):
            raise HTTPException(400, str(error)) from error
        if issubclass(kind, ScopeError):
            raise HTTPException(422, str(error)) from error
        raise HTTPException(503 if issubclass(kind, ResourceError) else 500, str(error)) from error


def _answered(
    instant: PredictNow, service: Service, caller: Caller, model: ServedModel, tensors: Mapping[str, Any]
) -> dict[str, Any]:
    found = instant.infer(model, tensors)
    service.audit.record(
        caller.name,
        "predict",
        role=caller.role,
        address=caller.address,
        details={"model": model.name, "version": model.version, "how": "tensors"},
    )
    return found


# Reading -------------------------------------------------------------------------------------------------------------


def read_request(body: bytes, length: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of a request, and its tensors by name.

    Parameters
    ----------
    body : bytes
    length : str, optional
        The header ``Inference-Header-Content-Length``: bytes of JSON, after which binary tensors follow.

    Raises
    ------
    DataError
        If it is no request of the protocol.

    Examples
    --------
    >>> text = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}]}'
    >>> read_request(text, None)[1]["x"]
    array([[1. , 2.5]], dtype=float32)
    """
    end = len(body)
    if length is not None:
        if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > len(body):
            raise DataError("Inference-Header-Content-Length is not a number of bytes within the body")
        end = int(length)
    try:
        asked = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise DataError("the request is not JSON") from error
    inputs = asked.get("inputs") if isinstance(asked, dict) else None
    if not isinstance(inputs, list) or not 0 < len(inputs) <= _MOST_TENSORS:
        raise DataError("the request is an object with 'inputs', a list of tensors")
    outputs = asked.get("outputs") or []
    if not isinstance(outputs, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in outputs
    ):
        raise DataError("'outputs' is a list of objects with a name")
    tensors: dict[str, Any] = {}
    at = end
    for one in inputs:
        name, shape, datatype = _declared(one)
        if name in tensors:
            raise DataError(f"two inputs are called '{name[:64]}'")
        size = _parameters(one).get("binary_data_size")
        if size is None:
            tensors[name] = _from_json(one, shape, datatype)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0 or at + size > len(body) or "data" in one:
            raise DataError(f"input '{name[:64]}': binary_data_size does not fit the body")
        tensors[name] = _from_bytes(body[at : at + size], shape, datatype, name)
        at += size
    if at != len(body):
        raise DataError(f"{len(body) - at} bytes of the body belong to no input")
    return asked, tensors


def _declared(one: Any) -> tuple[str, tuple[int, ...], str]:
    if not isinstance(one, dict) or not isinstance(one.get("name"), str):
        raise DataError("each input is an object with name, shape, datatype and data")
    name, shape, datatype = one["name"], one.get("shape"), one.get("datatype")
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_AXES
        or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MOST_VALUES for n in shape)
        or math.prod(shape) > _MOST_VALUES
    ):
        raise DataError(
            f"input '{name[:64]}': shape is a list of whole numbers, at most {_MOST_VALUES:,} values together"
        )
    if not isinstance(datatype, str) or datatype not in {*DATATYPES, "BYTES"}:
        raise DataError(f"input '{name[:64]}': datatype is one of {', '.join(sorted([*DATATYPES, 'BYTES']))}")
    return name, tuple(shape), datatype


def _parameters(one: Mapping[str, Any]) -> Mapping[str, Any]:
    given = one.get("parameters") or {}
    if not isinstance(given, dict):
        raise DataError("'parameters' is an object")
    return given


def _from_json(one: Mapping[str, Any], shape: tuple[int, ...], datatype: str) -> Any:
    data, name = one.get("data"), str(one["name"])[:64]
    if not isinstance(data, list):
        raise DataError(f"input '{name}': data is a list")
    count = math.prod(shape)
    if datatype == "BYTES":
        texts = _flat(data)
        if len(texts) != count or not all(isinstance(text, str) for text in texts):
            raise DataError(f"input '{name}': data is {count} texts, as shape says")
        return _texts(texts, shape)
    try:
        plain = np.array(data)
        if plain.dtype.kind not in "biuf":
            raise DataError(f"input '{name}': data holds something else than numbers")
        if plain.size != count:
            raise DataError(f"input '{name}': {plain.size} values, shape {list(shape)} needs {count}")
        kind = np.dtype(DATATYPES[datatype])
        if plain.size and kind.kind in "iu" and not _fits(plain, kind):
            raise DataError(f"input '{name}': values that {datatype} does not hold")
        return plain.astype(kind).reshape(shape)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"input '{name}': data is no array of numbers") from error


def _fits(values: Any, kind: np.dtype[Any]) -> bool:
    limits = np.iinfo(kind)
    low, high = values.min(), values.max()
    whole = values.dtype.kind != "f" or bool(np.isfinite(values).all() and (values == np.round(values)).all())
    return whole and int(low) >= limits.min and int(high) <= limits.max


def _flat(data: list[Any]) -> list[Any]:
    found, waiting = [], [data]
    while waiting:
        for one in waiting.pop():
            if isinstance(one, list):
                waiting.append(one)
            else:
                found.append(one)
    return found


def _from_bytes(raw: bytes, shape: tuple[int, ...], datatype: str, name: str) -> Any:
    count = math.prod(shape)
    if datatype == "BYTES":
        texts: list[str] = []
        at = 0
        while at + 4 <= len(raw) and len(texts) < count:
            size = int.from_bytes(raw[at : at + 4], "little")
            if at + 4 + size > len(raw):
                break
            texts.append(raw[at + 4 : at + 4 + size].decode("utf-8", "replace"))
            at += 4 + size
        if at != len(raw) or len(texts) != count:
            raise DataError(f"input '{name[:64]}': its bytes are not {count} texts, each with its length before it")
        return _texts(texts, shape)
    kind = np.dtype(DATATYPES[datatype]).newbyteorder("<")
    if len(raw) != count * kind.itemsize:
        raise DataError(
            f"input '{name[:64]}': {len(raw)} bytes, shape {list(shape)} of {datatype} needs {count * kind.itemsize}"
        )
    if datatype == "BOOL":
        return (np.frombuffer(raw, np.uint8) != 0).reshape(shape)
    return np.frombuffer(raw, kind).reshape(shape)


def _texts(texts: Sequence[str], shape: tuple[int, ...]) -> list[str]:
    """Texts of one axis: what clinical columns are."""
    if len(shape) > 1 and math.prod(shape[1:]) != 1:
        raise DataError("texts have one axis")
    return list(texts)


# Writing -------------------------------------------------------------------------------------------------------------

_NAMES = {kind: name for name, kind in DATATYPES.items()}


def write_answer(asked: Mapping[str, Any], found: Mapping[str, Any], model: ServedModel) -> Response:
    """The answer to a request: JSON, and after it the tensors that are wanted as bytes.

    Raises
    ------
    DataError
        If an output is asked for that the model does not give.
    """
    wanted = asked.get("outputs") or [{"name": name} for name in found]
    binary_all = bool(_parameters(asked).get("binary_data_output"))
    outputs, tail = [], []
    for one in wanted:
        name = one["name"]
        if name not in found:
            raise DataError(f"the model gives no output '{name[:64]}'; it gives {', '.join(found)}")
        values = np.asarray(found[name])
        entry: dict[str, Any] = {"name": name, "datatype": _NAMES[values.dtype.name], "shape": list(values.shape)}
        if _parameters(one).get("binary_data", binary_all):
            raw = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            flat = values.reshape(-1)
            entry["data"] = (
                [v if math.isfinite(v) else None for v in flat.tolist()] if values.dtype.kind == "f" else flat.tolist()
            )
        outputs.append(entry)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if isinstance(asked.get("id"), str):
        answer["id"] = asked["id"][:256]
    text = json.dumps(answer, allow_nan=False).encode()
    if not tail:
        return Response(text, media_type="application/json")
    headers = {_LENGTH: str(len(text))}
    return Response(b"".join([text, *tail]), media_type="application/octet-stream", headers=headers)
