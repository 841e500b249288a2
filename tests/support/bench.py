"""A workbench for graphs: build one, run it on the server, get its tensors; and the core's answer to the same task."""

import json
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from internvlu_core.conditioning import Context
from internvlu_core.guidance import combine
from internvlu_core.sampling import dpmpp_2m, flow_sigmas, sigma_to_timestep

NAME = "InternVL-U"  # of the checkpoint, as in conftest.py and the shipped workflows
PROMPT, EDIT_PROMPT = "a photo of a cat", "make it night"
WIDTH, HEIGHT, SEED, STEPS, CFG = 80, 64, 7, 3, 4.5
SHAPE = (1, 16, 1, HEIGHT // 8, WIDTH // 8)


@dataclass(frozen=True)
class Node:
    """A node of a Graph; as an input it is its first output, node[i] is another one."""

    id: str

    def __getitem__(self, slot: int) -> list:
        return [self.id, slot]


class Graph:
    """An API-format prompt that grows: graph.KSampler(model=…, cfg=2) adds a node and returns it.

    Inputs that are not given have the node's defaults.
    """

    def __init__(self, bench: "Bench"):
        self.bench, self.prompt = bench, {}

    def __getattr__(self, class_type: str):
        def add(**inputs) -> Node:
            node = str(len(self.prompt) + 1)
            linked = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
            self.prompt[node] = {"class_type": class_type, "inputs": self.bench.defaults(class_type) | linked}
            return Node(node)

        return add


class Bench:
    def __init__(self, server, core, photo):
        self.server, self.core, self.photo = server, core, photo
        self.info = server.object_info()
        self.contexts = {}

    # Graphs

    def defaults(self, class_type: str) -> dict:
        """Values of a node's required widgets."""
        values = {}
        for name, (kind, *options) in self.info[class_type]["input"].get("required", {}).items():
            options = options[0] if options else {}
            if "default" in options:
                values[name] = options["default"]
            elif isinstance(kind, list) and kind:
                values[name] = kind[0]
            elif kind == "COMBO" and options.get("options"):
                values[name] = options["options"][0]
        return values

    def graph(self, edit=False) -> SimpleNamespace:
        """A graph with the loader, the three conditionings and an empty latent, as every row needs them."""
        g = Graph(self)
        load = g.InternVLULoader(checkpoint=NAME, weight_dtype="fp32")
        photo = g.LoadImage(image="photo.png")
        pictures = {"image1": photo, "vae": load[2]} if edit else {}
        encode = g.InternVLUEncode(vlm=load[1], prompt=EDIT_PROMPT if edit else PROMPT, **pictures)
        empty = g.InternVLUEmptyLatent(width=WIDTH, height=HEIGHT)
        return SimpleNamespace(
            g=g,
            model=load[0],
            vlm=load[1],
            vae=load[2],
            full=encode[0],
            partial=encode[1],
            unconditional=encode[2],
            empty=empty,
            photo=photo,
        )

    def sampled(self, s, *, model=None, count=True, **changes):
        """A stock KSampler behind s, its model counted: (LATENT, calls)."""
        counter = s.g.DebugCount(model=model or s.model) if count else None
        inputs = {
            "model": counter if count else model or s.model,
            "positive": s.full,
            "negative": s.unconditional,
            "latent_image": s.empty,
            "seed": SEED,
            "steps": STEPS,
            "cfg": CFG,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        }
        return s.g.KSampler(**inputs | changes), counter and counter[1]

    def ksample(self, s, **changes):
        """What a stock KSampler makes of s: (latents, calls)."""
        latent, calls = self.sampled(s, **changes)
        out = self.run(s.g, latent=latent, calls=calls)
        return out.latent["samples"], out.calls

    def run(self, graph: Graph, calls=None, **values):
        """Run a graph, and read back values={name: node}, dicts of tensors by the same names, and .calls.

        calls are those up to the first of the values. Every tensor is checked to be finite, and of the shape that the
        server reported.
        """
        nodes = {name: graph.DebugSave(value=value, name=name) for name, value in values.items()}
        first = next(iter(nodes.values())).id
        if calls:
            graph.prompt[first]["inputs"]["calls"] = calls
        self.result = self.server.run(graph.prompt)
        out = SimpleNamespace(calls=None)
        for name, node in nodes.items():
            report = json.loads(self.result.outputs[node.id]["text"][0])
            tensors = load_file(self.server.base_dir / "output" / f"{name}.safetensors")
            for key, told in report["tensors"].items():
                assert told["finite"], f"{name}.{key} is not finite"
                assert list(tensors[key].shape) == told["shape"], f"{name}.{key}"
            setattr(out, name, tensors)
            out.calls = out.calls or report["calls"]
            self.compiled_graphs = report["compiled_graphs"]
        return out

    def tensor(self, graph: Graph, file: str, value: Tensor) -> Node:
        """A node that gives this tensor: [0] as a LATENT, [1] IMAGE, [2] MASK, [3] SIGMAS, [4] CONDITIONING."""
        save_file({"value": value.contiguous()}, self.server.base_dir / "input" / file)
        return graph.DebugLoad(file=file)

    def has_input(self, class_type: str, name: str) -> bool:
        """Whether this ComfyUI's node has an input of this name."""
        return any(name in inputs for inputs in self.info[class_type]["input"].values())

    # The core's answers

    def context(self, edit=False, **options) -> Context:
        key = edit, *sorted(options.items())
        if key not in self.contexts:
            prompt, images = (EDIT_PROMPT, [self.photo]) if edit else (PROMPT, [])
            self.contexts[key] = self.core.encode(prompt, images, **options)
        return self.contexts[key]

    def velocity(self, branch, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B, 16, 1, h, w] at σ, by the core."""
        return self.core.velocity(branch, x[:, :, 0], sigma_to_timestep(sigma)).unsqueeze(2)

    def denoised(self, branch, x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma * self.velocity(branch, x, sigma)

    def cfg(self, positive, negative, scale=CFG):
        """Ordinary guidance over the core: a function of x, σ."""

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            with_it, without = (self.denoised(branch, x, sigma) for branch in (positive, negative))
            return without + scale * (with_it - without)

        return model

    def dual(self, context: Context, all_scale=4.5, partial_scale=2.0):
        """Three-branch guidance over the core, every branch evaluated."""

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            branches = context.full, context.partial, context.unconditional
            velocities = [self.velocity(branch, x, sigma) for branch in branches]
            step = sigma_to_timestep(sigma).item()
            return x - sigma * combine(*velocities, all_scale, partial_scale, step)

        return model

    def noise(self, shape=SHAPE, seed=SEED) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def official(self, model, sigmas=None, x=None) -> Tensor:
        """Raw latents of the official sampler."""
        sigmas = flow_sigmas(STEPS) if sigmas is None else sigmas
        return self.raw(dpmpp_2m(model, self.noise() if x is None else x, sigmas))

    def euler(self, model, sigmas: Tensor, x=None) -> Tensor:
        """Raw latents of Euler's method, from σ = 1 and the noise of SEED by default."""
        x = self.noise() if x is None else x
        with torch.inference_mode():
            for sigma, following in pairwise(sigmas):
                x = x + (x - model(x, sigma)) / sigma * (following - sigma)
        return self.raw(x)

    def encoded(self, image: Tensor) -> Tensor:
        """Normalised latents of an IMAGE."""
        with torch.inference_mode():
            return self.core.vae.encode(image.movedim(-1, 1) * 2 - 1).unsqueeze(2)

    def _channels(self, name: str) -> Tensor:
        return torch.tensor(getattr(self.core.config.vae, name)).view(1, -1, 1, 1, 1)

    def raw(self, latents: Tensor) -> Tensor:
        """As in a LATENT."""
        return latents * self._channels("latents_std") + self._channels("latents_mean")

    def normal(self, raw: Tensor) -> Tensor:
        """As the network sees it."""
        return (raw - self._channels("latents_mean")) / self._channels("latents_std")


def simple_sigmas(steps: int = STEPS, shift: float = 3.0) -> Tensor:
    """ComfyUI's "simple" schedule of a flow model, from 1000 tabulated levels."""
    t = torch.arange(1, 1001) / 1000
    levels = shift * t / (1 + (shift - 1) * t)
    return torch.tensor([*(float(levels[-(1 + int(i * 1000 / steps))]) for i in range(steps)), 0.0])


def picture(s: SimpleNamespace, width: int = WIDTH, height: int = HEIGHT) -> Node:
    """The photo of Bench.graph, scaled."""
    return s.g.ImageScale(image=s.photo, width=width, height=height, upscale_method="area", crop="disabled")


def left_half() -> Tensor:
    """A mask of the picture's left half."""
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 2] = 1
    return mask


def latent_mask(mask: Tensor) -> Tensor:
    """A mask of a picture as the stock samplers scale it to the latent's size."""
    return F.interpolate(mask[None], SHAPE[-2:], mode="bilinear")[:, :, None]


def one_forward_a_step(calls: list[dict], branches: int = 2, steps: int = STEPS):
    assert [call["rows"] for call in calls] == [branches] * steps


def two_forwards_a_step(calls: list[dict]):
    assert [call["rows"] for call in calls] == [1] * (2 * STEPS)


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest of what is expected."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-5):
    assert (found := difference(actual, expected)) <= tolerance, f"relative difference {found:.2e}"


def assert_differs(actual: Tensor, expected: Tensor, least: float = 1e-3):
    assert (found := difference(actual, expected)) >= least, f"relative difference only {found:.2e}"
