"""Write training samples at full resolution.

    python -m internvlu_train.synthesis OUT --domain text --count 100000 --size 1024x576 --workers 8
    python -m internvlu_train.synthesis --sheet text.jpg --domain text --count 16

The first command writes WebDataset shards into OUT, or with --format folder pictures beside metadata.jsonl. The same
options give the same bytes, however many workers there are. A command that was stopped goes on when it is given again.
The second draws samples on one contact sheet. See docs/synthesis.md.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from internvlu_core.batch.engines import RayOptions
from internvlu_core.batch.worker import ModelOptions, describe, read_size
from internvlu_core.cli import Progress
from internvlu_core.errors import CheckpointError, InputError, how_to_install, in_one_line

from ..sample import Sample
from . import DOMAINS, LANGUAGES, Resources, sheet
from .rewrite import Rewriter, by_model, by_server
from .writer import FORMATS, Output, Plan, write

WRITING = ("format", "shard", "skip_bad", "workers", "address", "cpus_per_worker", "rewrite", "rewrite_url")
PARTS = {"device": "rewrite", "rewrite_key": "rewrite_url"}  # options that say more about another


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return run(options)
    except (CheckpointError, InputError) as error:
        print(f"error: {in_one_line(error, 2000)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cancelled; the same command goes on where this one ended", file=sys.stderr)
        return 130


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m internvlu_train.synthesis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"The libraries and fonts are an extra; {how_to_install('synthesis')}",
    )
    add = parser.add_argument
    add("out", type=Path, nargs="?", metavar="OUT", help="the folder for the samples")
    add("--domain", required=True, choices=DOMAINS)
    add("--count", type=int, required=True, help="samples; a later run may ask for more")
    add("--size", nargs="+", default=["1024x1024"], metavar="WxH", help="in pixels; of several, each sample has one")
    add("--task", help="such as draw, edit or ask; by default any")
    add("--kind", help="of the domain's samples; by default any. A wrong one is answered with a list")
    add("--language", choices=LANGUAGES, help="of prompts and answers; by default both")
    add("--seed", type=int, default=0, help="another one gives other samples")
    add("--evaluation", action="store_true", help="samples that training never sees, with any seed")
    add("--fonts", type=Path, metavar="FOLDER", help="more fonts")
    add("--pictures", type=Path, metavar="FOLDER", help="of humour: pictures for the captions, in place of drawn ones")
    add("--sheet", type=Path, metavar="FILE", help="draw the samples on one contact sheet")
    add("--format", choices=FORMATS, help=f"by default {FORMATS[0]}")
    add("--shard", type=int, help="samples of one shard; by default 256")
    add("--skip-bad", action="store_true", help="list a sample that fails, and go on")
    add("--workers", type=int, help="processes, by Ray; by default this one")
    add("--address", help="of a Ray cluster to join")
    add("--rewrite", metavar="CHECKPOINT", help="let InternVL-U say reasoning in other words")
    add("--device", help="of --rewrite; by default a GPU if there is one")
    add(
        "--rewrite-url",
        metavar="URL",
        help="let a server with OpenAI's interface do it, such as http://127.0.0.1:8000/v1",
    )
    add("--rewrite-model", metavar="NAME", help="the server's model")
    add("--rewrite-key", metavar="VARIABLE", help="the environment variable that holds the server's key")
    add("--cpus-per-worker", type=int, metavar="N")
    return parser.parse_args(arguments)


def run(options) -> int:
    check_together(options)
    plan = Plan(
        domain=options.domain,
        count=options.count,
        sizes=tuple(map(read_size, options.size)),
        task=options.task,
        kind=options.kind,
        language=options.language,
        seed=options.seed,
        evaluation=options.evaluation,
        **({} if options.shard is None else {"shard": options.shard}),
        rewriter=options.rewrite_model if options.rewrite_url else options.rewrite,
        resources=Resources(*(folder and folder.absolute() for folder in (options.fonts, options.pictures))),
    )
    if options.sheet:
        sheet.save(sheet.sheet(samples(plan)), options.sheet)
        return 0
    return write_samples(plan, options)


def check_together(options):
    """Raise InputError for options that cannot be used together, of which one would have no effect."""
    if (options.out is None) == (options.sheet is None):
        raise InputError("give either OUT or --sheet")
    given = {name for name, value in vars(options).items() if value not in (None, False)}
    if options.sheet and (unused := [name for name in WRITING if name in given]):
        raise InputError(f"--{unused[0].replace('_', '-')} has no effect on a sheet; leave it out, or give OUT")
    if options.rewrite and options.rewrite_url:
        raise InputError("give either --rewrite or --rewrite-url")
    if bool(options.rewrite_url) != bool(options.rewrite_model):
        raise InputError("--rewrite-url and --rewrite-model belong together")
    for part, whole in PARTS.items():
        if part in given and whole not in given:
            part, whole = (f"--{name.replace('_', '-')}" for name in (part, whole))
            raise InputError(f"{part} has no effect without {whole}")
    if "cpus_per_worker" in given and not given & {"workers", "address"}:
        raise InputError("--cpus-per-worker has no effect without --workers or --address")
    for name, folder in (("fonts", options.fonts), ("pictures", options.pictures)):
        if folder and not folder.is_dir():
            raise InputError(f"--{name}: there is no folder {folder}")


def samples(plan: Plan) -> Iterator[Sample]:
    """All samples of a plan. Raises InputError for one that cannot be made."""
    for number in range(plan.count):
        try:
            yield plan.sample(number)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"sample {number} failed: {describe(error)}") from error


def write_samples(plan: Plan, options) -> int:
    output = Output(options.out.absolute(), options.format or FORMATS[0], options.skip_bad)
    with Progress(0, "sample") as progress:
        cpus = 1 if options.cpus_per_worker is None else options.cpus_per_worker
        ray = RayOptions.chosen(options.workers, options.address, cpus=cpus)
        summary = write(
            plan, output, ray, progress.rows, rewriter(options), options.device if options.rewrite else "cpu"
        )
    before = f", {summary.before} of them by earlier runs" if summary.before else ""
    print(f"{summary.samples} samples{before}; {summary.failed} failed in this run")
    for path in summary.bad:
        print(f"samples that failed are listed in {path}", file=sys.stderr)
    return 0


def rewriter(options) -> Callable[[], Rewriter] | None:
    """What loads the rewriter in each worker."""
    if options.rewrite:
        return partial(by_model, ModelOptions(options.rewrite, options.device))
    if options.rewrite_url:
        return partial(by_server, options.rewrite_url, options.rewrite_model, options.rewrite_key)
    return None


if __name__ == "__main__":
    sys.exit(main())
