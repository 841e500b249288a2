"""Public benchmarks: read their files of prompts or questions, and write pictures or answers in their own layouts.

Each benchmark is a function of a Run that yields what is still to be asked (see rows.py). Nothing is downloaded, and
scoring is left to the scripts of each benchmark, which read these layouts. Outputs that exist are not made again.
  GenEval    djghosh13/geneval, evaluation/evaluate_images.py
  DPG-Bench  TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py
  OCRBench   Yuliang-Liu/MultimodalOCR, OCRBench/scripts
  MMMU       MMMU-Benchmark/MMMU, eval/main_parse_and_eval.py
  MME        BradyFU/Awesome-Multimodal-Large-Language-Models, eval_tool/calculation.py
"""

import ast
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from internvlu_core.batch.results import Result
from internvlu_core.errors import InputError
from internvlu_core.imaging import open_image

from .rows import Asked, data_uri

OPTION_PROMPT = "Answer with the option's letter from the given choices directly."
SHORT_PROMPT = "Answer the question using a single word or phrase."
MOST_MMMU_IMAGES = 7


@dataclass(frozen=True)
class Run:
    """What to read and write. images: the folder of the pictures, if it is not that of the questions.

    size: (width, height) of drawn pictures; None for the checkpoint's own. samples: pictures per prompt. seed: of a
    prompt's noise.
    """

    source: Path
    out: Path
    images: Path | None = None
    size: tuple[int | None, int | None] = (None, None)
    samples: int = 4
    steps: int = 20
    seed: int = 0
    max_tiles: int = 1
    max_new_tokens: int = 512

    def pictures(self, prompt: str, keep: Callable[[list[Image.Image]], None]) -> Asked:
        """Draw the samples of one prompt."""
        row = {"task": "generate", "prompt": prompt, "n": self.samples, "steps": self.steps, "seed": self.seed}
        row |= {side: pixels for side, pixels in zip(("width", "height"), self.size, strict=True) if pixels}
        return Asked(row, lambda result: keep([open_image(io.BytesIO(content)) for content in result.images]))

    def answer(self, question: str, images: list[str], keep: Callable[[str], None]) -> Asked:
        """Answer one question, greedily. images: as a row has them."""
        row = {"task": "answer", "prompt": question, "images": images}
        row |= {"max_tiles": self.max_tiles, "max_new_tokens": self.max_new_tokens}

        def strip(result: Result):
            keep(result.text.strip())

        return Asked(row, strip)


# Pictures


def geneval(run: Run) -> Iterator[Asked]:
    """evaluation_metadata.jsonl → OUT/00000/metadata.jsonl and OUT/00000/samples/00000.png, …"""
    for index, line in enumerate(lines_of(run.source)):
        metadata = parse_json(line, f"{run.source}, line {index + 1}")
        prompt, folder = field(metadata, "prompt", run.source), run.out / f"{index:05}"
        paths = [folder / "samples" / f"{k:05}.png" for k in range(run.samples)]

        def keep(pictures: list[Image.Image], metadata=metadata, folder=folder, paths=paths):
            write_text(folder / "metadata.jsonl", json.dumps(metadata))
            for path, picture in zip(paths, pictures, strict=True):
                save(picture, path)

        if not all(path.exists() for path in paths):
            yield run.pictures(prompt, keep)


def dpg(run: Run) -> Iterator[Asked]:
    """A folder of prompts NAME.txt → OUT/NAME.png: a grid of four pictures, or one picture if samples is 1."""
    if run.samples not in (1, 4):
        raise InputError(f"samples is {run.samples}; DPG-Bench reads 1 or 4 pictures per prompt")
    for prompt in files(run.source, "*.txt"):
        path = run.out / f"{prompt.stem}.png"
        if not path.exists():
            yield run.pictures(read_text(prompt).strip(), lambda pictures, path=path: save(grid(pictures), path))


def grid(pictures: list[Image.Image]) -> Image.Image:
    """Up to four pictures of equal size, row by row in two columns; a single picture as it is."""
    width, height = pictures[0].size
    if len(pictures) == 1:
        return pictures[0]
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % 2 * width, k // 2 * height))
    return sheet


# Answers


def ocrbench(run: Run) -> Iterator[Asked]:
    """OCRBench.json, a list of {image_path, question, answers, type, …} → the same with "predict", in the file OUT."""
    records = parse_json(read_text(run.source), run.source)
    known = {} if not run.out.exists() else {key(r): r for r in parse_json(read_text(run.out), run.out)}
    for record in records:
        if "predict" in known.get(key(record), {}):
            record["predict"] = known[key(record)]["predict"]
    for record in records:
        if "predict" not in record:
            picture = picture_folder(run) / field(record, "image_path", run.source)

            def keep(answer: str, record=record):
                record["predict"] = answer
                write_text(run.out, json.dumps(records, indent=4, ensure_ascii=False))

            yield run.answer(field(record, "question", run.source), [named(picture)], keep)


def key(record: dict) -> tuple:
    return record.get("image_path"), record.get("question")


def mmmu(run: Run) -> Iterator[Asked]:
    """Questions (a parquet or JSON file, or a folder of them) → OUT/SUBJECT/output.json, each a list of answers."""
    answers: dict[Path, list[dict]] = {}
    for path in [run.source] if run.source.is_file() else files(run.source, "*.parquet", "*.json"):
        for record in read_records(path):
            identity = str(field(record, "id", path))
            out = run.out / subject(identity) / "output.json"
            if out not in answers:
                answers[out] = parse_json(read_text(out), out) if out.exists() else []
            if identity not in [entry["id"] for entry in answers[out]]:
                yield ask_mmmu(run, record, path, answers[out], out)


def subject(identity: str) -> str:
    """ "validation_Computer_Science_3" → "Computer_Science"."""
    match = re.fullmatch(r"[^_]+_(\w+)_\d+", identity)
    if not match:
        raise InputError(f"the id {identity!r} does not have MMMU's form SPLIT_SUBJECT_NUMBER")
    return match.group(1)


def ask_mmmu(run: Run, record: dict, place: Path, entries: list[dict], out: Path) -> Asked:
    """One question. place: the file that the record is from. entries: those of the file out, which gets one more."""
    options = listed(record.get("options") or [], place)
    choices = {chr(ord("A") + i): option for i, option in enumerate(options)}
    lines = [field(record, "question", place), *(f"({letter}) {option}" for letter, option in choices.items())]
    lines.append(OPTION_PROMPT if choices else SHORT_PROMPT)
    prompt, numbers = numbered_images("\n".join(lines))
    images = [record_image(record.get(f"image_{n}"), run.images or place.parent) for n in numbers]
    answer = record.get("answer")
    if not choices and isinstance(answer, str) and answer.startswith("["):
        answer = listed(answer, place)  # the scoring script expects a list of right answers; the data have its text
    entry = {
        "id": str(record["id"]),
        "question_type": "multiple-choice" if choices else "short-answer",
        "answer": answer,
    }
    if choices:
        entry |= {"all_choices": list(choices), "index2ans": choices}

    def keep(answer: str):
        entries.append(entry | {"response": answer})
        write_text(out, json.dumps(entries, indent=4, ensure_ascii=False))

    return run.answer(prompt, images, keep)


def listed(value, place: Path) -> list:
    """A list, or the text of a list in Python syntax, as a list."""
    try:
        return list(ast.literal_eval(value) if isinstance(value, str) else value)
    except (ValueError, SyntaxError, TypeError) as error:
        raise InputError(f"an entry of {place} has {value!r}, which is not a list") from error


def numbered_images(text: str) -> tuple[str, list[int]]:
    """Replace MMMU's `<image 2>` by `<image>`. Also returns the numbers, in the order of the text."""
    pattern = r"<image\s+(\d+)>"
    numbers = [int(number) for number in re.findall(pattern, text)]
    wrong = [number for number in numbers if not 1 <= number <= MOST_MMMU_IMAGES]
    if wrong:
        raise InputError(f"a question names <image {wrong[0]}>; MMMU has 1 to {MOST_MMMU_IMAGES}")
    return re.sub(pattern, "<image>", text), numbers


def record_image(value, folder: Path) -> str:
    """A picture of a record, which is {"bytes": …} in parquet files, or the name of a file, as a row has it."""
    if isinstance(value, dict) and value.get("bytes"):
        return data_uri(value["bytes"])
    name = value.get("path") if isinstance(value, dict) else value
    if not name:
        raise InputError("a question names an image that its record does not hold")
    return named(folder / name)


def read_records(path: Path) -> list[dict]:
    if path.suffix != ".parquet":
        return parse_json(read_text(path), path)
    try:
        from pyarrow import parquet  # only this file format needs it, so it is not a requirement
    except ImportError as error:
        raise InputError(f"{path} is parquet: `pip install pyarrow`, or give the questions as JSON") from error
    return parquet.read_table(path).to_pylist()


def mme(run: Run) -> Iterator[Asked]:
    """A folder of SUBTASK.txt → OUT/SUBTASK.txt with the model's answer as a fourth column.

    The columns are picture, question and right answer, separated by tabs. A file is written when all of it is answered.
    """
    for questions in files(run.source, "*.txt"):
        path = run.out / questions.name
        if path.exists():
            continue
        rows = [line.split("\t") for line in lines_of(questions)]
        said: dict[int, str] = {}
        for number, parts in enumerate(rows):
            if len(parts) < 3:
                raise InputError(
                    f"{questions}, line {number + 1}: picture, question and answer must be separated by tabs"
                )

            def keep(answer: str, number=number, rows=rows, said=said, path=path):
                said[number] = " ".join(answer.split())
                if len(said) == len(rows):
                    lines = ("\t".join([*parts[:3], said[i]]) for i, parts in enumerate(rows))
                    write_text(path, "\n".join(lines) + "\n")

            yield run.answer(parts[1], [named(mme_image(run, questions.stem, parts[0]))], keep)


def mme_image(run: Run, task: str, name: str) -> Path:
    """The pictures of a subtask are in its folder, or in a subfolder `images`."""
    folder = picture_folder(run)
    places = [folder / task / name, folder / task / "images" / name, folder / name]
    return next((place for place in places if place.exists()), places[0])


# Files


def named(path: Path) -> str:
    """A picture's file as a row has it, wherever the rows are."""
    return str(path.absolute())


def picture_folder(run: Run) -> Path:
    return run.images or (run.source if run.source.is_dir() else run.source.parent)


def files(folder: Path, *patterns: str) -> list[Path]:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not found:
        raise InputError(f"there is no {' or '.join(patterns)} in {folder}")
    return found


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, but for blank ones at its end."""
    return read_text(path).rstrip().splitlines()


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def parse_json(text: str, place):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place} is not JSON: {error}") from error


def field(record: dict, name: str, place):
    if not isinstance(record, dict) or name not in record:
        raise InputError(f"an entry of {place} has no {name!r}")
    return record[name]


def write_text(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")  # an interrupted run must not leave an incomplete file under this name
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def save(picture: Image.Image, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    picture.save(part, "PNG")
    part.replace(path)


BENCHMARKS = {"geneval": geneval, "dpg": dpg, "ocrbench": ocrbench, "mmmu": mmmu, "mme": mme}
