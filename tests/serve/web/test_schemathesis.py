"""Requests made of the API's own description, for every operation: nothing answers 5xx, whatever is sent."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

#: Operations that do not end by themselves, or end the test's own access.
_NOT = {
    ("get", "/api/changes"),
    ("post", "/api/logout"),
    ("delete", "/api/users/"),
    ("patch", "/api/users/"),
    ("delete", "/api/tokens/"),
}


def _fakes() -> Any:
    spec = importlib.util.spec_from_file_location("rest_fakes", Path(__file__).with_name("test_rest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def full(make_service: Any, run_service: Any, forge: Any) -> Any:
    """A service that holds a study and a model."""
    fakes = _fakes()
    running = run_service(make_service(pool=fakes.FakePool(fakes.make_model())))
    running.add(*forge.series(2))
    return running


def _run(running: Any, examples: int) -> dict[str, set[int]]:
    schemathesis = pytest.importorskip("schemathesis")
    described = httpx.get(f"{running.url}/openapi.json", headers=running.headers()).json()
    schema = schemathesis.openapi.from_dict(described)
    found: dict[str, set[int]] = {}
    with httpx.Client(headers=running.headers(), timeout=30, base_url=running.url) as client:
        for result in schema.get_all_operations():
            operation = result.ok()
            name = f"{operation.method.upper()} {operation.path}"
            if (operation.method.lower(), operation.path.partition("{")[0]) in _NOT:
                continue
            codes = found.setdefault(name, set())
            modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
            for mode in modes:
                try:
                    _send(client, operation.as_strategy(generation_mode=mode), running.url, name, codes, examples)
                except Exception as error:
                    if type(error).__name__ in {"Unsatisfiable", "Unsatisfied"}:
                        continue  # such as negative requests of an operation that takes anything
                    raise
    return found


def _send(client: httpx.Client, strategy: Any, url: str, name: str, codes: set[int], examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        made = case.as_transport_kwargs(base_url=url)
        headers = {
            key: value for key, value in dict(made.get("headers") or {}).items() if key.lower() != "authorization"
        }
        data = made.get("data")
        try:
            answer = client.request(
                made["method"],
                made["url"],
                params=made.get("params"),
                json=made.get("json"),
                content=data if isinstance(data, (bytes, str)) else None,
                headers=headers,
            )
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError, ValueError, TypeError):
            return  # what cannot be said in HTTP
        codes.add(answer.status_code)
        assert answer.status_code < 500, (name, answer.status_code, made)

    send()


def test_nothing_answers_5xx(full: Any) -> None:
    found = _run(full, 2)
    assert len(found) > 60
    reached = {name for name, codes in found.items() if codes & {200, 201, 202, 204, 400, 404, 406, 409, 415, 422}}
    assert {name: codes for name, codes in found.items() if name not in reached and name.startswith("GET")} == {}


@pytest.mark.slow
def test_nothing_answers_5xx_at_length(full: Any) -> None:
    _run(full, 15)
