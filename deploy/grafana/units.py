"""Numbers as Grafana writes them, for the units that the panels use."""

from __future__ import annotations

_SECONDS = ((1e-6, 1e6, "µs"), (1e-3, 1e3, "ms"), (1.0, 1.0, "s"), (60.0, 1 / 60, "min"))
_LONG = ((3600.0, 1 / 3600, "h"), (86400.0, 1 / 86400, "days"))
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def format_value(value: float, unit: str) -> str:
    """`value` with its unit, in three digits or so."""
    if unit == "percentunit":
        return f"{_short(100 * value)} %"
    if unit == "s":
        return _scaled_seconds(value)
    if unit == "bytes":
        return _scaled_bytes(value)
    if unit == "reqps":
        return f"{_short(value)} req/s"
    if unit.startswith("suffix:"):
        return _short(value) + unit.removeprefix("suffix:")
    if unit in ("none", "short"):
        return _short(value)
    raise ValueError(f"no picture has used the unit {unit!r} yet; add it to units.py")


def _short(value: float) -> str:
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _scaled_seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    scales = [scale for scale in (*_SECONDS, *_LONG) if abs(value) >= scale[0]]
    _, factor, name = scales[-1] if scales else _SECONDS[0]
    return f"{_short(value * factor)} {name}"


def _scaled_bytes(value: float) -> str:
    power = 0
    while abs(value) >= 1024 and power < len(_BYTES) - 1:
        value, power = value / 1024, power + 1
    return f"{_short(value)} {_BYTES[power]}"
