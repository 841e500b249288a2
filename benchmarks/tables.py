"""Write results as the tables of BENCHMARKS.md."""

import json
from itertools import groupby
from pathlib import Path

START, END = "<!-- results: written by python -m benchmarks tables -->", "<!-- end of the results -->"
TITLES = {
    "official": "Against the official code",
    "comfyui": "In ComfyUI, against the core",
    "vae": "VAE, against ComfyUI's own",
    "transformers": "Text, against transformers' generate",
    "many": "Many texts together, against one by one",
    "many-pictures": "Many pictures together, against one by one",
    "batch": "`internvlu batch`, against a plain loop",
    "scaling": "Growth",
    "memory": "Memory, kernels and arithmetic of a GPU at 1024×1024, computed",
    "savings": "Guidance in a part of the steps, and EasyCache: what they save and change on the toy",
    "fp8": "Weights in 8 bits: errors of the first velocity, of the weights",
    "quantisation": "Weights in fewer bits",
    "sixteen": "Which matrices stay in 16 bits",
}


def read(folder: Path) -> list[dict]:
    lines = []
    for file in sorted(folder.glob("*.jsonl")):
        lines += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return lines


def update(document: Path, lines: list[dict]):
    """Replace the text between the two marks."""
    text = document.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    document.write_text(f"{before}{START}\n\n{render(lines)}\n{END}{after}", encoding="utf-8")


def render(lines: list[dict]) -> str:
    parts, titled, floors = [], set(), {line["command"]: line for line in lines if line["comparison"] == "floor"}
    for comparison, title in TITLES.items():
        chosen = [line for line in lines if line["comparison"] == comparison]

        def conditions(line: dict) -> tuple:
            return tuple(line[key] for key in ("device", "checkpoint", "dtype", "date", "command"))

        # Sorting is stable, so stages keep their order.
        for about, group in groupby(sorted(chosen, key=conditions), key=conditions):
            group = list(group)
            if title not in titled:
                titled.add(title)
                parts.append(f"### {title}\n")
            parts += [_about(group, floors.get(about[-1]), *about), ""]
            parts += [*TABLES.get(comparison, _sides)(group), ""]
    return "\n".join(parts)


def _about(group: list[dict], floor: dict | None, device, checkpoint, dtype, date, command) -> str:
    machines = {line["machine"] for line in group}
    versions = {}
    for line in group:
        for package, version in line.get("versions", {}).items():
            versions.setdefault(package, {}).setdefault(version, line["side"])
    told = [
        f"{package} " + " / ".join(f"{v} ({side})" if len(found) > 1 else v for v, side in found.items())
        for package, found in versions.items()
    ]
    first = f"`{command}`, {date}; {'; '.join(sorted(machines))}; weights `{checkpoint}` in {dtype}"
    if floor:
        flops, nbytes = floor["flops_per_second"] / 1e9, floor["bytes_per_second"] / 1e9
        first += f"; a matrix product reaches {flops:.0f} GFLOP/s, a copy {nbytes:.0f} GB/s"
    if loads := [line["load"] for line in group if "load" in line]:
        first += f"; load average {min(loads)}…{max(loads)}"
    return f"{first}; {', '.join(told)}." if told else f"{first}."


def _sides(group: list[dict]) -> list[str]:
    """A row per stage, a column per side. The first side is the core."""
    names = list(dict.fromkeys(line["side"] for line in group))
    ours, others = names[0], names[1:]
    head = ["stage", *names, *(f"{other} ÷ {ours}" for other in others), f"{ours}: floor ÷ time", "peak memory, GB"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for stage in dict.fromkeys(line["stage"] for line in group):
        found = {line["side"]: line for line in group if line["stage"] == stage}
        first = found[ours]
        share = f"{first['floor_seconds'] / first['seconds']:.0%}" if "floor_seconds" in first else ""
        peaks = [f"{found[name]['peak'] / 1e9:.2f}" for name in names if found[name].get("peak")]
        cells = [stage, *(_time(found[name]) for name in names)]
        cells += [f"**{found[other]['seconds'] / first['seconds']:.2f}**" for other in others]
        rows.append("| " + " | ".join([*cells, share, " / ".join(peaks)]) + " |")
    return rows


def _time(line: dict) -> str:
    """Median, with the range if there were several."""
    low, high = line["spread"]
    unit, factor = ("ms", 1e3) if line["seconds"] < 1 else ("s", 1)
    spread = f" ({low * factor:.3g}…{high * factor:.3g}, {line['repeats']}×)" if line["repeats"] > 1 else ""
    return f"{line['seconds'] * factor:.3g} {unit}{spread}"


def _scaling(group: list[dict]) -> list[str]:
    rows = ["| what grows | seconds | grows as | seconds ≈ a + b·x + c·x² | floor ÷ time |", "|---|---|---|---|---|"]
    for line in group:
        times = ", ".join(f"{point['x']}: {point['seconds']:.3g}" for point in line["points"])
        polynomial = ", ".join(f"{letter} {value:.2e}" for letter, value in zip("abc", line["polynomial"]))  # noqa: B905
        shares = ", ".join(f"{point['floor_seconds'] / point['seconds']:.0%}" for point in line["points"])
        rows.append(f"| {line['stage']} | {times} | x^{line['power']:.2f} | {polynomial} | {shares} |")
    return rows


def _fp8(group: list[dict]) -> list[str]:
    stages = list(dict.fromkeys(line["stage"] for line in group))
    rows = ["| scheme | " + " | ".join(stages) + " |", "|---" * (len(stages) + 1) + "|"]
    for scheme in dict.fromkeys(line["side"] for line in group):
        found = {line["stage"]: line for line in group if line["side"] == scheme}
        errors = [f"{found[stage]['velocity']:.2%}, {found[stage]['matrices']:.2%}" for stage in stages]
        rows.append("| " + " | ".join([scheme, *errors]) + " |")
    return rows


def _memory(group: list[dict]) -> list[str]:
    """Weights of the stage's network, what it works in beside them, and both, in 16 and 8 bits."""
    head = ["on the device", "weights, bf16", "weights, fp8", "beside them", "at once, bf16", "at once, fp8"]
    head += ["kernels, bf16", "kernels, fp8", "TFLOP"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in group:
        sizes = line["bf16"], line["fp8"], line["working"]
        sizes += line["bf16"] + line["working"], line["fp8"] + line["working_fp8"]
        cells = [line["stage"], *(f"{size / 1e9:.2f} GB" for size in sizes)]
        cells += [str(line["kernels"]), str(line["kernels_fp8"]), f"{line['flops'] / 1e12:.3g}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _savings(group: list[dict]) -> list[str]:
    """Rows are branches of a step. The first line is the one without any of it."""
    head = ["20 steps with", "rows of the network", "rows saved", "PSNR, median", "PSNR, least", "right pictures"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in group:
        changed = line["rows"] != group[0]["rows"]
        levels = [f"{line[key]:.1f} dB" if changed else "" for key in ("psnr", "least")]
        saved = f"{1 - line['rows'] / group[0]['rows']:.0%}" if changed else ""
        cells = [line["stage"], str(line["rows"]), saved, *levels, f"{line['right']} of {line['pictures']}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _quantisation(group: list[dict]) -> list[str]:
    """A row for each format. Sizes are of the released networks, computed; all else is of the toy unless it says so."""
    head = ["format", "on disk", "drawing 1024×1024", "velocity", "velocity, recorded", "PSNR", "ViT distance"]
    head += ["GenEval", "questions", "a step"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in group:
        cells = [line["stage"], f"{line['disk'] / 1e9:.2f} GB"]
        cells += [f"{line['drawing'] / 1e9:.2f} GB" if "drawing" in line else ""]
        cells += [f"{line[key]:.2%}" for key in ("velocity", "recorded")]
        cells += [f"{line['psnr']:.1f} dB" if line["psnr"] else "equal", f"{line['distance']:.4f}"]
        cells += [f"{line['geneval']:.3f}", f"{line['questions']:.3f}", f"{line['step'] * 1e3:.0f} ms"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _sixteen(group: list[dict]) -> list[str]:
    """A row for each group of matrices, a column for each format: errors of velocity, hidden states and logits."""
    names = list(dict.fromkeys(line["side"] for line in group))
    rows = ["| in fewer bits | values | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for stage in dict.fromkeys(line["stage"] for line in group):
        found = {line["side"]: line for line in group if line["stage"] == stage}
        errors = [", ".join(f"{found[name][key]:.2%}" for key in ("velocity", "hidden", "logits")) for name in names]
        rows.append("| " + " | ".join([stage, f"{found[names[0]]['values'] / 1e6:.0f} M", *errors]) + " |")
    return rows


def _batch(group: list[dict]) -> list[str]:
    rows = ["| on one thread each | rows per second | time more than the loop needs |", "|---|---|---|"]
    for line in group:
        more = f"{line['overhead']:+.1%}" if line is not group[0] else ""
        rows.append(f"| {line['stage']} | {1 / line['per_row']:.3g} | {more} |")
    return rows


def _many(group: list[dict]) -> list[str]:
    """A row for each number of texts: tokens per second of decoding; seconds of reading the prompts, and of all."""
    rows = [
        "| texts | decoding, tokens/s: together | one by one | ratio | reading the prompts | ratio | all | ratio |",
        "|---" * 8 + "|",
    ]
    for count in dict.fromkeys(line["texts"] for line in group):
        seconds = {(line["side"], line["stage"]): line["seconds"] for line in group if line["texts"] == count}
        steps = max(line["tokens"] for line in group) - 1
        sides = "together", "one by one"
        rates = [count * steps / (seconds[side, "text, all"] - seconds[side, "text, reading"]) for side in sides]
        cells = [str(count), *(f"{rate:.3g}" for rate in rates), f"**{rates[0] / rates[1]:.2f}**"]
        for stage in ("text, reading", "text, all"):
            together, alone = (seconds[side, stage] for side in sides)
            cells += [f"{together:.3g} / {alone:.3g} s", f"{alone / together:.2f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


TABLES = {
    "many": _many,
    "batch": _batch,
    "scaling": _scaling,
    "fp8": _fp8,
    "memory": _memory,
    "savings": _savings,
    "quantisation": _quantisation,
    "sixteen": _sixteen,
}
