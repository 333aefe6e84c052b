"""HTML of what a notebook shows. In: figures and pages. Out: elements that bring all they need."""

import html
from collections.abc import Iterable, Mapping, Sequence

STYLE = "border-collapse:collapse;font:13px sans-serif;margin:4px 0"
CELL = "padding:2px 10px 2px 0;text-align:left"
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 180, 52, 18
POINTS = 400


def page_frame(page: str, height: int) -> str:
    """Return a whole page as a part of the notebook, its styles apart from the notebook's."""
    return (
        f'<iframe srcdoc="{html.escape(page)}" style="width:100%;height:{height}px;border:1px solid #ccc" '
        'sandbox="allow-scripts"></iframe>'
    )


def figures(rows: Mapping[str, object]) -> str:
    """Return names and values as a table."""
    cells = "".join(
        f'<tr><th style="{CELL}">{html.escape(name)}</th><td style="{CELL}">{html.escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f'<table style="{STYLE}">{cells}</table>'


def curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """Return a line over steps as a drawing; nothing where there are fewer than two points."""
    if len(points) < 2:
        return ""
    every = -(-len(points) // POINTS)
    shown = [*points[::every], points[-1]]
    (left, right), (low, high) = _range(x for x, _ in shown), _range(y for _, y in shown)
    scale_x, scale_y = (WIDTH - LEFT) / (right - left or 1), (HEIGHT - BOTTOM - 10) / (high - low or 1)
    line = " ".join(f"{LEFT + (x - left) * scale_x:.1f},{10 + (high - y) * scale_y:.1f}" for x, y in shown)
    bottom = HEIGHT - BOTTOM
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" style="width:100%;max-width:{WIDTH}px;font:12px sans-serif" role="img" '
        f'aria-label="{html.escape(title)}"><rect x="{LEFT}" y="10" width="{WIDTH - LEFT}" height="{bottom - 10}" '
        f'fill="none" stroke="#ccc"/><polyline points="{line}" fill="none" stroke="#4c78a8" stroke-width="1.5"/>'
        f'<text x="0" y="20">{high:.3g}</text><text x="0" y="{bottom}">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">{left:,.0f}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">{right:,.0f}</text>'
        f'<text x="{LEFT + 8}" y="26" font-weight="bold">{html.escape(title)}</text></svg>'
    )


def lines(text: str) -> str:
    """Return lines as they are."""
    return f'<pre style="font:12px monospace;white-space:pre-wrap">{html.escape(text)}</pre>'


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return min(found), max(found)
