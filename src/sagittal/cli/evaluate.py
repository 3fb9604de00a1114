"""``sagittal evaluate``: what a model is worth, on cases that it has not seen."""

from __future__ import annotations

from typing import Annotated

from sagittal.cli.command import Desk, command, source_of
from sagittal.cli.exits import GateMissed
from sagittal.cli.flags import Device, ModelPath, Output, Source, Target, flag
from sagittal.options import EvaluateOptions, ReadOptions


@command(
    brief="Measure a model on held-out cases.",
    reads=True,
    alias="test",
    examples="""
    sagittal evaluate runs/breastmnist medmnist:breastmnist --split test -o evidence/
    sagittal evaluate runs/chest studies/ --labels labels.csv --by sex --by scanner -o evidence/
    sagittal evaluate model/ held-out/ --require 'auc>=0.9' --require 'sensitivity.low>=0.8'
    """,
)
def evaluate(
    desk: Desk,
    model: ModelPath,
    source: Source = None,
    split: Annotated[
        str | None, flag("--split", metavar="NAME", help="train, val, test or all; test where the source has one.")
    ] = None,
    by: Annotated[
        list[str] | None, flag("--by", metavar="COLUMN", help="Break the scores down by this column; may be repeated.")
    ] = None,
    target: Target = None,
    output: Output = None,
    prevalence: Annotated[
        float | None, flag("--prevalence", metavar="P", help="Also give PPV and NPV at this frequency, such as 0.1.")
    ] = None,
    require: Annotated[
        list[str] | None,
        flag("--require", metavar="RULE", help="End in 5 unless it holds: 'auc>=0.9', 'auc.low>=0.85'."),
    ] = None,
    confidence: Annotated[float, flag("--confidence", metavar="P", help="Level of the intervals.")] = 0.95,
    resamples: Annotated[int, flag("--resamples", metavar="N", help="Bootstrap resamples of patients.")] = 1000,
    device: Device = "auto",
    seed: Annotated[int, flag("--seed", metavar="N", help="Of the bootstrap.")] = 0,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace evidence that is there.")] = False,
    *,
    read: ReadOptions,
) -> None:
    """Measure a model on held-out cases: each score with its interval, and a page with the evidence."""
    from sagittal import verbs
    from sagittal.cli.rules import miss, parse_rule
    from sagittal.cli.text import evidence_text

    rules = [parse_rule(text) for text in require or ()]
    evidence = verbs.evaluate(
        model,
        source_of(source, desk),
        split=split,
        by=tuple(by or ()),
        output=output,
        overwrite=overwrite,
        options=EvaluateOptions(
            read=read,
            target=target,
            device=device,
            resamples=resamples,
            seed=seed,
            confidence=confidence,
            prevalence=prevalence,
            reporter=desk.reporter,
        ),
    )
    values = evidence.to_json()
    desk.answer(values, evidence_text(values))
    if output is not None:
        desk.reporter.say(f"report: {output / 'report.html'}")
    missed = [text for text in (miss(rule, values) for rule in rules) if text]
    if missed:
        raise GateMissed("quality gate missed: " + "; ".join(missed))
