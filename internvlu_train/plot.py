"""A plot of the losses in a log."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 800, 480, 56
COLOURS = {"loss": "black", "text": "#c0392b", "flow": "#2471a3", "mse": "#2471a3", "l1": "#1e8449", "kl": "#b9770e"}
POINTS = 200  # per curve; each is the mean of several steps


def write_plot(log: Path, file: Path):
    """Plot every loss of a JSON-lines log against the steps, on a logarithmic axis. The log must not be empty."""
    # A line without an end is of a run that was killed while it wrote it.
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    curves = {name: curve(entries, name) for name in COLOURS}
    curves = {name: points for name, points in curves.items() if points}
    values = [value for points in curves.values() for _, value in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)

    def at(step: float, value: float) -> tuple[float, float]:
        x = MARGIN + step / entries[-1]["step"] * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - (math.log10(value) - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    for power in range(low, high + 1):
        left, right = at(0, 10**power), at(entries[-1]["step"], 10**power)
        pen.line([left, right], fill="#dddddd")
        pen.text((8, left[1] - 6), f"1e{power}", fill="black")
    pen.text((MARGIN, HEIGHT - MARGIN + 12), f"0 … {entries[-1]['step']} steps", fill="black")
    for row, (name, points) in enumerate(curves.items()):
        pen.line([at(*point) for point in points], fill=COLOURS[name], width=2)
        pen.text((WIDTH - MARGIN - 40, MARGIN + 14 * row), name, fill=COLOURS[name])
    picture.save(file)


def curve(entries: list[dict], name: str) -> list[tuple[float, float]]:
    """At most POINTS pairs (step, mean loss). Steps without that loss, and zeros, are left out."""
    found = [(entry["step"], entry[name]) for entry in entries if entry.get(name, 0) > 0]
    stretch = max(1, math.ceil(len(found) / POINTS))
    parts = [found[i : i + stretch] for i in range(0, len(found), stretch)]
    return [tuple(sum(column) / len(part) for column in zip(*part, strict=True)) for part in parts]
