"""Small SVG charts: bars side by side, and lines over a logarithmic axis. No library, no script, readable as text."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#2563eb", "#ea580c", "#64748b", "#16a34a", "#9333ea", "#ca8a04")
WIDTH = 760
_FONT = 'font-family="system-ui, sans-serif" font-size="12" fill="#1f2937"'
Series = Mapping[str, Sequence[tuple[float, float]]]


def bars(title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> str:
    """Horizontal bars: of each group one a series, None where it has none."""
    series = {name: values for name, values in series.items() if any(value is not None for value in values)}
    left, top, thick, gap = 20 + 7 * max(map(len, groups)), 44, 14, 12
    legend = _legend(list(series), top)
    block = thick * len(series) + gap
    height = top + 24 + block * len(groups) + 8
    most = max(value for values in series.values() for value in values if value is not None)
    parts = [legend]
    for row, group in enumerate(groups):
        y = top + 24 + row * block
        middle = y + thick * len(series) / 2 + 4
        parts.append(f'<text x="{left - 10}" y="{middle:.0f}" text-anchor="end">{escape(group)}</text>')
        for number, values in enumerate(series.values()):
            if (value := values[row]) is None:
                continue
            wide, line = (WIDTH - left - 90) * value / most, y + number * thick
            colour = COLOURS[number % len(COLOURS)]
            parts.append(f'<rect x="{left}" y="{line}" width="{wide:.1f}" height="{thick - 2}" fill="{colour}"/>')
            parts.append(f'<text x="{left + wide + 5:.1f}" y="{line + 10}" font-size="10">{short(value)}</text>')
    return _svg(f"{title}, {unit}", height, parts)


def lines(title: str, unit: str, axis: str, series: Series, *, logarithmic: bool = True) -> str:
    """Lines over what grows along ``axis``."""
    left, top, right, height = 70, 68, WIDTH - 30, 320
    bottom = height - 44
    points = [point for values in series.values() for point in values]
    xs = sorted({x for x, _ in points})
    most = _round_up(max(y for _, y in points))
    low, high = (math.log10(xs[0]), math.log10(xs[-1])) if logarithmic else (0.0, xs[-1])

    def across(x: float) -> float:
        place = math.log10(x) if logarithmic else x
        return left + (right - left) * ((place - low) / (high - low) if high > low else 0.5)

    def up(y: float) -> float:
        return bottom - (bottom - top) * y / most

    parts = [_legend(list(series), 44)]
    for step in range(5):
        y = most * step / 4
        parts.append(f'<line x1="{left}" x2="{right}" y1="{up(y):.1f}" y2="{up(y):.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{short(y)}</text>')
    parts += [f'<text x="{across(x):.1f}" y="{bottom + 16}" text-anchor="middle">{short(x)}</text>' for x in xs]
    parts.append(f'<text x="{(left + right) / 2:.0f}" y="{height - 8}" text-anchor="middle">{escape(axis)}</text>')
    for number, values in enumerate(series.values()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in values)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}"/>' for x, y in values]
    return _svg(f"{title}, {unit}", height, parts)


def short(value: float) -> str:
    """``1.2M``, ``120k``, ``12``, ``1.2``."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}".removesuffix(".0") + letter
    return f"{value:.1f}".removesuffix(".0")


def _round_up(value: float) -> float:
    size: float = 10 ** math.floor(math.log10(value))
    return next(step * size for step in (1, 2, 4, 6, 8, 10) if step * size >= value)


def _legend(names: list[str], y: int) -> str:
    parts, x = [], 16.0
    for number, name in enumerate(names):
        parts.append(f'<rect x="{x:.0f}" y="{y - 10}" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 15:.0f}" y="{y}">{escape(name)}</text>')
        x += 34 + 6.6 * len(name)
    return "".join(parts)


def _svg(title: str, height: int, parts: list[str]) -> str:
    # A ground of its own: pages are read on dark ones too.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" {_FONT}>\n<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f'<text x="16" y="22" font-size="14" font-weight="600">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
