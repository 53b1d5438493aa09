"""A curve over a logarithmic axis as a small SVG, written without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 20, 36, 52
_TICKS = 5


def curve_svg(
    places: Sequence[float], values: Sequence[float], *, title: str, x_label: str, y_label: str, marked: int
) -> str:
    """Draw values over places on a logarithmic axis, one of them marked.

    Args:
        places: Positive numbers, ascending.
        values: One for each.
        title: What it shows.
        x_label: What the places are.
        y_label: What the values are.
        marked: Which point is marked and named.

    Returns:
        The SVG.
    """
    low, high = math.log10(places[0]), math.log10(places[-1])
    least, most = min(values), max(values)
    height = most - least or 1.0

    def x(place: float) -> float:
        return _LEFT + (math.log10(place) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (most - value) / height * (_HEIGHT - _TOP - _BOTTOM)

    bottom, middle = _HEIGHT - _BOTTOM, (_LEFT + _WIDTH - _RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(middle, 20, title, size=14),
        _text(middle, _HEIGHT - 12, x_label),
        f'<text x="16" y="{(_TOP + bottom) / 2:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(_TOP + bottom) / 2:.1f})">{escape(y_label)}</text>',
    ]
    for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1):
        at = x(10.0**power)
        parts += [_line(at, _TOP, at, bottom, "#ddd"), _text(at, bottom + 18, f"{10.0**power:g}")]
    for step in range(_TICKS):
        value = least + height * step / (_TICKS - 1)
        parts += [
            _line(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "#ddd"),
            _text(_LEFT - 8, y(value) + 4, f"{value:.6g}", anchor="end"),
        ]
    points = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in zip(places, values, strict=True))
    at, level = x(places[marked]), y(values[marked])
    anchor, shift = ("start", 8) if at < middle else ("end", -8)
    parts += [
        f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="2"/>',
        _line(at, _TOP, at, bottom, "#b03a2e"),
        f'<circle cx="{at:.1f}" cy="{level:.1f}" r="4" fill="#b03a2e"/>',
        _text(at + shift, bottom - 8, f"{places[marked]:g}", anchor=anchor),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
