"""Records runs of the official code, stage by stage. A program of its own, for the official code's environment.

    python record_official.py OFFICIAL CHECKPOINT FOLDER OUT [--device cuda] [--dtype float32] [--replay RECORDED]

OFFICIAL: a checkout of the official code, the folder with internvlu/. FOLDER: has cases.json and the pictures it names.
OUT: the folder for NAME.json and NAME.safetensors of each case, and, without --replay, for frequencies.json; see
tests/golden/README.md.
--replay: a folder of earlier recordings in float32. Each stage then gets the input that is recorded there, so that its
error is its own.

This file needs the official requirements (transformers 4.52.3, diffusers 0.35.1) and imports nothing of this package.
The official code is unchanged but for one thing: its processor rounds pixels to bfloat16, which float32 weights cannot
process, so pixels get the dtype of the weights. It can neither edit several pictures nor draw several.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

BRANCHES = 3  # full, partial, unconditional: the official code computes all of them, equal ones too


class TorchWithOtherBfloat16(ModuleType):
    """torch, with another dtype in place of bfloat16."""

    def __init__(self, dtype: torch.dtype):
        super().__init__("torch")
        self.bfloat16 = dtype

    def __getattr__(self, name: str):
        return getattr(torch, name)


class Recorder:
    """Listens to one run of the pipeline. Given an earlier recording, it passes that one's values on.

    tensors, record: what is written. given, known: the earlier recording of these; empty without one.
    """

    def __init__(self, pipeline, case: dict, given: dict[str, torch.Tensor], known: dict):
        self.pipeline, self.case, self.given, self.known = pipeline, case, given, known
        self.tensors: dict[str, torch.Tensor] = {}
        self.record: dict = dict(case)
        self.replaced: list[tuple[object, str]] = []
        self.step = 0

    def __enter__(self):
        p = self.pipeline
        self.listen(p.vlm, "extract_feature", self.features)
        self.listen(p.vlm, "generate", self.tokens)
        self.listen(p, "_prepare_diffusion_inputs", self.context)
        self.listen(p.image_pipeline, "pixels_to_latents", self.references)
        self.listen(p.image_pipeline.transformer, "forward", self.velocity)
        self.listen(p.image_pipeline.scheduler, "step", self.sampler)
        self.listen(p.image_pipeline, "latents_to_pixels", self.pixels)
        return self

    def __exit__(self, *error):
        for owner, name in self.replaced:
            delattr(owner, name)

    def listen(self, owner, name: str, heard: Callable):
        """Let heard(original, *arguments) stand in for a method of one object."""
        original = getattr(owner, name)
        # Modules and configurations of diffusers refuse or register attributes that are set as usual.
        owner.__dict__[name] = lambda *args, **kwargs: heard(original, *args, **kwargs)
        self.replaced.append((owner, name))

    def keep(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Record a value. Returns what the next stage gets: the earlier recording's value if there is one."""
        plain = value.detach().cpu()
        self.tensors[name] = (plain.float() if plain.is_floating_point() else plain).contiguous().clone()
        return self.given[name].to(value) if name in self.given else value

    # Stages

    def features(self, original, pixels, *args):
        """Tiles → image features."""
        made = original(pixels, *args)
        count = len(self.case["images"])  # a drawing has them twice, for two of its branches
        if self.case.get("keep_pixels"):
            self.keep("vit.pixel_values", pixels[:count])
        return self.keep("vit.features", made[:count]).repeat(len(made) // count, 1, 1)

    def tokens(self, original, **inputs):
        """A prompt → generated tokens."""
        made = original(**inputs)
        self.record["generate_input_ids"] = inputs["input_ids"].tolist()
        self.record["output_ids"] = made.tolist()
        self.record["output_text"] = self.pipeline.tokenizer.batch_decode(made, skip_special_tokens=True)
        # Texts can part in 16 bits; what follows is compared for the same text.
        return made.new_tensor(self.known["output_ids"]) if "output_ids" in self.known else made

    def context(self, original, **inputs):
        """Hidden states → the conditioning of each branch."""
        made = original(**inputs)
        self.keep("context.input_ids", inputs["input_ids"])
        self.keep("context.attention_mask", inputs["attention_mask"])
        made["encoder_hidden_states"] = [
            self.keep(f"context.hidden.{i}", hidden) for i, hidden in enumerate(made["encoder_hidden_states"])
        ]
        for i, mask in enumerate(made["encoder_image_token_mask"]):
            self.keep(f"context.image_mask.{i}", mask)
        return made

    def references(self, original, pixels):
        """A reference picture → its latents."""
        made = original(pixels)
        self.keep("reference.pixels.0", pixels[:1])
        return self.keep("reference.latents.0", made[:1]).repeat(len(made), 1, 1, 1)

    def velocity(self, original, x, **inputs):
        """One call of the MMDiT, for all branches."""
        made = original(x, **inputs)
        if self.step == 0:
            self.keep("dit.step0.input", x)
            self.keep("dit.step0.timestep", inputs["timestep"])
            self.keep("dit.step0.velocity", made[0])
        return made

    def sampler(self, original, guided, timestep, x, **settings):
        """One step, from the guided velocity."""
        made = original(guided, timestep, x, **settings)
        if self.step in (0, 1, self.case["steps"] - 1):
            self.keep(f"sampler.guided.{self.step}", guided)
            self.keep(f"sampler.latents.{self.step}", made[0])
        self.step += 1
        return made

    def pixels(self, original, latents):
        """Final latents → decoded pixels."""
        made = original(self.keep("latents.final", latents))
        self.keep("vae.decoded", made)
        return made


@torch.no_grad()
def run(recorder: Recorder, pictures: Path):
    """One case through the official pipeline."""
    case, draws = recorder.case, recorder.case["mode"] != "text"
    settings = {key: case[key] for key in ("height", "width", "system_prompt") if key in case}
    names = {"steps": "num_inference_steps", "all_cfg": "all_cfg_scale", "part_cfg": "part_cfg_scale"}
    settings |= {name: case[key] for key, name in names.items() if key in case}
    if draws:
        settings["generator"] = torch.Generator().manual_seed(case["seed"])
    if case["mode"] != "image":
        settings |= {"max_new_tokens": case["max_new_tokens"], "num_beams": case.get("num_beams", 1)}
        settings["do_sample"] = False
    images = [Image.open(pictures / name).convert("RGB") for name in case.get("images", [])]
    result = recorder.pipeline(
        prompt=case["prompt"], image=[images] if images else None, generation_mode=case["mode"], **settings
    )
    if draws:
        recorder.record["timesteps"] = recorder.pipeline.image_pipeline.scheduler.timesteps.tolist()
        recorder.tensors["images"] = torch.from_numpy(np.stack([np.asarray(image) for image in result.images]))


def frequencies(device: str) -> list[float]:
    """Of the timestep's sinusoids, as the official code computes them. Their last bits are those of this machine."""
    exponent = -math.log(10000) * torch.arange(128, dtype=torch.float32, device=device) / 128
    return exponent.exp().tolist()


def load_official(checkpoint: str | Path, device: str, dtype: torch.dtype):
    """The official pipeline. Its folder must be on sys.path."""
    from internvlu import InternVLUPipeline, processing_internvlu

    processing_internvlu.torch = TorchWithOtherBfloat16(dtype)
    pipeline = InternVLUPipeline.from_pretrained(str(checkpoint), torch_dtype=dtype)
    pipeline = pipeline if device == "cpu" else pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main():
    """See the text of this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    for name in ("official", "checkpoint", "folder", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(options.official))
    # Float32 is to be float32, on both sides of the comparison.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    pipeline = load_official(options.checkpoint, options.device, getattr(torch, options.dtype))
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.replay:
        (options.out / "frequencies.json").write_text(json.dumps(frequencies(options.device)), encoding="utf-8")
    for case in json.loads((options.folder / "cases.json").read_text(encoding="utf-8")):
        name, given, known = case["name"], {}, {}
        if options.replay:
            given = load_file(options.replay / f"{name}.safetensors")
            known = json.loads((options.replay / f"{name}.json").read_text(encoding="utf-8"))
        with Recorder(pipeline, case, given, known) as recorder:
            run(recorder, options.folder)
        save_file(recorder.tensors, options.out / f"{name}.safetensors")
        (options.out / f"{name}.json").write_text(json.dumps(recorder.record, indent=1), encoding="utf-8")
        print(name, flush=True)


if __name__ == "__main__":
    main()
