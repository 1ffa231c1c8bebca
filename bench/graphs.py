"""The graphs of docs/benchmarks.md: bars, as SVG without a script, light and dark."""

import statistics
from xml.sax.saxutils import escape

import report

# (file, title, what of a sample, which works by their kind)
GRAPHS = (
    ("benchmarks-cost.svg", "CPU of the proxy, PgBouncer's being 1: less is better", "cost", ("transactions", "copy", "login")),
    ("benchmarks-tail.svg", "99th percentile of the latency, PgBouncer's being 1: less is better", "p99", ("transactions", "login")),
    ("benchmarks-memory.svg", "Memory of an idle client, PgBouncer's being 1: less is better", "cost", ("idle",)),
)
SERIES = (("pgusher", "ours"), ("epoll", "epoll"))
STYLE = """text { font: 13px sans-serif; fill: #1f2328 } .ours { fill: #1a6fb5 } .epoll { fill: #8a939c }
.one { stroke: #c0392b; stroke-dasharray: 4 3 } .paper { fill: #ffffff } .title { font-weight: bold }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .ours { fill: #58a6ff } .epoll { fill: #6e7681 } .paper { fill: #0d1117 } }"""
NAMES, BARS, NUMBERS, BAR = 150, 480, 60, 14


def values(samples, works, kinds, what):
    """(work, {target: median ratio}) of the works of these kinds that were measured beside the baseline."""
    for work in works:
        found = {
            target: statistics.median(ratios)
            for target, _ in SERIES
            if work.kind in kinds and (ratios := report.ratios(samples, work.name, target, what))
        }
        if found:
            yield work.name, found


def picture(title, rows):
    """One graph; rows as `values` gives them."""
    most = max([1.2, *(value for _, found in rows for value in found.values())])
    width, parts, top = NAMES + BARS + NUMBERS, [], 64
    shown = [series for series in SERIES if any(series[0] in found for _, found in rows)]
    for place, (target, kind) in enumerate(shown):
        left = NAMES + place * 110
        parts.append(f'<rect class="{kind}" x="{left}" y="36" width="12" height="12"/><text x="{left + 18}" y="47">{target}</text>')
    for work, found in rows:
        parts.append(f'<text x="{NAMES - 8}" y="{top + BAR * len(found) / 2 + 5}" text-anchor="end">{escape(work)}</text>')
        for target, kind in shown:
            if target in found:
                length = found[target] / most * BARS
                parts.append(f'<rect class="{kind}" x="{NAMES}" y="{top}" width="{length:.1f}" height="{BAR - 2}"/>'
                             f'<text x="{NAMES + length + 6:.1f}" y="{top + BAR - 3}">{found[target]:.2f}</text>')
                top += BAR
        top += 8
    one = NAMES + BARS / most
    parts.append(f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="56" y2="{top}"/>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + 8}" viewBox="0 0 {width} {top + 8}" role="img">'
            f"<title>{escape(title)}</title><style>{STYLE}</style><rect class=\"paper\" width=\"{width}\" height=\"{top + 8}\"/>"
            f'<text class="title" x="12" y="22">{escape(title)}</text>{"".join(parts)}</svg>\n')


def draw(samples, works):
    """(file, title, SVG) of every graph that has something to show."""
    for file, title, what, kinds in GRAPHS:
        if rows := list(values(samples, works, kinds, what)):
            yield file, title, picture(title, rows)
