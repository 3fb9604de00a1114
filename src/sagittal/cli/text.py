"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sagittal.options import format_seconds

if TYPE_CHECKING:
    from sagittal.check.findings import Findings
    from sagittal.prepare.plan import Plan


def table_text(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Columns under each other, two spaces between them; the first row is the head.

    >>> print(table_text([["case", "p"], ["a", "0.5"], ["long", "1"]], right=[1]))
    case    p
    a     0.5
    long    1
    """
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = (
        "  ".join(cell.rjust(widths[n]) if n in right else cell.ljust(widths[n]) for n, cell in enumerate(row))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def facts_text(facts: Mapping[str, Any], indent: int = 0) -> str:
    """Nested facts, one a line."""
    lines = []
    width = max((len(str(key)) for key, value in facts.items() if not isinstance(value, Mapping)), default=0)
    for key, value in facts.items():
        pad = " " * indent
        if isinstance(value, Mapping):
            inner = facts_text(value, indent + 2)
            lines.append(f"{pad}{key}:" + (f"\n{inner}" if inner else " none"))
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lines.append(f"{pad}{str(key).ljust(width)}  {'none' if shown in (None, '') else shown}")
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """Each choice of a plan with its reason."""
    values = plan.to_json()
    why = values.pop("why")
    expect = values.pop("expect")
    scheme = values.pop("scheme")
    for name in ("format", "task", "budget_s"):
        values.pop(name)
    lines = [
        f"question  {scheme['kind']}: {', '.join(scheme['classes'])} (from '{scheme['target']}')",
        f"budget    {format_seconds(plan.budget_s) if plan.budget_s else 'none'}",
    ]
    rows = [["choice", "value", "why"]]
    for section, fields in values.items():
        entries = (
            {f"{section}.{key}": value for key, value in fields.items()}
            if isinstance(fields, dict)
            else {section: fields}
        )
        for key, value in entries.items():
            if key in why or not _is_nothing(value):
                rows.append([key, _short(value), str(why.get(key, ""))])
    lines.append(table_text(rows))
    if expect:
        shown = (
            f"{key.removesuffix('_s').removesuffix('_mb').replace('_', ' ')} "
            + (
                format_seconds(value)
                if key.endswith("_s")
                else f"{value:,.0f} MB"
                if key.endswith("_mb")
                else f"{value:g}"
            )
            for key, value in expect.items()
        )
        lines.append("expected  " + ", ".join(shown))
    return "\n".join(lines)


def _is_nothing(value: Any) -> bool:
    return value in (None, False, 0, 0.0, [], "", {})


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(str(item.get("name", item)) for item in value)
    if isinstance(value, list):
        return "x".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def predictions_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Case, decision, what was found, what cannot be excluded, and what the gate says, from rows of predictions."""
    good = [row for row in rows if row["status"] != "failed"]
    if not good:
        return "no study could be answered"
    names = list(good[0])
    found = names[names.index("decision") + 1 : names.index("conformal_set")]
    sets = any(row["conformal_set"] for row in good) or any(name.startswith("p_") for name in found)
    lines = [["case", "decision", *(name.removeprefix("p_") for name in found), *(["not excluded"] * sets), "gate"]]
    for row in good:
        refused = row["status"] == "abstained"
        lines.append(
            [
                row["case"],
                ", ".join(row["decision"]) or ("none given" if refused else "-"),
                *(_cell(row.get(name)) for name in found),
                *([", ".join(row["conformal_set"]) or "-"] * sets),
                f"abstains: {row['gate_reason']}" if refused else "known",
            ]
        )
    return table_text(lines, right=range(2, 2 + len(found)))


def estimate_text(value: Any, *, count: bool = False) -> str:
    """A measure with its interval: ``0.912 (0.870 to 0.954)``; a count as a whole number."""
    point, low, high = (value.get(key) for key in ("value", "low", "high"))
    if point is None:
        return "undefined"
    if count:
        return f"{point:.0f}"
    return f"{point:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def evidence_text(values: Mapping[str, Any]) -> str:
    """The overall measures of ``evidence.json``, each with its interval and baseline; then those of each class."""
    from sagittal.report.measure_names import COUNTS

    overall = values["overall"]
    rows = [["measure", "value (interval)", "baseline", "n"]]
    for name, value in overall.items():
        if not name.startswith("baseline."):
            trivial = overall.get(f"baseline.{name}", {}).get("value")
            rows.append(
                [
                    name,
                    estimate_text(value, count=name in COUNTS),
                    "" if trivial is None else f"{trivial:.3f}",
                    str(value.get("n", "")),
                ]
            )
    parts = [table_text(rows, right=[3])]
    classes = values.get("classes") or {}
    names = list(dict.fromkeys(name for measures in classes.values() for name in measures))[:6]
    if names:
        head = [["class", *names]]
        body = [[key, *(estimate_text(m[n]) if n in m else "" for n in names)] for key, m in classes.items()]
        parts.append(table_text(head + body))
    return "\n\n".join(parts)


def dataset_text(facts: Mapping[str, Any]) -> str:
    """What a source holds, in one line or two."""
    line = f"{facts['cases']} cases of {facts['patients']} patients ({facts['layout'] or 'unknown layout'})"
    if facts["classes"]:
        what = {"objects": "boxes of ", "structures": "outlined "}.get(facts.get("kind") or "", "")
        shown = [f"{name}: {n}" for name, n in list(facts["classes"].items())[:12]]
        line += f"; {what}" + ", ".join(shown) + (", ..." if len(facts["classes"]) > 12 else "")
    if facts["splits"]:
        line += "; " + ", ".join(f"{name} {n}" for name, n in facts["splits"].items())
    if facts["skipped"]:
        line += f"\n{len(facts['skipped'])} were left out, the first: {facts['skipped'][0]['reason']}"
    return line


def explanations_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a map: case, method, class, and the scores beside those of a random map."""
    good = [row for row in rows if "error" not in row]
    if not good:
        return "no study could be explained"
    names = [key for key, value in good[0].items() if isinstance(value, (str, int, float)) or value is None]
    body = [[_cell(row.get(name)) for name in names] for row in good]
    return table_text([names, *body])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def findings_text(findings: Findings) -> str:
    """Findings grouped by how bad they are, each with its code and what to do; then whether training may start."""
    from sagittal.check.findings import SEVERITIES

    lines: list[str] = []
    for severity in SEVERITIES:
        found = findings.of(severity)
        if found:
            lines.append(f"{len(found)} {severity}{'s' * (len(found) > 1)}")
            lines += [f"  {finding.code}: {finding.message}" for finding in found]
    return "\n".join(
        [*lines, "ready for training" if findings.may_train else "not ready for training: mend the errors"]
    )
