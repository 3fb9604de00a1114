"""``sagittal demo``: the whole journey, on synthetic studies or a public set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sagittal.cli.command import Desk, command
from sagittal.cli.flags import Budget, Seed, flag


@command(
    brief="Go the whole way on synthetic studies.",
    examples="""
    sagittal demo
    sagittal demo --data medmnist:breastmnist --budget 5m -o breast-demo
    """,
)
def demo(
    desk: Desk,
    output: Annotated[Path, flag("--output", "-o", metavar="DIR", help="Where everything is written.")] = Path("demo"),
    data: Annotated[
        str, flag("--data", metavar="SOURCE", help="phantom (synthetic chest CT), or a source such as medmnist:NAME.")
    ] = "phantom",
    budget: Budget = "2m",
    seed: Seed = 0,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace a demo that is there.")] = False,
) -> None:
    """Go the whole way, from studies to a report: ingest, train, evaluate, predict and explain.

    The chest CTs that it makes are synthetic.
    """
    from sagittal import demonstration

    path = demonstration.demo(output, data=data, budget=budget, seed=seed, overwrite=overwrite, reporter=desk.reporter)
    desk.answer({"report": path}, str(path))
