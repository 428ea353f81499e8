"""A small plot as SVG: points in series, each series joined by a line, each point with a word beside it.

In: {series: [(x, y, word)]}, both axes' names. Out: a string of SVG in which everything is escaped. It knows nothing about what is plotted.
"""

import html
import math

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 24, 30, 40  # pixels round the axes
COLOURS = ("#0d9488", "#d97706", "#7c3aed", "#2563eb", "#db2777", "#64748b")


def scatter(series, x_name, y_name):
    """The plot; x begins at 0. At most six series have a colour of their own."""
    points = [point for row in series.values() for point in row]
    xs, ys = ticks(0, max(x for x, _, _ in points)), ticks(min(y for _, y, _ in points), max(y for _, y, _ in points))
    parts = [axes(xs, ys, x_name, y_name)]
    for i, (name, row) in enumerate(series.items()):
        at = [(across(x, xs), up(y, ys), word) for x, y, word in sorted(row)]
        parts.append(curve(name, at, COLOURS[i % len(COLOURS)], LEFT + 130 * i))
    label = html.escape(f"{y_name} against {x_name}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" style="font:12px sans-serif" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'{head} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def ticks(low, high):
    """Two to seven round numbers, evenly apart, that enclose low..high."""
    wide = max(high - low, 1e-9, abs(high) * 1e-3)
    unit = 10 ** math.floor(math.log10(wide / 4))
    step = next(unit * k for k in (1, 2, 5, 10) if wide / (unit * k) <= 5)
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step) + 1)
    return [i * step for i in range(first, last + 1)]


def across(x, xs):
    return LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)


def up(y, ys):
    return HEIGHT - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)


def axes(xs, ys, x_name, y_name):
    """Grid lines, their numbers, and the names of both axes."""
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines = [f'<line x1="{across(x, xs):.1f}" x2="{across(x, xs):.1f}" y1="{TOP}" y2="{floor}"/>' for x in xs]
    lines += [f'<line x1="{LEFT}" x2="{right}" y1="{up(y, ys):.1f}" y2="{up(y, ys):.1f}"/>' for y in ys]
    numbers = [f'<text x="{across(x, xs):.1f}" y="{floor + 15}" text-anchor="middle">{x:.4g}</text>' for x in xs]
    numbers += [f'<text x="{LEFT - 6}" y="{up(y, ys) + 4:.1f}" text-anchor="end">{y:.4g}</text>' for y in ys]
    names = f'<text x="{right}" y="{HEIGHT - 6}" text-anchor="end">{html.escape(x_name)}</text>'
    names += f'<text x="{LEFT}" y="{HEIGHT - 6}">{html.escape(y_name)}</text>'
    return f'<g class="grid" stroke="#8884">{"".join(lines)}</g>{"".join(numbers)}{names}'


def curve(name, at, colour, x):
    """A series: its name at the top, a line, and a dot with a word for each point."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in at)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/><text x="{x + 7:.1f}" y="{y - 6:.1f}">{html.escape(word)}</text>' for x, y, word in at]
    head = f'<circle cx="{x + 4}" cy="12" r="4"/><text x="{x + 13}" y="16">{html.escape(name)}</text>'
    return f'<g style="fill:{colour}">{head}<polyline points="{path}" style="fill:none;stroke:{colour};opacity:.4"/>{"".join(dots)}</g>'
