"""The command line: `python -m internvlu_core answer|reason|generate CHECKPOINT PROMPT …`, `convert`, `download`.

Pictures go to files, text to standard output, progress to standard error. Exit code 2 and one line on bad input.
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from .checkpoints import hub
from .checkpoints.convert import FORMS, convert
from .checkpoints.files import SPLIT_FILES, WAN_MARK, read_header
from .conversation import History, Turn, read_turns, write_turns
from .errors import CheckpointError, InputError
from .imaging import open_image
from .pipeline import InternVLU

DTYPES = {"auto": "auto", "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RUN_DTYPES = DTYPES | {"fp8": torch.float8_e4m3fn}


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.command in FILE_COMMANDS:
            FILE_COMMANDS[options.command](options)
            return 0
        images = [open_image(path) for path in options.image]
        outputs = output_paths(options) if options.command == "generate" else []
        history = read_history(options, images) if options.command == "answer" else None
        model = load(options)
        if options.command == "generate":
            generate(model, options, images, outputs)
        elif history is None:
            print(write(model, options, images).text)
        else:
            images = [] if history else images  # they are those of its first turn
            text = write(model, options, images, history=history).text
            print(text)
            write_history(options.history, (*history, Turn(options.prompt, text, images)))
    except (CheckpointError, InputError, hub.DownloadError, FloatingPointError, torch.OutOfMemoryError) as error:
        print(f"internvlu_core: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("internvlu_core: cancelled", file=sys.stderr)
        return 130
    return 0


def load(options) -> InternVLU:
    memory = {}
    if options.max_memory:
        memory = {"device_map": "auto", "max_memory": None if options.max_memory == "auto" else options.max_memory}
    return InternVLU.from_pretrained(options.checkpoint, options.device, RUN_DTYPES[options.dtype], **memory)


def read_history(options, images: list[Image.Image]) -> History | None:
    """The turns in the file of --history, if it is there yet; None without this option."""
    path = options.history
    if path is None:
        return None
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        return read_turns(path.read_text(encoding="utf-8") if path.exists() else "", images)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def write_history(path: Path, history: History):
    try:
        path.write_text(write_turns(history), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error


def write(model: InternVLU, options, images: list[Image.Image], **extra):
    """Answer or reason, with a bar that counts tokens."""
    method = model.answer if options.command == "answer" else model.reason
    extra |= {"max_tiles": options.max_tiles} if options.command == "answer" else {}
    with Progress(options.max_new_tokens, "token") as progress:
        return method(
            options.prompt,
            images,
            system_prompt=options.system,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.beams,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=options.seed,
            on_token=lambda count, text: progress(count),
            **extra,
        )


def generate(model: InternVLU, options, images: list[Image.Image], outputs: list[Path]):
    reasoning = options.reasoning
    if options.reason:
        with Progress(options.max_new_tokens, "token") as progress:
            reasoning = model.reason(
                options.prompt,
                images,
                system_prompt=options.system,
                max_new_tokens=options.max_new_tokens,
                on_token=lambda count, text: progress(count),
            )
        print(reasoning.text)
    with Progress(options.steps, "step") as progress:
        result = model.generate(
            options.prompt,
            images,
            height=options.height,
            width=options.width,
            steps=options.steps,
            all_scale=options.all_scale,
            partial_scale=options.partial_scale,
            seed=0 if options.seed is None else options.seed,
            num_images=len(outputs),
            reasoning=reasoning,
            system_prompt=options.system,
            callback=lambda step, steps, denoised: progress(step + 1),
        )
    for picture, path in zip(result.images, outputs, strict=True):
        try:
            picture.save(path)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {path}: {error}") from error
        print(path)


def convert_files(options):
    with Progress(0, "B", unit_scale=True) as progress:
        files = convert(
            options.source,
            options.target,
            options.to,
            dtype=None if options.dtype == "auto" else DTYPES[options.dtype],
            force=options.force,
            progress=progress,
        )
    print(*files, sep="\n")
    if any(file.match(SPLIT_FILES["vae"]) and WAN_MARK not in read_header(file)[1] for file in files):
        print("note: ComfyUI's VAELoader cannot build a VAE of this shape; use one file there", file=sys.stderr)


def download_files(options):
    print(hub.download(options.folder))  # huggingface_hub draws the bars


FILE_COMMANDS = {"convert": convert_files, "download": download_files}


class Progress:
    """A bar on standard error that appears with the first call, so that bad input leaves its one line alone there."""

    def __init__(self, total: int, unit: str, **settings):
        self.total, self.unit, self.settings, self.bar = total, unit, settings, None

    def __enter__(self):
        return self

    def __call__(self, done: int, total: int | None = None):
        self.bar = self.bar or tqdm(total=total or self.total, unit=self.unit, file=sys.stderr, **self.settings)
        self.bar.update(done - self.bar.n)

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def output_paths(options) -> list[Path]:
    """Where the pictures go: --out as often as it is given, checked before the long work."""
    paths = [Path(path) for path in options.out or ["internvlu.png"]]
    formats = Image.registered_extensions()
    for index, path in enumerate(paths):
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}")
        if formats.get(path.suffix.lower()) not in Image.SAVE:
            raise InputError(f"cannot write {path}: {path.suffix or 'no suffix'} is no picture format; try .png")
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        if path in paths[:index]:
            raise InputError(f"cannot write {path} twice: give each picture its own --out")
    return paths


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m internvlu_core", description="InternVL-U without ComfyUI.")
    commands = root.add_subparsers(dest="command", required=True)
    for command, description, tokens in (
        ("answer", "answer a question, about images if any are given", 1024),
        ("reason", "think in words about the picture to draw", 200),
        ("generate", "draw a picture, or edit images", 200),
    ):
        sub = commands.add_parser(command, description=description, help=description)
        sub.add_argument("checkpoint", help="checkpoint folder in the released layout, or a converted file")
        sub.add_argument("prompt")
        sub.add_argument("--image", action="append", default=[], metavar="P", help="an input picture; repeatable")
        sub.add_argument("--system", metavar="TEXT", help="replaces the checkpoint's system text")
        sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        sub.add_argument("--dtype", choices=RUN_DTYPES, default="auto", help="fp8: matrices in 8 bits, for less memory")
        sub.add_argument(
            "--max-memory",
            metavar="SIZE",
            help="weights that may be on the device at once, such as 5GB, or auto; the others wait in main memory",
        )
        sub.add_argument("--seed", type=int)
        sub.add_argument("--max-new-tokens", type=int, default=tokens, metavar="N")
        if command == "generate":
            sub.add_argument("--out", action="append", metavar="P", help="an output picture; each one more is one more")
            sub.add_argument("--height", type=int)
            sub.add_argument("--width", type=int)
            sub.add_argument("--steps", type=int, default=20)
            sub.add_argument("--all-scale", type=float)
            sub.add_argument("--partial-scale", type=float)
            reasoning = sub.add_mutually_exclusive_group()
            reasoning.add_argument("--reason", action="store_true", help="think in words first")
            reasoning.add_argument("--reasoning", metavar="TEXT", help="draw from these words as well")
        else:
            sub.add_argument("--beams", type=int, default=1)
            sub.add_argument("--temperature", type=float, default=0.0)
            sub.add_argument("--top-p", type=float, default=1.0)
            sub.add_argument("--top-k", type=int, default=0)
        if command == "answer":
            sub.add_argument("--max-tiles", type=int, default=1, metavar="N", help="tiles an image may be cut into")
            sub.add_argument(
                "--history",
                type=Path,
                metavar="FILE",
                help="a conversation as JSON to go on with, made if not there; the images are those of its first turn",
            )
    sub = commands.add_parser("convert", help="write a checkpoint as three files, as one file or as a folder")
    sub.add_argument("source", help="checkpoint folder, file, or folder with the three files")
    sub.add_argument("target", help="where to; for three files ComfyUI's models folder, say")
    sub.add_argument("--to", choices=FORMS, default="split", help="three files (default), one, or the released folder")
    sub.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; auto: as they are")
    sub.add_argument("--force", action="store_true", help="overwrite what is there")
    sub = commands.add_parser("download", help=f"download {hub.REPOSITORY} ({hub.SIZE}) from its hub")
    sub.add_argument("folder", help="the checkpoint folder to make")
    return root


def run() -> int:
    """main, as a program of its own."""
    # Standard error is for progress and errors, and what a console cannot show must not end a long run.
    warnings.simplefilter("ignore")
    sys.stdout.reconfigure(errors="backslashreplace")
    return main()
