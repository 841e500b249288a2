"""The report of the doctor, as Markdown that fits into an issue, and as JSON."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .compare import Difference, summarise
from .files import FileReport
from .smoke import Outcome
from .speed import Timing

MARKDOWN, JSON = "report.md", "report.json"


@dataclass
class Report:
    """All that was found. about: {what: words} on the machine and the call. failures: checks that could not be
    done, and why."""

    about: dict[str, str]
    files: FileReport
    outcomes: list[Outcome] = field(default_factory=list)
    speed: dict = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """Everything that is wrong, in words; empty if nothing is."""
        found = [f"files: {problem}" for problem in self.files.problems]
        found += [f"{outcome.task}: {outcome.problem}" for outcome in self.outcomes if outcome.problem]
        for d in summarise(self.differences):
            if d.wrong:
                apart = "" if d.apart is None else f", {d.apart:.1e} from the official code in this dtype"
                bound = "" if d.bound is None else f", bound {d.bound:.1e}"
                words = f"comparison, {d.stage} in {d.dtype}, run {d.case}: error {d.error:.1e}{apart}{bound} {d.note}"
                found.append(words.rstrip())
        return found + self.failures

    def write(self, folder: Path):
        """Write both files."""
        (folder / MARKDOWN).write_text(self.markdown(), encoding="utf-8")
        values = asdict(self) | {"wrong": self.wrong}
        (folder / JSON).write_text(json.dumps(_plain(values), indent=1), encoding="utf-8")

    def markdown(self) -> str:
        """The whole report."""
        wrong = self.wrong
        verdict = "Nothing is wrong." if not wrong else "**Wrong:**\n\n" + "\n".join(f"- {one}" for one in wrong)
        parts = ["# InternVL-U doctor", verdict, table(("what", "value"), self.about.items()), self._files()]
        if self.outcomes:
            rows = ((o.task, f"{o.seconds:.1f}", o.result or "–", o.problem or "fine") for o in self.outcomes)
            parts += ["## Tasks", table(("task", "seconds", "result", "verdict"), rows)]
        if self.timings:
            parts += ["## Speed and memory", self._speed()]
        if self.differences:
            parts += ["## Against the official code", self._comparison()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _files(self) -> str:
        found = self.files
        rows = (
            (name, f"{entry['bytes']:,}", entry["sha256"][:16], entry["hub"] or "not asked")
            for name, entry in found.files.items()
        )
        parts = ["## Files", table(("file", "bytes", "SHA-256 begins", "hub"), rows)]
        return "\n\n".join([*parts, *(f"- {name}: {words}" for name, words in found.components.items())])

    def _speed(self) -> str:
        rows = (
            (
                t.stage,
                f"{t.seconds:.4g}",
                f"{t.peak / 2**20:,.0f}" if t.peak else "–",
                f"{t.flops / 1e9:,.1f}" if t.flops else "–",
                f"{t.weights / 2**20:,.0f}",
                f"{t.floor:.2g}" if t.floor else "–",
                f"{t.times_floor:.1f}" if t.floor else "–",
            )
            for t in self.timings
        )
        head = "stage", "seconds", "peak MiB", "GFLOP", "weights MiB", "floor, seconds", "times the floor"
        if not self.speed:
            return table(head, rows)
        flops, nbytes = self.speed["flops_per_second"] / 1e12, self.speed["bytes_per_second"] / 1e9
        measured = f"Measured on this machine: {flops:.3g} TFLOP/s of a matrix product, {nbytes:.3g} GB/s of a copy."
        return f"{measured}\n\n{table(head, rows)}"

    def _comparison(self) -> str:
        rows = (
            (
                d.stage,
                d.dtype,
                d.case,
                f"{d.error:.1e}",
                *("–" if value is None else f"{value:.1e}" for value in (d.official, d.apart, d.bound)),
                ("**wrong** " if d.wrong else "") + d.note,
            )
            for d in summarise(self.differences)
        )
        head = "stage", "dtype", "run", "our error", "the official code's", "from it", "bound", "note"
        return table(head, rows)


def table(head: tuple[str, ...], rows: Iterable[tuple]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _plain(value):
    """With words in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
