"""The comparisons. Each function in NAMES is a command of `python -m benchmarks`."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from internvlu_core.checkpoints.config import Config
from support.scaled_checkpoints import write_checkpoint

from . import batches, counts
from .harness import ROOT, WORKERS, BenchmarkError, Case, Run, Side, Worker, fit, floor, peaks, side_by_side, summary
from .memory import table
from .quantisation import quantisation, sixteen

PROMPT = "A photo of a ginger cat that sits on a red chair next to an open window, in the evening light"
EDIT = "Make it night, and put a small lamp on the table"
QUESTION = " ".join(["What do you know about the history of the lighthouse on the rock off the coast?"] * 4)
SEED = 7


def official_command(options) -> list:
    if not options.official:
        raise BenchmarkError("--official must name a checkout of the official code (the folder with internvlu/)")
    python = options.official_python or official_python(options.work)
    if not python.exists():
        raise BenchmarkError("the official code has no environment yet: python -m benchmarks setup")
    return [python, WORKERS / "official.py", options.official]


def official_python(work):
    return work / "official-venv" / "bin" / "python"


def core_command(options) -> list:
    return [sys.executable, WORKERS / "core.py"]


def comfyui_folder(options) -> Path:
    if not options.comfyui or not (options.comfyui / "main.py").is_file():
        raise BenchmarkError("--comfyui, or COMFYUI_PATH, must name a ComfyUI folder, which has a main.py")
    return options.comfyui


def comfyui_command(options) -> list:
    return [sys.executable, WORKERS / "comfyui.py", comfyui_folder(options), options.device.partition(":")[0]]


def hf_command(options) -> list:
    return [sys.executable, WORKERS / "hf.py"]


COMMANDS = {
    "core": core_command,
    "official": official_command,
    "ComfyUI": comfyui_command,
    "transformers": hf_command,
}


def checkpoint(run: Run) -> str:
    """The folder of the random checkpoint of this scale, which is made if it does not exist."""
    folder = run.work / run.scale
    if not folder.exists():
        print(f"Writing {run.scale} …", file=sys.stderr)
        partial = folder.with_name(f"{run.scale}.partial")
        write_checkpoint(partial, run.scale)
        partial.rename(folder)
    return str(folder)


@contextmanager
def loaded(run: Run, options, *names: str, in_memory: bool = False) -> Iterator[list[Side]]:
    """Workers that have loaded the checkpoint. The first one, the core, also measures the speed of the machine.

    in_memory: the core makes random weights itself, and there is no checkpoint on the disk.
    """
    commands = {name: COMMANDS[name](options) for name in names}
    where = {"scale": run.scale} if in_memory else {"checkpoint": checkpoint(run)}
    where |= {"device": run.device, "dtype": run.dtype}
    with ExitStack() as stack:
        sides = []
        for name, command in commands.items():
            worker = Worker(name, command, run.work / f"{name}.log")
            stack.callback(worker.close)
            hello = worker.call("hello")
            reply = worker.call("make" if in_memory else "load", **where)
            about = {"versions": hello["versions"], "machine": hello["machine"]}
            about |= {key: reply[key] for key in ("weights", "attention") if key in reply}
            sides.append(Side(name, worker, about=about))
        run.floor = sides[0].call("floor")
        run.record(comparison="floor", stage="floor", side="machine", machine=sides[0].about["machine"], **run.floor)
        yield sides


class Sizes:
    """Numbers of tokens of the drawing and the edit, as the core counts them."""

    def __init__(self, run: Run, core: Side, size: int):
        self.config = Config.read(checkpoint(run))
        self.generated = (size // self.config.size_factor) ** 2
        picture, out = run.picture(size), run.file("sizes.safetensors")
        drawing = core.call("context", prompt=PROMPT, images=[], out=out)["tokens"]
        edit = core.call("context", prompt=EDIT, images=[picture], out=out)["tokens"]
        # (reference tokens, context tokens) of each distinct branch
        self.drawing = [(0, drawing[0]), (0, drawing[2])]
        self.edit = [(self.generated, edit[0]), (self.generated, edit[1]), (0, edit[2])]


def load(run: Run, options):
    """Loading the checkpoint (cached by the system), and the peak memory."""
    with loaded(run, options, "core", "official") as sides:
        where = {"checkpoint": checkpoint(run), "device": run.device, "dtype": run.dtype}
        rounds = [[side.call("load", **where) for side in sides] for _ in range(options.repeats)]
        for index, side in enumerate(sides):
            replies = [replies[index] for replies in rounds]
            run.record(
                comparison="official",
                stage="load",
                side=side.name,
                **summary([reply["seconds"] for reply in replies]),
                warm_up=1,
                **peaks(replies),
                **side.about,
            )


def stages(run: Run, options):
    """The core and the official code, stage by stage."""
    size = options.size
    with loaded(run, options, "core", "official") as sides:
        sizes = Sizes(run, sides[0], size)
        config, picture = sizes.config, run.picture(size)
        tile = torch.randn(1, 3, config.vision.image_size, config.vision.image_size)
        pixels = torch.rand(1, 3, size, size) * 2 - 1
        latents = torch.randn(1, config.vae.latent_channels, size // 8, size // 8)

        def compare(stage, op, repeats=options.repeats, flops=0, **arguments):
            side_by_side(run, sides, Case("official", stage, op, arguments, repeats, flops))

        vision = counts.vision(config.vision, config.language.hidden_size)
        compare("ViT, one picture", "see", pixels=run.tensor("tile.safetensors", tile), flops=vision)
        compare("context of a drawing", "context", prompt=PROMPT, images=[])
        asked = {"prompt": QUESTION, "images": []}
        text(run, "official", sides, "text", options.repeats, asked, config, options.tokens)
        for name, prompt, images, branches in (
            ("drawing", PROMPT, [], sizes.drawing),
            ("edit", EDIT, [picture], sizes.edit),
        ):
            flops = counts.mmdit_step(config.mmdit, sizes.generated, branches)
            common = {"prompt": prompt, "images": images, "size": size, "seed": SEED, "steps": 3, "flops": flops}
            # Each call times two steps.
            compare(f"step of {'an' if images else 'a'} {name}", "steps", max(1, options.repeats - 1), **common)
        compare(
            "VAE, encoding a reference",
            "vae_encode",
            max(1, options.repeats - 1),
            pixels=run.tensor("pixels.safetensors", pixels),
            flops=counts.vae_encode(config.vae, size, size),
        )
        compare(
            "VAE, decoding",
            "vae_decode",
            max(1, options.repeats - 1),
            latents=run.tensor("latents.safetensors", latents),
            flops=counts.vae_decode(config.vae, size, size),
        )


def end_to_end(run: Run, options):
    """The core and the official code, from prompt to picture. The timed pictures are compared."""
    size, steps = options.size, options.steps
    with loaded(run, options, "core", "official") as sides:
        cases = {
            "text to image": {"prompt": PROMPT, "images": [], "reason": 0},
            "edit": {"prompt": EDIT, "images": [run.picture(size)], "reason": 0},
            "reason, then image": {"prompt": PROMPT, "images": [], "reason": options.tokens},
        }
        for name, case in cases.items():
            small = {**case, "images": [run.picture(256)] if case["images"] else [], "reason": case["reason"] and 4}
            for side in sides:  # warm-up
                side.call("generate", **small, size=256, steps=1, seed=SEED, out=run.file("warm_up.png"))
            stage = f"{name}, {size}×{size}, {steps} steps" + (f", {case['reason']} tokens" if case["reason"] else "")
            arguments = {"size": size, "steps": steps, "seed": SEED, **case}
            repeats = options.end_to_end_repeats
            generate = Case("official", stage, "generate", arguments, repeats, warm_up=False, suffix=".png")
            side_by_side(run, sides, generate)


def comfyui(run: Run, options):
    """A sampling step in ComfyUI and in the core."""
    with loaded(run, options, "core", "ComfyUI") as sides:
        for name, prompt, images in (
            ("step of a drawing", PROMPT, []),
            ("step of an edit", EDIT, [run.picture(options.size)]),
        ):
            arguments = {"prompt": prompt, "images": images, "size": options.size, "seed": SEED, "steps": 4}
            side_by_side(run, sides, Case("comfyui", name, "steps", arguments, options.repeats))


def vae(run: Run, options):
    """The VAE of the core, the pack's VAE in ComfyUI, and ComfyUI's own Wan VAE with the same weights."""
    size = options.size
    config = Config.read(checkpoint(run)).vae
    pixels = run.tensor("pixels.safetensors", torch.rand(1, 3, size, size) * 2 - 1)
    latents = run.tensor("latents.safetensors", torch.randn(1, config.latent_channels, size // 8, size // 8))
    with loaded(run, options, "core", "ComfyUI") as (core, ours):
        renamed = {"vae_encode": "native_encode", "vae_decode": "native_decode"}
        native = Side("Wan VAE", ours.worker, renamed, ours.about)
        sides = [core, ours, native]
        flops = counts.vae_encode(config, size, size)
        side_by_side(run, sides, Case("vae", "encode", "vae_encode", {"pixels": pixels}, options.repeats, flops))
        flops = counts.vae_decode(config, size, size)
        side_by_side(run, sides, Case("vae", "decode", "vae_decode", {"latents": latents}, options.repeats, flops))


def decode(run: Run, options):
    """Greedy decoding by the core and by transformers' generate."""
    with loaded(run, options, "core", "transformers") as sides:
        ids = sides[0].call("chat_ids", prompt=QUESTION)["ids"]
        config = Config.read(checkpoint(run))
        text(run, "transformers", sides, "continue_ids", options.repeats, {"ids": ids}, config, options.tokens)


def text(run: Run, comparison: str, sides: list[Side], op: str, repeats: int, arguments: dict, config: Config, n: int):
    """The prefill of a prompt, and the n − 1 tokens after the first: a call for 1 token, and a call for n tokens."""
    ids = sides[0].call("chat_ids", prompt=QUESTION)["ids"]
    size = torch.empty(0, dtype=getattr(torch, run.dtype)).itemsize
    flops = counts.language(config.language, len(ids))
    stage = f"text, reading {len(ids)} tokens"
    lines = side_by_side(run, sides, Case(comparison, stage, op, {"tokens": 1, **arguments}, repeats, flops))
    reading = {line["side"]: line["seconds"] for line in lines}
    nbytes = counts.language_bytes(config.language, len(ids) + n // 2, size)
    flops = counts.language(config.language, 1, len(ids) + n // 2)
    case = Case(comparison, "text, each new token", op, {"tokens": n, **arguments}, repeats, flops, nbytes)
    side_by_side(run, [_PerToken(side, reading[side.name], n - 1) for side in sides], case)


class _PerToken(Side):
    """A side that reports the time of one token: (seconds − constant) / count."""

    def __init__(self, side: Side, constant: float, count: int):
        super().__init__(side.name, side.worker, side.renamed, side.about)
        self.constant, self.count = constant, count

    def call(self, op: str, **arguments) -> dict:
        reply = super().call(op, **arguments)
        return reply | {"seconds": (reply["seconds"] - self.constant) / self.count}


BATCHES = (1, 2, 4, 8, 16)


def _together_and_alone(core: Side, together: str, alone: str) -> list[Side]:
    return [
        Side(name, core.worker, {"many": op}, core.about)
        for name, op in {"together": together, "one by one": alone}.items()
    ]


def many(run: Run, options):
    """Texts of many requests in one decoding loop, and one by one.

    One call reads the prompts and writes a token of each, another one writes all tokens; the difference is decoding.
    """
    n = options.tokens
    with loaded(run, options, "core", in_memory=True) as (core,):
        sides = _together_and_alone(core, "continue_many", "continue_each")
        questions = (f"{i} {QUESTION[: 80 + i]}" for i in range(max(BATCHES)))
        prompts = [core.call("chat_ids", prompt=question)["ids"] for question in questions]
        for count in BATCHES:
            ids = prompts[:count]
            for side in sides:  # not timed: the first use of a kernel loads it
                side.call("many", ids=ids, tokens=2)
            for stage, tokens in (("text, reading", 1), ("text, all", n)):
                case = Case("many", stage, "many", {"ids": ids, "tokens": tokens}, options.repeats, warm_up=False)
                side_by_side(run, sides, case, texts=count, tokens=tokens)


def many_pictures(run: Run, options):
    """Drawings of many requests in one forward, and one by one, from the prompt to the picture."""
    with loaded(run, options, "core", in_memory=True) as (core,):
        sides = _together_and_alone(core, "draw_many", "draw_each")
        for count in BATCHES:
            arguments = {"count": count, "size": options.size, "steps": options.steps}
            stage = f"{count} × {options.size}×{options.size}, {options.steps} steps"
            case = Case("many-pictures", stage, "many", arguments, options.repeats, warm_up=count == BATCHES[0])
            side_by_side(run, sides, case)


AXES = {
    "image tokens": [{"side": side} for side in (256, 384, 512, 768, 1024)],
    "pictures": [{"batch": n} for n in (1, 2, 4, 8)],
    "references": [{"references": n} for n in (0, 1, 2, 4)],
    "context tokens": [{"context": n} for n in (32, 128, 512, 2048)],
}


def scaling(run: Run, options):
    """How one forward of the MMDiT grows with what it is given; all else at 256 × 256 and 64 context tokens."""
    with loaded(run, options, "core") as (core,):
        config = Config.read(checkpoint(run))
        for axis, cases in AXES.items():
            points = []
            for case in cases:
                case = {"side": 256, "context": 64, "batch": 1, "references": 0} | case
                side = case["side"] // 8
                tokens = (case["side"] // config.size_factor) ** 2
                shape = {key: case[key] for key in ("context", "batch", "references")}
                reply = core.call("forward", height=side, width=side, repeats=options.repeats, **shape)
                references = case["references"] * tokens
                flops = counts.mmdit(config.mmdit, tokens, references, case["context"], case["batch"])
                x = {"image tokens": tokens, "pictures": case["batch"], "references": case["references"]}
                cost = summary(reply["seconds"]) | floor(run, flops, 0)
                points.append({"x": x.get(axis, case["context"]), **cost})
            grown = fit([(point["x"], point["seconds"]) for point in points])
            run.record(comparison="scaling", stage=axis, side="core", points=points, **grown, **core.about)


def memory(run: Run, options):
    """What the released sizes need of a GPU at 1024 × 1024, counted on a fake one."""
    for row in table():
        run.record(comparison="memory", side="core", machine="computed", **row)


def savings(run: Run, options):
    """What Guidance Range and EasyCache save on the toy, and what they change. repeats: pictures of each kind."""
    os.environ["COMFYUI_PATH"] = str(comfyui_folder(options))
    from .savings import table as savings_table  # needs ComfyUI in this process

    for row in savings_table(options.repeats):
        run.record(comparison="savings", side="ComfyUI", machine="a CPU", **row)


def fp8(run: Run, options):
    """The error of the first velocity when the MMDiT's matrices are stored in 8 bits."""
    with loaded(run, options, "core") as (core,):
        for spread in (0.0, 1.0):
            reply = core.call("fp8", spread=spread)
            for scheme, errors in reply["errors"].items():
                stage = "rows alike" if not spread else "rows of different sizes"
                run.record(comparison="fp8", stage=stage, side=scheme, **errors, **core.about)


def batch(run: Run, options):
    """What `internvlu batch` costs beside a plain loop."""
    with loaded(run, options, "core") as (core,):
        about = core.about
    for found in batches.measure(checkpoint(run), run.work, options):
        run.record(comparison="batch", side="core", **found, **about)


def cards(run: Run, options):
    """Which weight format draws and edits on which card, by ComfyUI's own accounting on a pretended one."""
    os.environ["COMFYUI_PATH"] = str(comfyui_folder(options))
    from .cards import table as cards_table  # needs ComfyUI in this process

    for row in cards_table():
        run.record(comparison="cards", side="ComfyUI", machine="computed", **row)


NAMES = {
    "load": load,
    "stages": stages,
    "end-to-end": end_to_end,
    "comfyui": comfyui,
    "vae": vae,
    "decode": decode,
    "many": many,
    "many-pictures": many_pictures,
    "batch": batch,
    "scaling": scaling,
    "memory": memory,
    "savings": savings,
    "cards": cards,
    "fp8": fp8,
    "quantisation": quantisation,
    "sixteen": sixteen,
}
__all__ = ["NAMES", "ROOT", "official_python"]
