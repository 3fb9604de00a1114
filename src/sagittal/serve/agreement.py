"""How often readers agree with a model, over time, with intervals: the last word on each result counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request

from sagittal.database.schema import results, reviews, studies
from sagittal.serve.security import Caller, allow

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["pages"])
Reader = Annotated[Caller, Depends(allow("see"))]
By = Literal["day", "week", "month"]
_Z = 1.959963984540054  # of 95 %


def wilson(successes: int, n: int) -> tuple[float | None, float | None]:
    """Wilson's 95 % interval of a share; nothing where there are no trials.

    As :func:`sagittal.metrics.intervals.wilson`, without the statistics package that the process of the pages does not load.

    >>> [round(v, 4) for v in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if n == 0:
        return None, None
    share, z2 = successes / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def begin_of(at: float, by: By) -> str:
    """The day on which the period of a time begins, in UTC; weeks begin on Monday (ISO 8601).

    >>> begin_of(0.0, "week"), begin_of(0.0, "month")
    ('1969-12-29', '1970-01-01')
    """
    day = datetime.fromtimestamp(at, UTC).date()
    if by == "week":
        day -= timedelta(days=day.weekday())
    elif by == "month":
        day = day.replace(day=1)
    return day.isoformat()


def count_verdicts(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How often each verdict was given, and how often the model was agreed with."""
    counts = {"accept": 0, "correct": 0, "reject": 0}
    for row in rows:
        counts[row["verdict"]] += 1
    n = sum(counts.values())
    low, high = wilson(counts["accept"], n)
    return {**counts, "n": n, "agreement": counts["accept"] / n if n else None, "low": low, "high": high}


@router.get("/agreement")
def show_agreement(
    request: Request,
    _: Reader,
    model: Annotated[str, Query(max_length=256)] = "",
    by: By = "week",
) -> dict[str, Any]:
    """Agreement of readers with the models: all together, by model and version, and by period."""
    service: Service = request.app.state.service
    latest = sa.select(sa.func.max(reviews.c.id)).group_by(reviews.c.result_id)
    statement = (
        sa.select(reviews.c.at, reviews.c.verdict, results.c.model, results.c.version, results.c.role, results.c.state)
        .join(results, reviews.c.result_id == results.c.id)
        .join(studies, results.c.study_id == studies.c.id)
        .where(reviews.c.id.in_(latest))
        .order_by(reviews.c.at)
    )
    if model:
        statement = statement.where(results.c.model == model)
    with service.db.read() as c:
        rows = [dict(row) for row in c.execute(statement).mappings()]
    models: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    periods: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        models.setdefault((row["model"], row["version"], row["role"]), []).append(row)
        periods.setdefault((row["model"], begin_of(row["at"], by)), []).append(row)
    return {
        "by": by,
        "all": count_verdicts(rows),
        "models": [
            {"model": name, "version": version, "role": role, **count_verdicts(own)}
            for (name, version, role), own in sorted(models.items())
        ],
        "periods": [
            {"model": name, "begin": begin, **count_verdicts(own)} for (name, begin), own in sorted(periods.items())
        ],
    }
