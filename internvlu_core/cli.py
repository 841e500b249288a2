"""The command line: `internvlu answer|reason|generate CHECKPOINT PROMPT …`, `batch`, `convert`, `download`, `doctor`.

Where nothing is installed, as in the pack's folder, it is `python -m internvlu_core answer …`.

Pictures go to files, text to standard output, progress to standard error. Exit code 2 and one line on bad input.
"""

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from .batch import BatchOptions, ModelOptions, RayOptions, run_batch
from .batch.results import SUFFIXES
from .checkpoints import hub
from .checkpoints.convert import CHECKPOINT_FORMATS, convert
from .checkpoints.files import SPLIT_FILES, WAN_MARK, read_header
from .conditioning import TextResult
from .conversation import History, Turn, read_turns, write_turns
from .decoding import TextSettings
from .doctor.checkup import Checkup, examine
from .doctor.report import MARKDOWN
from .errors import CheckpointError, InputError
from .imaging import open_image
from .models import attention
from .pipeline import InternVLU
from .quantization import QUANTS, WEIGHT_FORMATS
from .quantization.gguf import TYPES
from .requests import ANSWER_TOKENS, REASON_TOKENS, DrawRequest
from .to_transformers import to_transformers

DTYPES = {"auto": "auto", "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RUN_DTYPES = DTYPES | {name: weight_format.torch_dtype or name for name, weight_format in WEIGHT_FORMATS.items()}
ERRORS = CheckpointError, InputError, hub.DownloadError, FloatingPointError, torch.cuda.OutOfMemoryError, OSError


def main(arguments: list[str] | None = None) -> int:
    """Run one command. arguments: those of the command line by default. Returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except ERRORS as error:
        print(f"internvlu_core: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("internvlu_core: cancelled", file=sys.stderr)
        return 130


def run() -> int:
    """main, as a program of its own."""
    # Standard error is for progress and errors, and what a console cannot show must not end a long run.
    warnings.simplefilter("ignore")
    sys.stdout.reconfigure(errors="backslashreplace")
    return main()


# Commands


def answer(options):
    """Print the answer to a question; with --history, go on with the conversation in that file."""
    images = [open_image(path) for path in options.image]
    history = read_history(options, images)
    model = load(options)
    used = [] if history else images  # the pictures of a conversation are those of its first turn
    extra = {} if history is None else {"history": history}
    text = write_text(model.answer, options, used, max_tiles=options.max_tiles, **sampling(options), **extra).text
    print(text)
    if history is not None:
        write_history(options.history, (*history, Turn(options.prompt, text, used)))


def reason(options):
    """Print the model's thoughts about the picture to draw."""
    images = [open_image(path) for path in options.image]
    print(write_text(load(options).reason, options, images, **sampling(options)).text)


def generate(options):
    """Draw pictures, write them to files, and print the names of these; with --reason, the thoughts before them."""
    images = [open_image(path) for path in options.image]
    outputs = output_paths(options)
    model, reasoning = load(options), options.reasoning
    if options.reason:
        reasoning = write_text(model.reason, options, images)
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
            guidance_start=options.guidance_start,
            guidance_end=options.guidance_end,
            seed=0 if options.seed is None else options.seed,
            num_images=len(outputs),
            reasoning=reasoning,
            system_prompt=options.system,
            callback=lambda step, steps, denoised: progress(step + 1),
        )
    for picture, path in zip(result.images, outputs, strict=True):
        write_file(path, picture.save)
        print(path)


def convert_files(options):
    """Convert a checkpoint, and print the names of the files."""
    dtype = None if options.dtype == "auto" else DTYPES[options.dtype]
    with Progress(0, "B", unit_scale=True) as progress:
        settings = {"dtype": dtype, "force": options.force, "progress": progress}
        if options.to != "transformers":
            files = convert(options.source, options.target, options.to, quant=options.quant, **settings)
        elif options.quant:
            raise InputError("--quant has no effect with --to transformers, which quantises a model when it loads it")
        else:
            files = to_transformers(options.source, options.target, **settings)
    print(*files, sep="\n")
    if any(file.match(SPLIT_FILES["vae"]) and WAN_MARK not in read_header(file)[1] for file in files):
        print("note: ComfyUI's VAELoader cannot build a VAE of this shape; use one file there", file=sys.stderr)


def download_files(options):
    """Download the released checkpoint, and print its folder."""
    print(hub.download(options.folder))  # huggingface_hub draws the bars


def batch(options):
    """Do many requests from a file, and print how many there are and how many of them have an error."""
    with Progress(0, "row") as progress:
        summary = run_batch(
            BatchOptions(
                requests=options.requests,
                out=options.out,
                model=model_options(options) if options.checkpoint else None,
                ray=ray_options(options),
                format=options.format,
                picture_files=options.picture_files,
                together=options.together,
                chunk=options.chunk,
                allow_urls=options.allow_urls,
                comfyui=tuple(options.comfyui),
                workflow=options.workflow,
            ),
            progress.rows,
        )
    before = f", {summary.before} of them by earlier runs" if summary.before else ""
    print(f"{summary.rows} rows done{before}; {summary.errors} with an error in this run")


def ray_options(options) -> RayOptions | None:
    """How many processes, and where; None: this process alone. options: of worker_arguments."""
    return RayOptions.chosen(options.workers, options.address, options.gpus_per_worker, options.cpus_per_worker)


def examine_all(options) -> int:
    """Check a checkpoint, the machine and the code, and print the report. Returns 1 if something is wrong."""
    checkup = Checkup(
        Path(options.checkpoint),
        options.out,
        options.device,
        RUN_DTYPES[options.dtype],
        options.official,
        options.official_python,
        options.ask_hub,
        options.side,
        options.steps,
        options.tokens,
    )
    report = examine(checkup)
    print(report.markdown())
    print(f"internvlu_core: the report is in {options.out / MARKDOWN}", file=sys.stderr)
    return 1 if report.wrong else 0


# What the commands share


def load(options) -> InternVLU:
    """The model that the options name."""
    return model_options(options).load()


def model_options(options) -> ModelOptions:
    """How to load the model that the options name."""
    dtype = RUN_DTYPES[options.dtype]
    return ModelOptions(options.checkpoint, options.device, dtype, options.max_memory, options.attention)


def sampling(options) -> dict:
    """How tokens are chosen, as arguments of InternVLU.answer and InternVLU.reason."""
    return {
        "num_beams": options.beams,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "seed": options.seed,
    }


def write_text(method: Callable, options, images: list[Image.Image], **settings) -> TextResult:
    """Call InternVLU.answer or InternVLU.reason, with a bar that counts tokens."""
    with Progress(options.max_new_tokens, "token") as progress:
        return method(
            options.prompt,
            images,
            system_prompt=options.system,
            max_new_tokens=options.max_new_tokens,
            on_token=lambda count, text: progress(count),
            **settings,
        )


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
    """Write a conversation as JSON. Raises InputError if the file cannot be written."""
    write_file(path, lambda file: file.write_text(write_turns(history), encoding="utf-8"))


def write_file(path: Path, write: Callable[[Path], object]):
    """Call write(file), and put the file in the place of path; if either fails, what was there stays as it was.

    Raises InputError if the file cannot be written.
    """
    target = path.resolve()  # of a link
    half = target.with_name(f".{os.getpid()}.{target.name}")  # a picture's suffix is its format
    try:
        write(half)
        if target.exists():
            shutil.copymode(target, half)
        os.replace(half, target)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
    finally:
        half.unlink(missing_ok=True)


class Progress:
    """A bar on standard error that appears with the first call, so that bad input leaves its one line alone there."""

    def __init__(self, total: int, unit: str, **settings):
        self.total, self.unit, self.settings, self.bar = total, unit, settings, None

    def __enter__(self):
        return self

    def __call__(self, done: int, total: int | None = None):
        self.bar = self.bar or tqdm(total=total or self.total, unit=self.unit, file=sys.stderr, **self.settings)
        self.bar.update(done - self.bar.n)

    def rows(self, done: int, total: int):
        """run_batch's on_rows. The rows of earlier runs say nothing about the speed."""
        self.settings.setdefault("initial", done)
        self(done, total)

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def output_paths(options) -> list[Path]:
    """Where the pictures go: every --out, checked before the long work. Raises InputError."""
    paths = [Path(path) for path in options.out or ["internvlu.png"]]
    formats = Image.registered_extensions()
    for index, path in enumerate(paths):
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}")
        if formats.get(path.suffix.lower()) not in Image.SAVE:
            raise InputError(f"cannot write {path}: {path.suffix or 'no suffix'} is no picture format; try .png")
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"cannot write {path}: there is no permission")
        _check_format(path)
        if path.resolve() in [other.resolve() for other in paths[:index]]:
            raise InputError(f"cannot write {path} twice: give each picture its own --out")
    return paths


def _check_format(path: Path):
    """Raises InputError if pictures in colour cannot be written in the format that the suffix names."""
    try:
        Image.new("RGB", (16, 16)).save(BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except Exception as error:  # each writer raises its own
        raise InputError(f"cannot write {path}: {path.suffix} holds no picture in colour; try .png") from error


# Arguments


def parser() -> argparse.ArgumentParser:
    """The parser of the command line. Its options have the function of their command as `run`."""
    # Of what is typed only the console command, which `pip install` makes, says how this program is called.
    called = "internvlu" if Path(sys.argv[0]).stem == "internvlu" else "python -m internvlu_core"
    root = argparse.ArgumentParser(prog=called, description="InternVL-U without ComfyUI.")
    commands = root.add_subparsers(dest="command", required=True)
    _answer_arguments(
        _model_command(commands, answer, "answer a question, about images if any are given", ANSWER_TOKENS)
    )
    _sampling_arguments(_model_command(commands, reason, "think in words about the picture to draw", REASON_TOKENS))
    _generate_arguments(_model_command(commands, generate, "draw a picture, or edit images", REASON_TOKENS))
    _batch_arguments(commands)

    sub = commands.add_parser("convert", help="write a checkpoint as three files, as one file or as a folder")
    sub.set_defaults(run=convert_files)
    sub.add_argument("source", help="checkpoint folder, file, or folder with the three files")
    sub.add_argument("target", help="where to; for three files ComfyUI's models folder, say")
    sub.add_argument(
        "--to",
        choices=(*CHECKPOINT_FORMATS, "transformers"),
        default="split",
        help="three files (default), one, the released folder, or what answers questions as transformers' InternVL",
    )
    sub.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; auto: as they are")
    sub.add_argument(
        "--quant",
        metavar="NAME",
        help=f"large matrices in fewer bits: {', '.join(QUANTS)} as ComfyUI stores them, or GGUF files with "
        f"{', '.join(TYPES)} (needs: pip install gguf)",
    )
    sub.add_argument("--force", action="store_true", help="overwrite what is there")

    sub = commands.add_parser("download", help=f"download {hub.REPOSITORY} ({hub.SIZE}) from its hub")
    sub.set_defaults(run=download_files)
    sub.add_argument("folder", help="the checkpoint folder to make")
    _doctor_arguments(commands)
    return root


def _doctor_arguments(commands):
    description = "check a checkpoint, this machine and this program, and write a report"
    sub = commands.add_parser("doctor", description=description, help=description)
    sub.set_defaults(run=examine_all)
    sub.add_argument("checkpoint", help="checkpoint folder in the released layout, or a converted file")
    _device_arguments(sub)
    sub.add_argument("--out", type=Path, default=Path("doctor"), metavar="FOLDER", help="of the report and pictures")
    sub.add_argument(
        "--official", type=Path, metavar="DIR", help="a checkout of the official code, or a folder of its recorded runs"
    )
    sub.add_argument("--official-python", metavar="FILE", help="the Python of the official code's environment")
    sub.add_argument("--ask-hub", action="store_true", help="compare sizes and hashes with the hub's (no download)")
    sub.add_argument("--side", type=int, metavar="PIXELS", help="of the pictures; by default the checkpoint's")
    sub.add_argument("--steps", type=int, default=20, help="of a picture")
    sub.add_argument("--tokens", type=int, default=32, help="of a text")


def _model_command(commands, function: Callable, description: str, tokens: int) -> argparse.ArgumentParser:
    """A command that runs the model, with the arguments of all such commands. tokens: default of --max-new-tokens."""
    sub = commands.add_parser(function.__name__, description=description, help=description)
    sub.set_defaults(run=function)
    sub.add_argument("checkpoint", help="checkpoint folder in the released layout, or a converted file")
    sub.add_argument("prompt")
    sub.add_argument("--image", action="append", default=[], metavar="P", help="an input picture; repeatable")
    sub.add_argument("--system", metavar="TEXT", help="replaces the checkpoint's system text")
    _loading_arguments(sub)
    sub.add_argument("--seed", type=int)
    sub.add_argument("--max-new-tokens", type=int, default=tokens, metavar="N")
    return sub


def _loading_arguments(sub: argparse.ArgumentParser):
    _device_arguments(sub)
    sub.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="weights that may be on the device at once, such as 5GB, or auto; the others wait in main memory",
    )
    sub.add_argument(
        "--attention",
        choices=attention.NAMES,
        default="auto",
        help="of the image generator; sage, flash: by these packages; varlen: torch's for different lengths",
    )


def _batch_arguments(commands):
    does = "do many requests from a file, in this process, in several, on a cluster or on ComfyUI servers"
    sub = commands.add_parser("batch", description=f"{does}; see docs/batch.md", help=does)
    sub.set_defaults(run=batch)
    sub.add_argument("requests", type=Path, metavar="REQUESTS", help="*.jsonl or *.parquet, a row a request")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the results; a run that was ended goes on there")
    sub.add_argument("--checkpoint", help="checkpoint folder in the released layout, or a converted file")
    _loading_arguments(sub)
    sub.set_defaults(device=None)  # the workers may be on other machines
    worker_arguments(sub)
    sub.add_argument(
        "--together", type=int, default=BatchOptions.together, metavar="N", help="requests in one batch; 1: one by one"
    )
    chunk = "rows of a part, which one worker does at once"
    sub.add_argument("--chunk", type=int, default=BatchOptions.chunk, metavar="N", help=chunk)
    sub.add_argument("--format", choices=SUFFIXES, default="parquet", help="of the results")
    sub.add_argument("--picture-files", action="store_true", help="pictures as files in OUT/pictures, not in Parquet")
    sub.add_argument("--allow-urls", action="store_true", help="images may be http and https addresses")
    sub.add_argument("--comfyui", nargs="+", default=[], metavar="URL", help="servers, in place of --checkpoint")
    sub.add_argument("--workflow", type=Path, metavar="FILE", help="what the servers run, in the API format")


def worker_arguments(sub):
    """The options that ray_options reads. sub: a parser, or a group of one."""
    sub.add_argument("--workers", type=int, metavar="N", help="processes with a model each; 0 (default): this one only")
    sub.add_argument("--address", help="of a Ray cluster to join; auto for the one on this machine")
    sub.add_argument("--gpus-per-worker", type=float, metavar="N", help="default: 1 on GPUs")
    sub.add_argument("--cpus-per-worker", type=int, metavar="N", help="default: 1 beside a GPU, else those there are")


def _device_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    fewer = "fp8 and those after it: large matrices in fewer bits"
    sub.add_argument("--dtype", choices=RUN_DTYPES, default="auto", help=fewer)


def _sampling_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("--beams", type=int, default=TextSettings.num_beams)
    sub.add_argument("--temperature", type=float, default=TextSettings.temperature)
    sub.add_argument("--top-p", type=float, default=TextSettings.top_p)
    sub.add_argument("--top-k", type=int, default=TextSettings.top_k)


def _answer_arguments(sub: argparse.ArgumentParser):
    _sampling_arguments(sub)
    sub.add_argument("--max-tiles", type=int, default=1, metavar="N", help="tiles an image may be cut into")
    sub.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="a conversation as JSON to go on with, made if not there; give the images of its first turn each time",
    )


def _generate_arguments(sub: argparse.ArgumentParser):
    out = "an output picture, internvlu.png by default; each one more is one more"
    sub.add_argument("--out", action="append", metavar="P", help=out)
    sub.add_argument("--height", type=int)
    sub.add_argument("--width", type=int)
    sub.add_argument("--steps", type=int, default=DrawRequest.steps)
    sub.add_argument("--all-scale", type=float)
    sub.add_argument("--partial-scale", type=float)
    start, end = DrawRequest.guidance_start, DrawRequest.guidance_end
    sub.add_argument(
        "--guidance-start", type=float, default=start, metavar="F", help="guide from this part of the steps"
    )
    sub.add_argument("--guidance-end", type=float, default=end, metavar="F", help="up to this one; less is faster")
    reasoning = sub.add_mutually_exclusive_group()
    reasoning.add_argument("--reason", action="store_true", help="think in words first")
    reasoning.add_argument("--reasoning", metavar="TEXT", help="draw from these words as well")
