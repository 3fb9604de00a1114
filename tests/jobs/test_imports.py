"""The process that serves pages loads no torch: models live in processes of their own."""

from __future__ import annotations

import subprocess
import sys

SERVICE = (
    "answer_job", "channel", "choose", "deliver_job", "fetch_job", "memory", "packages", "pool", "predict_now", "queue",
    "results", "rules", "standing", "supervise", "worker",
)  # fmt: skip


def test_what_the_service_imports_of_this_room_loads_neither_torch_nor_pandas() -> None:
    code = f"""
import importlib, sys
for name in {SERVICE!r}:
    importlib.import_module("sagittal.jobs." + name)
heavy = [name for name in ("torch", "pandas", "matplotlib", "sklearn", "highdicom", "monai") if name in sys.modules]
print(heavy)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_worker_that_only_waits_loads_no_torch() -> None:
    code = "import sys, sagittal.jobs.worker_process; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
