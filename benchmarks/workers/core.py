"""A worker with the core, which also measures the speed of the machine for the floors."""

import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from wire import StepClock, measured, serve, start_noise, versions

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from internvlu_core import InternVLU  # noqa: E402
from internvlu_core.batching import BatchLimits, TextBatch, TextJob  # noqa: E402
from internvlu_core.decoding import TextSettings, generate_tokens  # noqa: E402
from internvlu_core.doctor.measure import machine_speed  # noqa: E402
from internvlu_core.quantization.float8 import quantise  # noqa: E402
from internvlu_core.sampling import flow_sigmas  # noqa: E402

FP8 = torch.float8_e4m3fn


def _scaled(weight: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    scale = largest / torch.finfo(FP8).max
    return (weight / scale).clamp(-448, 448).to(FP8).float() * scale


def _kept(weight: torch.Tensor) -> torch.Tensor:
    values, scale = quantise(weight)
    return values.float() * scale[:, None]


# 8-bit schemes: what a matrix becomes when it is stored and read back.
SCHEMES = {
    "plain cast": lambda w: w.to(FP8).float(),
    "a factor a matrix": lambda w: _scaled(w, w.abs().max()),
    "a factor a row": lambda w: _scaled(w, w.abs().amax(1, keepdim=True)),
    "a power of two a row (the core's)": _kept,
}


class Core:
    def __init__(self):
        self.model = None

    def hello(self) -> dict:
        return versions("transformers", "safetensors")

    def load(self, checkpoint: str, device: str, dtype: str) -> dict:
        self.device, self.dtype = device, getattr(torch, dtype)
        return self._load(lambda: InternVLU.from_pretrained(checkpoint, device, self.dtype))

    def make(self, scale: str, device: str, dtype: str) -> dict:
        """As load, with random weights that are made in memory."""
        from support.scaled_checkpoints import random_model

        self.device, self.dtype = device, getattr(torch, dtype)
        return self._load(lambda: random_model(scale, device, self.dtype))

    def _load(self, load) -> dict:
        self.model = None
        self.model, cost = measured(load, self.device)
        networks = self.model.vlm, self.model.mmdit, self.model.vae
        return cost | {"weights": sum(p.nbytes for network in networks for p in network.parameters())}

    # Stages, as in official.py

    def forget(self):
        """Empty the cache of image features, so that every round computes the same."""
        self.model.conditioner.seen.clear()

    def see(self, pixels: str, out: str) -> dict:
        self.forget()
        tiles = [load_file(pixels)["value"]]
        features, cost = measured(
            lambda: self.model.conditioner.image_features(tiles, self.device, self.dtype), self.device
        )
        save_file({"value": features[0].float().contiguous()}, out)
        return cost

    def context(self, prompt: str, images: list[str], out: str) -> dict:
        """The hidden states of the three branches, and their numbers of tokens for the floors."""
        self.forget()
        context, cost = measured(lambda: self.model.encode(prompt, _pictures(images)), self.device)
        branches = context.full, context.partial, context.unconditional
        save_file({str(i): branch.hidden.float().clone() for i, branch in enumerate(branches)}, out)
        return cost | {"tokens": [len(branch.hidden) for branch in branches]}

    def steps(self, prompt: str, images: list[str], size: int, seed: int, steps: int, out: str) -> dict:
        context, clock = self.model.encode(prompt, _pictures(images)), StepClock(self.device)
        scales = self.model.config.mmdit.guidance(reasoned=False)
        sigmas = flow_sigmas(steps, self.model.config.mmdit.flow_shift)
        x = start_noise(size, seed)
        result, cost = measured(
            lambda: self.model.sample(context, x, sigmas, *scales, lambda *step: clock.tick()), self.device
        )
        save_file({"value": result.contiguous()}, out)
        return cost | {"seconds": clock.intervals()}

    @torch.inference_mode()
    def vae_encode(self, pixels: str, out: str) -> dict:
        x = load_file(pixels)["value"].to(self.device, self.dtype)
        z, cost = measured(lambda: self.model.vae.encode(x), self.device)
        save_file({"value": z.float().contiguous()}, out)
        return cost

    def vae_decode(self, latents: str, out: str) -> dict:
        z = load_file(latents)["value"]
        x, cost = measured(lambda: self.model.decode(z), self.device)
        save_file({"value": x.contiguous()}, out)
        return cost

    def text(self, prompt: str, images: list[str], tokens: int) -> dict:
        self.forget()
        result, cost = measured(
            lambda: self.model.answer(prompt, _pictures(images), max_new_tokens=tokens), self.device
        )
        return cost | {"tokens": list(result.token_ids)}

    def chat_ids(self, prompt: str) -> dict:
        """The token ids of the prompt that text() continues."""
        return {"ids": list(self.model.conditioner.prompts.chat(prompt, [], None).ids)}

    def generate(self, prompt: str, images: list[str], size: int, steps: int, seed: int, reason: int, out: str) -> dict:
        self.forget()

        def generate():
            pictures = _pictures(images)
            thought = self.model.reason(prompt, pictures, max_new_tokens=reason) if reason else None
            return self.model.generate(
                prompt, pictures, height=size, width=size, steps=steps, seed=seed, reasoning=thought
            )

        result, cost = measured(generate, self.device)
        result.images[0].save(out)
        return cost

    # Text alone

    def continue_ids(self, ids: list[int], tokens: int) -> dict:
        """Decode exactly this many tokens after ids, greedily. None of the ids is special."""

        def run():
            prompt = self.model.vlm.embed_generated(torch.tensor([ids], device=self.device))
            return generate_tokens(self.model.vlm, prompt, (), TextSettings(tokens))

        generated, cost = measured(run, self.device)
        return cost | {"tokens": generated}

    # Many requests

    def continue_many(self, ids: list[list[int]], tokens: int) -> dict:
        """As continue_ids for several prompts, in one decoding loop."""

        @torch.inference_mode()
        def run():
            embed, settings = self.model.vlm.embed_generated, TextSettings(tokens)
            prompts = [embed(torch.tensor([one], device=self.device)) for one in ids]
            jobs = (lambda x=x: TextJob(x.shape[1], lambda: x, settings) for x in prompts)
            found = dict(TextBatch(self.model.vlm, (), jobs, BatchLimits(rows=len(ids))).run())
            return [found[index] for index in range(len(ids))]

        written, cost = measured(run, self.device)
        return cost | {"tokens": _by_step(written), "texts": len(ids)}

    def continue_each(self, ids: list[list[int]], tokens: int) -> dict:
        """As continue_many, one by one."""
        replies = [self.continue_ids(one, tokens) for one in ids]
        seconds = sum(reply["seconds"] for reply in replies)
        tokens = _by_step([reply["tokens"] for reply in replies])
        return replies[-1] | {"seconds": seconds, "tokens": tokens, "texts": len(ids)}

    def draw_many(self, count: int, size: int, steps: int, out: str) -> dict:
        """Drawings of several prompts and seeds together."""
        return self._draw(
            lambda asked: [o.unwrap().latents for o in self.model.generate_many(asked)], count, size, steps, out
        )

    def draw_each(self, count: int, size: int, steps: int, out: str) -> dict:
        """As draw_many, one by one."""
        return self._draw(lambda asked: [self.model.generate(**one).latents for one in asked], count, size, steps, out)

    def _draw(self, run, count: int, size: int, steps: int, out: str) -> dict:
        asked = [
            {"prompt": f"A red boat on lake {i}", "height": size, "width": size, "steps": steps, "seed": i}
            for i in range(count)
        ]
        latents, cost = measured(lambda: run(asked), self.device)
        save_file({"value": torch.cat(latents)}, out)
        return cost

    # Scaling

    @torch.inference_mode()
    def forward(self, height: int, width: int, context: int, batch: int, references: int, repeats: int) -> dict:
        """Seconds of each forward pass of the MMDiT on noise. height, width: of the latents and of each reference."""
        config = self.model.config
        generator = torch.Generator().manual_seed(0)

        def noise(*shape):
            return torch.randn(shape, generator=generator).to(self.device, self.dtype)

        channels = config.vae.latent_channels
        x, states = noise(batch, channels, height, width), noise(1, context, config.mmdit.context_size)
        pictures = [noise(1, channels, height, width) for _ in range(references)]
        mask, timestep = torch.zeros(context, dtype=torch.bool), torch.full((batch,), 500.0, device=self.device)

        def run():
            return self.model.mmdit(x, timestep, states, mask, [], pictures)

        run()
        costs = [measured(run, self.device)[1] for _ in range(repeats)]
        return {"seconds": [cost["seconds"] for cost in costs], "peak": max(cost["peak"] or 0 for cost in costs)}

    # Weights in 8 bits

    @torch.inference_mode()
    def fp8(self, spread: float) -> dict:
        """Relative errors of the MMDiT's block matrices in 8 bits, and of the first velocity, for each scheme.

        spread: the rows of each matrix are first scaled by factors whose logarithms have this standard deviation,
        because the rows of trained matrices differ in size.
        """
        matrices = [
            module.weight
            for block in self.model.mmdit.transformer_blocks
            for module in block.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        generator = torch.Generator().manual_seed(0)
        context = self.model.encode("a red boat")
        x = start_noise(256, 1).to(self.device)

        def velocity():
            return self.model.velocity(context.full, x, torch.tensor([999.0])).double()

        originals = [matrix.clone() for matrix in matrices]
        spreads = [torch.exp(spread * torch.randn(len(m), 1, generator=generator)).to(m) for m in matrices]
        weights = [matrix * factor for matrix, factor in zip(originals, spreads, strict=True)]

        def put(values):
            for matrix, value in zip(matrices, values, strict=True):
                matrix.copy_(value)

        put(weights)
        exact, errors = velocity(), {}
        for name, scheme in SCHEMES.items():
            put(scheme(weight.float()) for weight in weights)
            lost = sum(float((m - w).float().norm()) ** 2 for m, w in zip(matrices, weights, strict=True))
            whole = sum(float(weight.float().norm()) ** 2 for weight in weights)
            errors[name] = {
                "velocity": float((velocity() - exact).norm() / exact.norm()),
                "matrices": (lost / whole) ** 0.5,
            }
        put(originals)
        return {"errors": errors}

    # Floors

    def floor(self) -> dict:
        """The speed of the machine."""
        return machine_speed(self.device, self.dtype)


def _by_step(texts: list[list[int]]) -> list[int]:
    """The first token of each text, then the second of each, and so on."""
    return [token for step in zip(*texts, strict=True) for token in step]


def _pictures(files: list[str]) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in files]


if __name__ == "__main__":
    core = Core()
    stages = "see", "context", "steps", "vae_encode", "vae_decode", "text", "generate"
    many = "continue_many", "continue_each", "draw_many", "draw_each"
    names = "hello", "load", "make", *stages, "chat_ids", "continue_ids", *many, "forward", "fp8", "floor"
    serve({name: getattr(core, name) for name in names})
