"""A tree of DICOM files with a table of labels, keyed by study, series, patient or accession number."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError
from sagittal.read import columns
from sagittal.read.files import Group, image_files, sort_files
from sagittal.read.request import Request
from sagittal.read.sources import patient_key
from sagittal.read.studies import group_name, image_source
from sagittal.read.study_images import join_series, parse_images
from sagittal.read.table import names_images, open_table
from sagittal.read.table_boxes import BoxColumns, boxes_of_rows, find_box_columns, guess_class, unlisted_note
from sagittal.read.table_file import Rows, read_table
from sagittal.read.table_roles import find_roles, make_row_case

#: Key of the table -> the field of the index, finest first.
KEYS = {
    "SeriesInstanceUID": "series",
    "StudyInstanceUID": "study",
    "AccessionNumber": "accession",
    "PatientID": "patient",
}


def open_dicom_tree(request: Request) -> Dataset:
    """One case for each volume of a series whose study, series, patient or accession number stands in the table.

    Columns of boxes, as of LUNA, make objects; the rows of one series are then one case. Boxes that a study or patient
    of several volumes has, without saying in which, are reported as skipped.

    Headers alone are read. Names of cases are the modality, a hash of the series and what tells a volume from the others
    of its series; patients are hashed PatientIDs. Series that are not in the table, objects that are no images, and rows
    without series are reported as skipped. Where `images` names several series by patterns, each study is one case.

    Raises
    ------
    DataError
        If no column of the table holds identifiers of the tree, or a named column does not exist.
    """
    root = Path(request.source)
    patterns = parse_images(request.images) if request.images else {}
    if request.labels is None:
        raise DataError("a tree of DICOM files needs a table of labels: give it with labels=...")
    table = read_table(Path(request.labels), sheet=request.sheet)
    sorted_groups, skipped = sort_files(image_files(root))
    groups = [g for g in sorted_groups if g.dicom is not None]
    if not groups:
        raise DataError(f"'{root.name}' holds no DICOM images")
    try:
        column, keyword = match(table, groups, request.id_column)
    except DataError:
        if request.id_column is None and names_images(table, root):
            return open_table(request)  # the rows name files or folders instead
        raise
    boxes = find_box_columns(table) if request.kind in {None, "objects"} else None
    if boxes is not None:
        return _objects(request, table, boxes, (column, keyword), groups, skipped)
    roles = find_roles(table, request, {column})
    rows = {cell.strip(): row for row, cell in reversed(list(enumerate(table[column])))}
    scheme, truths = roles.truths(table)
    named: dict[int, list[tuple[str, Group]]] = defaultdict(list)
    for name, found in zip(_names(groups), groups, strict=True):
        row = rows.get(getattr(found.dicom, KEYS[keyword]))
        if row is None:
            skipped.append(Skipped(name, "a series without a row in the table", "no-truth"))
        else:
            named[row].append((name, found))
    cases = []
    for row in range(len(table[column])):
        if not named[row]:
            left = (
                ("the table names a study that was not found", "no-image")
                if row in rows.values()
                else ("a second row for the same study", "ambiguous")
            )
            skipped.append(Skipped(f"row-{row + 1:04d}", *left))
        if patterns and named[row]:
            joined, unfit = join_series(named[row], patterns)
            skipped += unfit
            named[row] = []
            for name, images in joined:
                first = next(iter(images.values()))
                sources = {key: image_source(name, found) for key, found in images.items()}
                who = patient_key(first.dicom.patient) if first.dicom and first.dicom.patient else None
                where = first.files[0].relative_to(root).parent.as_posix()
                cases.append(make_row_case(name, sources, table, row, roles, truths, source=where, patient=who))
        for name, found in named[row]:
            patient = patient_key(found.dicom.patient) if found.dicom and found.dicom.patient else None
            where = found.files[0].relative_to(root).parent.as_posix() + (f" ({found.reason})" if found.reason else "")
            cases.append(
                make_row_case(name, image_source(name, found), table, row, roles, truths, source=where, patient=patient)
            )
    notes = [f"studies by column '{column}' ({keyword})"]
    notes += _split_notes(groups)
    notes += roles.notes() if roles.patient else ["cases of one patient by PatientID in the files"]
    return Dataset(
        root.resolve().name,
        tuple(cases),
        scheme,
        columns=roles.clinical,
        skipped=tuple(skipped),
        layout="dicom_tree",
        notes=tuple(notes),
    )


def _objects(
    request: Request,
    table: Rows,
    boxes: BoxColumns,
    key: tuple[str, str],
    groups: list[Group],
    skipped: list[Skipped],
) -> Dataset:
    """The cases of a table with a row for each object."""
    root = Path(request.source)
    column, keyword = key
    if patterns := request.images:
        raise DataError(f"--images '{patterns}' joins series, but boxes lie in one: leave --images out")
    taken = {column, *boxes.names}
    target = request.target or guess_class(table, taken)
    roles = find_roles(table, replace(request, target=target), taken, labels=target is not None)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, cell in enumerate(table[column]):
        rows_of[cell.strip()].append(row)
    members: dict[str, list[tuple[str, Group]]] = defaultdict(list)
    for name, found in zip(_names(groups), groups, strict=True):
        members[getattr(found.dicom, KEYS[keyword])].append((name, found))
    chosen: list[tuple[str, Group, list[int]]] = []
    loose = 0
    for value, of in members.items():
        rows = rows_of.pop(value, [])
        if rows and len(of) > 1:
            why = f"the table has objects of its {keyword}, which has {len(of)} volumes: name them by SeriesInstanceUID"
            skipped += [Skipped(name, why, "ambiguous") for name, _ in of]
            continue
        loose += 0 if rows else len(of)
        if not rows and request.unlisted != "empty":
            skipped += [Skipped(name, "a series without a row in the table", "no-truth") for name, _ in of]
            continue
        chosen += [(name, found, rows) for name, found in of]
    for rows in rows_of.values():
        skipped.append(Skipped(f"row-{rows[0] + 1:04d}", "the table names a study that was not found", "no-image"))
    scheme, truths = boxes_of_rows(table, [rows for _, _, rows in chosen], boxes, target)
    cases = []
    for (name, found, rows), truth in zip(chosen, truths, strict=True):
        if isinstance(truth, str):
            skipped.append(Skipped(name, truth, "unreadable"))
            continue
        where = found.files[0].relative_to(root).parent.as_posix() + (f" ({found.reason})" if found.reason else "")
        patient = patient_key(found.dicom.patient) if found.dicom and found.dicom.patient else None
        if not rows:
            table_of = dict.fromkeys(roles.clinical)
            images = {"image": image_source(name, found)}
            cases.append(Case(name, patient or name, images, table_of, truth=truth, source=where))
            continue
        case = make_row_case(
            name, image_source(name, found), table, rows[0], roles, {rows[0]: truth}, source=where, patient=patient
        )
        # What differs between the rows of one series belongs to its objects, not to the case.
        same = {c: v if len({table[c][row] for row in rows}) == 1 else None for c, v in case.table.items()}
        cases.append(replace(case, table=same))
    notes = [f"studies by column '{column}' ({keyword})", boxes.note(), *unlisted_note(loose, request.unlisted)]
    notes += [
        *_split_notes(groups),
        *(roles.notes() if roles.patient else ["cases of one patient by PatientID in the files"]),
    ]
    return Dataset(
        root.resolve().name,
        tuple(cases),
        scheme,
        columns=roles.clinical,
        skipped=tuple(skipped),
        layout="dicom_tree",
        notes=tuple(notes),
    )


def match(table: Rows, groups: list[Group], column: str | None = None) -> tuple[str, str]:
    """The column that holds identifiers of the tree, and which ones.

    Raises
    ------
    DataError
        If none does.
    """
    if column is not None:
        column = columns.named(table, column, "identifier")
    best: tuple[int, str, str] = (0, "", "")
    for keyword, field in KEYS.items():
        known = {getattr(g.dicom, field) for g in groups} - {""}
        for name, cells in table.items():
            if column is None or name == column:
                hits = len(known & {cell.strip() for cell in cells})
                if hits > best[0]:
                    best = (hits, name, keyword)
    if not best[0]:
        raise DataError(
            (f"column '{column}'" if column else f"no column of the table ({', '.join(list(table)[:20])})")
            + f" holds a StudyInstanceUID, SeriesInstanceUID, PatientID or AccessionNumber of the {len(groups)} DICOM "
            "series found"
        )
    return best[1], best[2]


def _split_notes(groups: list[Group]) -> list[str]:
    split = {g.dicom.series for g in groups if g.dicom and g.label}
    count = sum(1 for g in groups if g.label)
    return [f"{len(split)} series of several volumes split into {count}"] if split else []


def _names(groups: list[Group]) -> list[str]:
    """A name for each group: modality, hash of the series, what tells it apart, and a number where that is not all."""
    count: Counter[str] = Counter()
    names = []
    for found in groups:
        name = group_name(found)
        count[name] += 1
        names.append(name if count[name] == 1 else f"{name}-{count[name]}")
    return names
