"""Records of many requests at a time: few transactions, each request hears of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi")

from sagittal.errors import ServeError
from sagittal.serve.recorder import Recorder


class Trail:
    """Takes records, and is told when it fails."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.broken = False

    def record_all(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self.broken:
            raise ServeError("the audit trail cannot be written, so nothing was done")
        self.batches.append([str(record["actor"]) for record in records])


def test_records_that_come_while_one_is_written_go_together() -> None:
    trail = Trail()

    async def call() -> None:
        recorder = Recorder(trail)  # type: ignore[arg-type]
        await asyncio.gather(*(recorder.record(str(n), "predict", role="machine") for n in range(20)))
        assert trail.batches == [[str(n) for n in range(20)]]
        await recorder.record("last", "predict")
        assert trail.batches[1:] == [["last"]]
        trail.broken = True
        found = await asyncio.gather(*(recorder.record("x", "predict") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, ServeError) for one in found)
        trail.broken = False
        given_up = recorder.record("given up", "predict")
        kept = recorder.record("kept", "predict")
        given_up.cancel()
        await kept
        assert trail.batches[-1] == ["given up", "kept"], "what was begun is told"

    with ThreadPoolExecutor(1) as aside:  # a browser of another test may have its loop in this thread
        aside.submit(lambda: asyncio.run(call())).result()
