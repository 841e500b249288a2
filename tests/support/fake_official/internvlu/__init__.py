"""In place of the official code: a pipeline with its methods, which gives the values of the runs in tests/golden.

It calls what the official pipeline calls, in the same order and with as many pictures, so that a recorder hears the
same. In bfloat16 each value is rounded.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from . import processing_internvlu  # noqa: F401, as in the official package

GOLDEN = Path(__file__).resolve().parents[3] / "golden"


class Run:
    """The recorded values of the run that goes on."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def start(self, prompt: str, mode: str, beams: int):
        cases = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
        self.case = next(c for c in cases if (c["prompt"], c["mode"], c.get("num_beams", 1)) == (prompt, mode, beams))
        file = GOLDEN / "recorded" / self.case["name"]
        self.record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        self.tensors = load_file(file.with_suffix(".safetensors"))

    def __getitem__(self, name: str) -> torch.Tensor:
        value = self.tensors[name]
        return value.to(self.dtype) if value.is_floating_point() else value


class Part:
    def __init__(self, run: Run):
        self.run = run


class VLM(Part):
    def extract_feature(self, pixels):
        return self.run["vit.features"].repeat(len(pixels) // len(self.run.case["images"]), 1, 1)

    def generate(self, input_ids):
        return torch.tensor(self.run.record["output_ids"])


class Transformer(Part):
    def forward(self, x, timestep):
        return (self.run["dit.step0.velocity"],)


class Scheduler(Part):
    def step(self, guided, timestep, x):
        return (x,)


class ImagePipeline(Part):
    def __init__(self, run: Run):
        super().__init__(run)
        self.transformer, self.scheduler = Transformer(run), Scheduler(run)

    def pixels_to_latents(self, pixels):
        return self.run["reference.latents.0"].repeat(len(pixels), 1, 1, 1)

    def latents_to_pixels(self, latents):
        return self.run["vae.decoded"]

    def draw(self):
        run = self.run
        if "images" in run.case:
            self.pixels_to_latents(run["reference.pixels.0"].repeat(2, 1, 1, 1))
        self.scheduler.timesteps = torch.tensor(run.record["timesteps"])
        x = run["dit.step0.input"]
        for step in range(run.case["steps"]):
            self.transformer.forward(x, timestep=run["dit.step0.timestep"])
            guided = run.tensors.get(f"sampler.guided.{step}", run["sampler.guided.0"])
            self.scheduler.step(guided, self.scheduler.timesteps[step], x[:1])
        self.latents_to_pixels(run["latents.final"])


class Output:
    images: list


class InternVLUPipeline(Part):
    def __init__(self, dtype: torch.dtype):
        super().__init__(Run(dtype))
        self.vlm, self.image_pipeline, self.tokenizer = VLM(self.run), ImagePipeline(self.run), self

    @classmethod
    def from_pretrained(cls, checkpoint: str, torch_dtype: torch.dtype):
        return cls(torch_dtype)

    def set_progress_bar_config(self, disable: bool):
        pass

    def batch_decode(self, ids, skip_special_tokens: bool):
        return self.run.record["output_text"]

    def _prepare_diffusion_inputs(self, input_ids, attention_mask):
        branches = range(3)
        return {
            "encoder_hidden_states": [self.run[f"context.hidden.{i}"] for i in branches],
            "encoder_image_token_mask": [self.run[f"context.image_mask.{i}"] for i in branches],
        }

    def __call__(self, prompt, image, generation_mode, num_beams=1, **settings):
        run, output = self.run, Output()
        run.start(prompt, generation_mode, num_beams)
        if image:
            count = len(image[0]) * (1 if generation_mode == "text" else 2)
            pixels = run.tensors.get("vit.pixel_values", torch.zeros(1))
            self.vlm.extract_feature(pixels[:1].repeat(count, *[1] * (pixels.ndim - 1)))
        if generation_mode != "image":
            self.vlm.generate(input_ids=torch.tensor(run.record["generate_input_ids"]))
        if generation_mode != "text":
            ids = run["context.input_ids"], run["context.attention_mask"]
            self._prepare_diffusion_inputs(input_ids=ids[0], attention_mask=ids[1])
            self.image_pipeline.draw()
            output.images = [Image.fromarray(np.asarray(run["images"][0]))]
        return output
