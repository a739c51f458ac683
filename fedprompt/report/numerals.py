"""Numbers as people read them: sensible digits, units, a dash for what is not known."""

from __future__ import annotations

__all__ = ["DASH", "count", "difference", "duration", "share", "size"]

DASH = "–"


def difference(value: float | None) -> str:
    """A signed difference of two fractions, such as two Dice."""
    return DASH if value is None else f"{value:+.3f}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return DASH if value is None else f"{round(value):,}".replace(",", "\u202f")


def share(part: float | None, whole: float | None) -> str:
    """A part of a whole in per cent."""
    if part is None or not whole:
        return DASH
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return DASH
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 20 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
