"""The demonstration: the whole journey from phantoms, or any source, to a report, by the verbs a user would call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sagittal.errors import BudgetError
from sagittal.options import EvaluateOptions, ReadOptions, TrainOptions, parse_budget
from sagittal.progress import Quiet, Reporter
from sagittal.run_folder import claim_folder, save_config
from sagittal.verbs import evaluate, ingest, train


def demo(
    output: str | Path = "demo",
    *,
    data: str = "phantom",
    budget: str | float = "2m",
    seed: int = 0,
    studies: int = 72,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """The whole journey in one folder: ingest, train, evaluate, predict, explain.

    Parameters
    ----------
    output : path
    data : str
        ``phantom`` makes synthetic chest CT studies as DICOM; any source, such as ``medmnist:breastmnist``, is used as
        it is.
    budget : str or float
        For training.
    seed : int
    studies : int
        How many phantoms.
    overwrite : bool
    reporter : Reporter, optional

    Returns
    -------
    Path
        The report page.
    """
    from sagittal.evaluate.cases import held_out
    from sagittal.model.package import Model
    from sagittal.write.maps import explain_cases
    from sagittal.write.table import write_predictions

    talk = reporter or Quiet()
    folder = Path(output)
    parse_budget(budget)
    claim_folder(folder, what="a demo", overwrite=overwrite)
    save_config(folder, {"data": data, "budget": str(budget), "seed": seed, "output": str(folder)})
    source, read = data, ReadOptions()
    if data == "phantom":
        from sagittal.phantom import make_chest_ct

        talk.say(f"1/5 phantoms: {studies} synthetic chest CT studies of no real patient, written as DICOM")
        labels = make_chest_ct(folder / "data", studies=studies, seed=seed, reporter=talk)
        source, read = str(labels.parent / "studies"), ReadOptions(labels=str(labels))
    else:
        talk.say(f"1/5 data: {data}")
    target = "nodule" if data == "phantom" else None
    name = "synthetic chest CT" if data == "phantom" else None
    dataset = ingest(source, folder / "manifest", target=target, options=read, name=name, reporter=talk)
    talk.say(f"2/5 train: {len(dataset)} cases, budget {budget}")
    options = TrainOptions(reporter=talk, name="demo")
    try:
        run = train(folder / "manifest", budget=budget, output=folder / "run", seed=seed, options=options)
    except BudgetError as error:  # a busy machine is no reason to show nothing
        talk.say(f"{error} The demo goes on with twice the time.")
        options, budget = replace(options, overwrite=True), 2 * parse_budget(budget)
        run = train(folder / "manifest", budget=budget, output=folder / "run", seed=seed, options=options)
    talk.say("3/5 evaluate: the cases that were held out")
    evidence = evaluate(
        run.folder, folder / "manifest", output=folder / "evidence", options=EvaluateOptions(reporter=talk)
    )
    held, _ = held_out(dataset, None, splits_file=run.folder / "splits.json")
    chosen, loaded = held.cases[:4], run.model
    assert isinstance(loaded, Model)  # the question of the demo is one of classes
    talk.say(f"4/5 predict: {len(chosen)} held-out studies")
    write_predictions(list(loaded.predict_many(chosen, reporter=talk)), folder / "predictions.csv")
    talk.say("5/5 explain: where the model looked")
    (folder / "maps").mkdir(exist_ok=True)
    explain_cases(loaded, chosen[:1], folder / "maps", methods=("gradcam",), reporter=talk)
    kind = "synthetic " if data == "phantom" else ""
    found = evidence.overall["auc"]
    talk.say(f"AUC {found.value:.2f} ({found.low:.2f} to {found.high:.2f}) on {found.n} held-out {kind}studies")
    return folder / "evidence" / "report.html"
