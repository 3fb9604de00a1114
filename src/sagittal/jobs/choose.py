"""Which model sees which series of a complete study, and why the others are not used.

Two layers: :func:`choose_series` decides for one model from facts alone; :func:`choose_for_study` does it for every model of
the service in one transaction, writes the reasons down and queues one job for each model and content of its inputs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from sagittal.database.queue import enqueue
from sagittal.database.schema import choices, instances, jobs, series, studies
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.queue import cancel_in
from sagittal.jobs.rules import Match, SeriesFacts, SeriesRule, rank, usable
from sagittal.jobs.standing import refresh_study

_WORDS = {"thinnest": "thinner slices", "most": "more images", "newest": "newer images"}


@dataclass(frozen=True)
class Choice:
    """What a model is given of a study.

    Parameters
    ----------
    inputs : mapping of str to int
        Name of the model's image -> the series; empty where nothing fits.
    verdicts : mapping of int to Match
        Of every series: whether it is used, and why or why not.
    reason : str
        Why nothing fits, in words; empty where something does.
    """

    inputs: Mapping[str, int] = field(default_factory=dict)
    verdicts: Mapping[int, Match] = field(default_factory=dict)
    reason: str = ""


def choose_series(model: ServedModel, found: Sequence[SeriesFacts]) -> Choice:
    """The best series for each input of a model, by its rules and by what it was made for.

    Parameters
    ----------
    model : ServedModel
    found : sequence of SeriesFacts
        Of the complete series of one study.

    Notes
    -----
    A model with several inputs gets all of them or nothing; no series is used for two.
    """
    wanted: dict[str, list[SeriesRule]] = {name: [] for name in model.use.images}
    alone = len(wanted) == 1
    for rule in model.entry.series:
        for name in wanted if alone and not rule.image else [rule.image]:
            wanted[name].append(rule)
    inputs: dict[str, int] = {}
    verdicts: dict[int, Match] = {}
    missing = []
    for name, rules in wanted.items():
        left = [facts for facts in found if facts.id not in inputs.values()]
        best, said = _best(model, rules or [SeriesRule()], left)
        if not alone:
            said = {key: Match(one.fits, f"{name}: {one.reason}") for key, one in said.items()}
        if best is None:
            missing.append(name)
        else:
            inputs[name] = best
        for key, one in said.items():
            if key not in verdicts or one.fits:
                verdicts[key] = one
    if not missing:
        return Choice(inputs, verdicts)
    if not found:
        return Choice({}, {}, "the study holds no complete series")
    if inputs:
        lacks = f"no series for {', '.join(missing)}, which the model needs as well"
        for key in inputs.values():
            verdicts[key] = Match(False, f"{verdicts[key].reason}; not used, as there is {lacks}")
        return Choice({}, verdicts, lacks)
    return Choice({}, verdicts, _summary(list(verdicts.values())))


def _best(
    model: ServedModel, rules: Sequence[SeriesRule], found: Sequence[SeriesFacts]
) -> tuple[int | None, dict[int, Match]]:
    """The series that is used for one input, by the first rule that any fits; and the verdict on each."""
    said: dict[int, Match] = {}
    for facts in found:
        said[facts.id] = _first_hurdle(model, rules, facts)
    for rule in rules:
        fitting = sorted(
            (facts for facts in found if _passes(model, rule, facts).fits), key=lambda facts: rank(rule, facts)
        )
        if not fitting:
            continue
        best, *others = fitting
        why = f"the best of {len(fitting)} that fit: {_WORDS[rule.prefer]}" if others else "the only one that fits"
        said[best.id] = Match(True, why)
        for other in others:
            same = rank(rule, other)[0] == rank(rule, best)[0]
            better = "another that fits as well is used" if same else f"another has {_WORDS[rule.prefer]}"
            said[other.id] = Match(False, f"fits, but {better}")
        for facts in found:
            if facts.id != best.id and said[facts.id].fits:
                said[facts.id] = Match(False, "fits a rule of lower preference")
        return best.id, said
    return None, said


def _first_hurdle(model: ServedModel, rules: Sequence[SeriesRule], facts: SeriesFacts) -> Match:
    verdicts = [_passes(model, rule, facts) for rule in rules]
    return next((one for one in verdicts if one.fits), verdicts[0])


def _passes(model: ServedModel, rule: SeriesRule, facts: SeriesFacts) -> Match:
    for verdict in (usable(facts, captures=rule.captures), rule.match(facts), model.use.match(facts)):
        if not verdict.fits:
            return verdict
    return verdict


def _summary(verdicts: Sequence[Match]) -> str:
    reasons = list(dict.fromkeys(one.reason for one in verdicts if not one.fits))
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else "")


# In the database -----------------------------------------------------------------------------------------------------


def choose_for_study(
    c: sa.Connection, study_id: int, models: Sequence[ServedModel], *, off: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Choose for every model, write down why, queue what is to be answered; in a transaction that is being written.

    Parameters
    ----------
    c : sqlalchemy.Connection
    study_id : int
    models : sequence of ServedModel
    off : frozenset of str
        Names of models that are switched off.

    Returns
    -------
    dict
        ``queued``: keys of jobs; ``reasons``: by model why not; or ``waits``: how many series are still coming, in which
        case nothing was changed, because each of them queues the choice again when it is complete.
    """
    study = c.execute(sa.select(studies).where(studies.c.id == study_id)).mappings().first()
    if study is None or study["deleted_at"] is not None:
        return {"gone": True}
    rows = c.execute(sa.select(series).where(series.c.study_id == study_id).order_by(series.c.id)).mappings().all()
    facts = {row["id"]: read_facts(c, dict(row)) for row in rows}
    coming = [row for row in rows if row["complete_at"] is None and usable(facts[row["id"]], captures=True).fits]
    if coming:
        return {"waits": len(coming)}
    complete = [row for row in rows if row["complete_at"] is not None]
    revisions = {row["id"]: row["revision"] for row in complete}
    queued, reasons = [], {}
    for model in models:
        if model.name in off:
            reasons[model.label] = "switched off"
            continue
        choice = choose_series(model, [facts[row["id"]] for row in complete])
        _write_down(c, study_id, model, choice, revisions)
        if choice.inputs:
            queued.append(_queue_answer(c, dict(study), model, choice.inputs))
        else:
            reasons[model.label] = choice.reason
            cancel_in(c, _open_answers(c, study_id, model.checksum), "nothing of the study fits the model any more")
    refresh_study(c, study_id, why=_why_not(models, reasons))
    return {"queued": queued, "reasons": reasons}


def _why_not(models: Sequence[ServedModel], reasons: Mapping[str, str]) -> str:
    """What the worklist says of a study that no answering model is for."""
    told = [f"{m.name}: {reasons[m.label]}" for m in models if m.answers and reasons.get(m.label)]
    return "; ".join(told) if told else "no model of the service answers"


def read_facts(c: sa.Connection, row: Mapping[str, Any]) -> SeriesFacts:
    """What rules look at of one series, from its row and those of its instances."""
    of = instances.c.series_id == row["id"]
    images, height, width = c.execute(
        sa.select(
            sa.func.sum(instances.c.frames), sa.func.max(instances.c.rows), sa.func.max(instances.c.columns)
        ).where(of)
    ).one()
    kinds = c.execute(sa.select(instances.c.sop_class_uid).where(of).distinct()).scalars().all()
    damaged = c.execute(sa.select(sa.func.count()).where(of, instances.c.damage != "")).scalar() or 0
    known = row["facts"] or {}
    problem = row["problem"] or (f"{damaged} of its files are missing or altered" if damaged else "")
    size = (float(images or 0), float(height), float(width)) if height and width else ()
    return SeriesFacts(
        id=row["id"],
        modality=row["modality"],
        body_part=row["body_part"],
        description=row["description"],
        manufacturer=str(known.get("manufacturer") or ""),
        thickness_mm=_number(known.get("thickness_mm")),
        contrast=known.get("contrast") if isinstance(known.get("contrast"), bool) else None,
        images=int(images or 0),
        size=size,
        spacing_mm=_spacing(known),
        newest=row["changed_at"],
        sop_classes=frozenset(kinds),
        own=row["completed_by"] == "result",
        problem=problem,
    )


def _spacing(known: Mapping[str, Any]) -> tuple[float, ...]:
    """(slices, rows, columns) in mm; empty where the header does not say all: the model's process measures it again.

    A slice's thickness is not its distance from the next, so it does not stand in for it.
    """
    plane = known.get("pixel_mm")
    if not isinstance(plane, (list, tuple)) or len(plane) != 2:
        return ()
    values = [_number(one) for one in (known.get("between_mm"), *plane)]
    return tuple(v for v in values if v) if all(values) else ()


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if 0 <= found < float("inf") else None


def inputs_hash(c: sa.Connection, inputs: Mapping[str, int]) -> str:
    """SHA-256 over what a model is given: the hash of each file of its series, under the name of the input."""
    digest = hashlib.sha256()
    for name, series_id in sorted(inputs.items()):
        hashes = c.execute(
            sa.select(instances.c.sha256).where(instances.c.series_id == series_id).order_by(instances.c.sha256)
        ).scalars()
        for one in hashes:
            digest.update(f"{name} {one}\n".encode())
    return digest.hexdigest()


def _write_down(
    c: sa.Connection, study_id: int, model: ServedModel, choice: Choice, revisions: Mapping[int, int]
) -> None:
    for series_id, verdict in choice.verdicts.items():
        same = sa.and_(
            choices.c.series_id == series_id,
            choices.c.revision == revisions[series_id],
            choices.c.model == model.label,
        )
        values = {"used": verdict.fits, "reason": verdict.reason, "at": time.time()}
        if not c.execute(sa.update(choices).where(same).values(**values)).rowcount:
            c.execute(
                sa.insert(choices).values(
                    study_id=study_id,
                    series_id=series_id,
                    revision=revisions[series_id],
                    model=model.label,
                    **values,
                )
            )


def _queue_answer(c: sa.Connection, study: Mapping[str, Any], model: ServedModel, inputs: Mapping[str, int]) -> str:
    """Queue the answer to these inputs, and cancel those to earlier ones of the same study."""
    study_id, content = int(study["id"]), inputs_hash(c, inputs)
    key = f"answer:{model.checksum}:{study_id}:{content}"
    payload = {
        "model": model.name,
        "checksum": model.checksum,
        "role": model.entry.role,
        "series": dict(inputs),
        "inputs": content,
    }
    priority = int(study["urgency"]) + model.entry.urgency
    if enqueue(c, "answer", key, payload, priority=priority, study_id=study_id) is None:
        # The same content again. Only where it was cancelled, in favour of slices that are gone, is there something to do.
        back = {"state": "waiting", "attempts": 0, "due_at": 0.0, "error": "", "finished_at": None}
        c.execute(sa.update(jobs).where(jobs.c.key == key, jobs.c.state == "cancelled").values(**back))
    older = _open_answers(c, study_id, model.checksum, without=key)
    cancel_in(c, older, "replaced: the study has other images now")
    return key


def _open_answers(c: sa.Connection, study_id: int, checksum: str, without: str = "") -> list[int]:
    of = sa.and_(
        jobs.c.study_id == study_id,
        jobs.c.kind == "answer",
        jobs.c.state.in_(("waiting", "leased")),
        jobs.c.key.startswith(f"answer:{checksum}:", autoescape=True),
        jobs.c.key != without,
    )
    return list(c.execute(sa.select(jobs.c.id).where(of)).scalars())
