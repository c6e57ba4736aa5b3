"""A plot of benchmark figures by policy version, with their intervals."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.evaluation_report import Measurement

INTERVAL = "95% of resamples of the problems"


def draw(shown: "list[Measurement]", path: Path, *, title: str) -> Path:
    """Write a PNG with a line for each benchmark and way of asking: pass@1, or the average over samples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no state of pyplot's
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for comparison in dict.fromkeys(item.comparison for item in shown):
        line = [item for item in shown if item.comparison == comparison]
        metric = next((name for name in line[0].figures if name.startswith(("pass@1", "avg@"))), None)
        points = [(item.policy_version, item.figures[metric]) for item in line if metric in item.figures]
        if metric is None or not points:
            continue
        values = [point.value for _, point in points]
        below = [point.value - (point.value if point.low is None else point.low) for _, point in points]
        above = [(point.value if point.high is None else point.high) - point.value for _, point in points]
        named = metric if metric != "pass@1" else "pass@1, greedy" if points[0][1].temperature == 0 else metric
        axes.errorbar(
            [version for version, _ in points],
            values,
            yerr=[[max(0.0, size) for size in sizes] for sizes in (below, above)],
            fmt="o-",
            capsize=3,
            label=f"{line[0].benchmark} ({named})",
        )
    axes.set(xlabel="policy version", ylabel="share correct", ylim=(-0.02, 1.02), title=f"{title}: {INTERVAL}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.has_data():
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path
