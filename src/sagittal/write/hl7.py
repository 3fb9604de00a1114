"""Answers to HL7 version 2.5.1: an ORU^R01 message, as hospital information systems take results (chapters 2 and 7)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

from pydicom.dataset import Dataset as Header

from sagittal.errors import ConfigError, nearest
from sagittal.labels import ClassScores
from sagittal.prediction import Failure, Prediction
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.hl7_text import CHARSETS, Parties, escape
from sagittal.write.sources import Source
from sagittal.write.statement import Statement, make_statement
from sagittal.write.terminology import Code, Term, Terminology

_UNITS = {"ml": "mL", "mm2": "mm2", "px2": "{pixels2}", "voxels": "{voxels}", "1": "1"}
_SCHEMES = {"SCT": "SCT", "DCM": "DCM"}
_DECISION = "decision^Decision of the model^99SAGITTAL"
_NO_DECISION = {"abstained": "82334004^Indeterminate^SCT", "refused": "373121007^Test not done^SCT"}


def make_hl7(
    answer: Prediction | Failure,
    source: Source,
    *,
    stamp: Stamp | None = None,
    statement: Statement | None = None,
    parties: Parties | None = None,
    charset: str = "utf-8",
    terminology: Terminology | None = None,
) -> bytes:
    """One message; segments end in a carriage return, as 2.5.2 has it.

    OBX 1 is the statement in words (FT). Of an answer an OBX follows for each class, structure or kind of object (NM, a
    probability, size or count, with its unit) and for each decision (CWE). All are preliminary (OBX-11 ``P``). Of an
    abstention or a refusal there is a decision alone, indeterminate or not done, with the status ``X``: no result available.
    The study and its series are named by UID.

    Parameters
    ----------
    answer : Prediction or Failure
    source : Source
        A message without a patient could not be filed anywhere: there is none of a study that is no DICOM.
    stamp : Stamp, optional
        The message's control id, time and model; where left out, a new id and the present time.
    statement : Statement, optional
    parties : Parties, optional
    charset : {"utf-8", "gb18030", "ascii"}
        Signs that it lacks become question marks.
    terminology : Terminology, optional

    Raises
    ------
    ConfigError
        If the character set is not known.
    """
    if charset not in CHARSETS:
        raise ConfigError(f"unknown character set '{charset}' of HL7. {nearest(charset, CHARSETS)}")
    stamp = stamp or Stamp.now(answer)
    statement = statement or make_statement(answer, stamp.model)
    header = source.header
    segments = [
        _message_header(stamp, parties or Parties(), CHARSETS[charset][0]),
        _patient(header),
        *_request(header, stamp, statement),
        *_observations(answer, header, stamp, statement, terminology or Terminology()),
    ]
    text = "".join(segment + "\r" for segment in segments)
    return text.encode(CHARSETS[charset][1], errors="replace")


def control_id(stamp: Stamp) -> str:
    """MSH-10: 20 signs that follow from the result, so that a message that is sent again is known as the same."""
    return hashlib.sha256(stamp.uid("message").encode()).hexdigest()[:20].upper()


def _message_header(stamp: Stamp, parties: Parties, charset: str) -> str:
    fields = [
        "MSH", "^~\\&", escape(parties.sending_application), escape(parties.sending_facility),
        escape(parties.receiving_application), escape(parties.receiving_facility), _moment(stamp), "",
        "ORU^R01^ORU_R01", control_id(stamp), "P", "2.5.1", "", "", "AL", "NE", "", charset,
    ]  # fmt: skip
    return "|".join(fields)


def _patient(header: Header) -> str:
    number = escape(_line(header.get("PatientID"))) or "UNKNOWN"  # PID-3 is required
    issuer = escape(_line(header.get("IssuerOfPatientID")))
    birth = _line(header.get("PatientBirthDate"))
    birth = birth if re.fullmatch(r"\d{8}", birth) else ""
    sex = {"M": "M", "F": "F", "O": "O"}.get(_line(header.get("PatientSex")).upper(), "U")
    return f"PID|1||{number}^^^{issuer}^MR||{_name(header.get('PatientName'))}||{birth}|{sex}"


def _name(value: object) -> str:
    """XPN of a DICOM name: alphabetic, ideographic and phonetic as repetitions (XPN-8 A, I, P)."""
    made = []
    for letter, group in zip("AIP", [str(one) for one in getattr(value, "components", ())], strict=False):
        parts = [escape(part.strip()) for part in group.split("^")]
        if any(parts):
            family, given, middle, prefix, suffix = (parts + [""] * 5)[:5]
            made.append(f"{family}^{given}^{middle}^{suffix}^{prefix}^^L^{letter}")
    return "~".join(made) or "^^^^^^U"


def _request(header: Header, stamp: Stamp, statement: Statement) -> list[str]:
    """OBR: the order it belongs to, by accession number, and what was done."""
    accession, when = escape(_line(header.get("AccessionNumber"))), _study_moment(header)
    question = escape((stamp.model.question or stamp.model.name)[:190])
    code = f"{_code_of(stamp.model.name)}^{question}^99SAGITTAL"
    fields = [""] * 26
    fields[0], fields[1] = "OBR", "1"
    fields[2] = fields[18] = accession  # PS3.4 and IHE keep it in OBR-18 too
    fields[3] = f"{control_id(stamp)}^{MANUFACTURER.upper()}"
    fields[4] = code
    fields[7] = when
    fields[22] = _moment(stamp)
    fields[24] = "RAD"
    fields[25] = "P" if statement.state == "answered" else "X"
    return ["|".join(fields)]


def _observations(
    answer: Prediction | Failure,
    header: Header,
    stamp: Stamp,
    statement: Statement,
    terminology: Terminology,
) -> list[str]:
    rows: list[tuple[str, str, str, str, str, str]] = []  # type, code, sub-id, value, unit, flag
    rows.append(("FT", "18782-3^Radiology Study observation (narrative)^LN", "1", escape(statement.text), "", ""))
    if statement.state == "answered":
        rows += _lines(answer, statement, terminology)
    else:
        rows.append(("CWE", _DECISION, "1", _NO_DECISION[statement.state], "", ""))
    for code, words, keyword in (
        ("110180", "Study Instance UID", "StudyInstanceUID"),
        ("112002", "Series Instance UID", "SeriesInstanceUID"),
    ):
        rows.append(("ST", f"{code}^{words}^DCM", "1", escape(_line(header.get(keyword))), "", ""))
    model = f"{escape(stamp.model.name[:190])}^{MANUFACTURER}^{escape(stamp.model.checksum)}^"
    made = []
    for n, (kind, code, sub, value, unit, flag) in enumerate(rows, start=1):
        fields = [""] * 19
        fields[:6] = ["OBX", str(n), kind, code, sub, value]
        fields[6] = f"{unit}^{unit}^UCUM" if unit else ""
        fields[8] = flag
        fields[11] = "X" if statement.state != "answered" and code == _DECISION else "P"
        fields[14] = _moment(stamp)
        fields[18] = model
        made.append("|".join(fields))
    return made


def _lines(
    answer: Prediction | Failure, statement: Statement, terminology: Terminology
) -> list[tuple[str, str, str, str, str, str]]:
    rows = []
    terms = terminology.find_all([one.name for one in statement.lines])
    classes = isinstance(answer, Prediction) and isinstance(answer.finding, ClassScores)
    for n, (line, term) in enumerate(zip(statement.lines, terms, strict=True), start=1):
        flag = "POS" if line.held else "NEG"
        if math.isfinite(line.size):
            what = "volume" if line.unit in {"ml", "voxels"} else "area"
            value, unit = _number(line.size), _UNITS.get(line.unit, line.unit)
        elif classes:
            what, value, unit = "probability", _number(line.probability), "1"
        else:
            what, value, unit = "count", str(line.count), "1"
        rows.append(("NM", _concept(term, what), str(n), value, unit, flag))
    decided = () if not isinstance(answer, Prediction) or not classes else answer.decision
    for n, term in enumerate(terminology.find_all(decided), start=1):
        rows.append(("CWE", _DECISION, str(n), _concept(term), "", ""))
    return rows


def _concept(term: Term, what: str = "") -> str:
    """CWE of a finding; where it is measured, what of it, as a text of our own beside the code."""
    code: Code = term.type
    name = escape(term.name[:180])
    own = f"^^{name} ({what})" if what else ""
    return f"{escape(code.value)}^{name}^{_SCHEMES.get(code.scheme, '99SAGITTAL')}{own}"


def _code_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _number(value: float) -> str:
    """NM allows no exponent (2.A.47)."""
    if not math.isfinite(value):
        return ""
    text = f"{value:.6f}" if abs(value) < 1 else f"{value:.3f}"
    return text.rstrip("0").rstrip(".") or "0"


def _moment(stamp: Stamp) -> str:
    return f"{stamp.made_at:%Y%m%d%H%M%S%z}"


def _study_moment(header: Header) -> str:
    date, clock = _line(header.get("StudyDate")), _line(header.get("StudyTime"))
    if not re.fullmatch(r"\d{8}", date):
        return ""
    match = re.match(r"([01]\d|2[0-3])[0-5]\d([0-5]\d)?", clock)
    return date + (match[0] if match else "")


def _line(value: object) -> str:
    """A header's value as one line of text; several values joined as DICOM does."""
    if value is None:
        return ""
    parts: Sequence[object] = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return " ".join("\\".join(str(part) for part in parts).split())
