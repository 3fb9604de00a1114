"""Dates and times of DICOM headers as seconds, for order and decay."""

from __future__ import annotations

from datetime import date
from typing import Any

#: Seconds of a day.
DAY_S = 86400.0


def time_s(text: Any) -> float | None:
    """Seconds since midnight of a DICOM time (VR TM); ``None`` where it is empty or no time.

    >>> time_s("013000.5"), time_s("01:30"), time_s(""), time_s("xx")
    (5400.5, 5400.0, None, None)
    """
    digits = str(text or "").strip().replace(":", "")
    whole, _, fraction = digits.partition(".")
    if not whole.isdecimal() or len(whole) not in {2, 4, 6} or (fraction and not fraction.isdecimal()):
        return None
    hours, minutes, seconds = (int(whole[n : n + 2] or 0) for n in (0, 2, 4))
    if hours > 23 or minutes > 59 or seconds > 60:  # 60 is a leap second
        return None
    return hours * 3600.0 + minutes * 60 + seconds + (float(f"0.{fraction}") if fraction else 0.0)


def date_s(text: Any) -> float | None:
    """Seconds of the midnight at which a DICOM date (VR DA) begins, on a clock of its own; ``None`` for no date.

    >>> date_s("20260302") - date_s("20260228") == 2 * DAY_S, date_s("20261350")
    (True, None)
    """
    digits = str(text or "").strip().replace(".", "")
    if len(digits) != 8 or not digits.isdecimal():
        return None
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).toordinal() * DAY_S
    except ValueError:
        return None


def datetime_s(text: Any) -> float | None:
    """Seconds of a DICOM date and time (VR DT) on the clock of :func:`date_s`; an offset from UTC is left out.

    >>> datetime_s("20260302013000.5+0100") == date_s("20260302") + 5400.5
    True
    """
    digits = str(text or "").strip().split("+")[0].split("-")[0]
    return moment_s(digits[:8], digits[8:])


def moment_s(day: Any, time: Any) -> float | None:
    """Seconds of a date and a time on the clock of :func:`date_s`; ``None`` unless both are given."""
    start, passed = date_s(day), time_s(time)
    return None if start is None or passed is None else start + passed
