"""A worker with the official pipeline, in an environment of its own (`python -m benchmarks setup`).

    python official.py CHECKOUT      the folder that has internvlu/

The code is unchanged but for one thing (BENCHMARKS.md, "What is compared"): its processor rounds pixels to bfloat16,
which float32 weights cannot process, so pixels get the dtype of the weights.
"""

import sys

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from wire import StepClock, measured, serve, start_noise, versions

sys.path.insert(0, sys.argv[1])
import internvlu  # noqa: F401, so that loading is timed without it
from record_official import load_official  # wire knows its place


class Official:
    def __init__(self):
        self.pipeline = None

    def hello(self) -> dict:
        return versions("transformers", "diffusers", "accelerate")

    def load(self, checkpoint: str, device: str, dtype: str) -> dict:
        self.device, self.dtype = device, getattr(torch, dtype)
        self.pipeline, cost = measured(lambda: load_official(checkpoint, device, self.dtype), device)
        networks = self.pipeline.vlm, self.pipeline.generation_decoder, self.pipeline.vae
        unique = {p.data_ptr(): p.nbytes for network in networks for p in network.parameters()}
        return cost | {"weights": sum(unique.values())}

    # Stages

    @torch.no_grad()
    def see(self, pixels: str, out: str) -> dict:
        """Normalised tiles → image features."""
        tiles = self._read(pixels)
        features, cost = measured(lambda: self.pipeline.vlm.extract_feature(tiles), self.device)
        save_file({"value": features.float().flatten(0, 1).contiguous()}, out)
        return cost

    def context(self, prompt: str, images: list[str], out: str) -> dict:
        """From a prompt to the conditioning of the three branches."""
        inputs, cost = measured(lambda: self._conditioning(prompt, images, 512), self.device)
        hidden = inputs["encoder_hidden_states"]
        save_file({str(i): branch.float().contiguous() for i, branch in enumerate(hidden)}, out)
        return cost

    def _conditioning(self, prompt: str, images: list[str], size: int) -> dict:
        p = self.pipeline
        inputs = p.processor(
            prompt=prompt,
            image=_pictures(images),
            generation_mode="image",
            padding=True,
            return_tensors="pt",
            height=size,
            width=size,
            system_prompt=None,
        )
        inputs = {key: value.to(self.device) for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        pixels = inputs.get("pixel_values")
        states = p.vlm.generate_hidden_states(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values=pixels
        ).hidden_states
        return p._prepare_diffusion_inputs(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=pixels,
            pixel_values_gen=inputs.get("pixel_values_gen"),
            image_grid_thw_gen=inputs.get("image_grid_thw_gen"),
            generation_flags=inputs["generation_flags"],
            vlm_hidden_states=states,
        )

    def steps(self, prompt: str, images: list[str], size: int, seed: int, steps: int, out: str) -> dict:
        """Sampling steps with encoded references: the seconds of each step but the first."""
        inputs = self._conditioning(prompt, images, size)
        sampler, clock = self.pipeline.image_pipeline, StepClock(self.device)
        encode = sampler.pixels_to_latents
        if images:  # both branches with a reference have the same one
            encoded = encode(torch.cat(inputs["conditional_image"])[:1])
            sampler.pixels_to_latents = lambda pixels: encoded.repeat(len(pixels), 1, 1, 1)

        # The pipeline's own callback cannot be used: it reads a variable that is never set.
        scheduler_step = sampler.scheduler.step

        def step(*args, **options):
            result = scheduler_step(*args, **options)
            clock.tick()
            return result

        sampler.scheduler.step = step
        try:
            result, cost = measured(
                lambda: (
                    sampler(
                        **inputs,
                        num_inference_steps=steps,
                        latents=start_noise(size, seed),
                        output_type="latent",
                        use_resolution_binning=False,
                    ).images
                ),
                self.device,
            )
        finally:
            sampler.pixels_to_latents = encode
            del sampler.scheduler.step
        save_file({"value": result.float().contiguous()}, out)
        return cost | {"seconds": clock.intervals()}

    def vae_encode(self, pixels: str, out: str) -> dict:
        """Encode one reference picture as an edit does: once for each of the two branches that use it."""
        x = self._read(pixels).repeat(2, 1, 1, 1)
        z, cost = measured(lambda: self.pipeline.image_pipeline.pixels_to_latents(x), self.device)
        save_file({"value": z[:1].float().contiguous()}, out)
        return cost

    def vae_decode(self, latents: str, out: str) -> dict:
        z = self._read(latents)
        x, cost = measured(lambda: self.pipeline.image_pipeline.latents_to_pixels(z), self.device)
        save_file({"value": x.clamp(-1, 1).float().contiguous()}, out)
        return cost

    def text(self, prompt: str, images: list[str], tokens: int) -> dict:
        """Decode exactly this many tokens, greedily."""
        result, cost = measured(
            lambda: (
                self.pipeline(
                    prompt=prompt,
                    image=_pictures(images),
                    generation_mode="text",
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                ).generate_output
            ),
            self.device,
        )
        return cost | {"tokens": result[0].tolist()}

    # End to end

    def generate(self, prompt: str, images: list[str], size: int, steps: int, seed: int, reason: int, out: str) -> dict:
        """Draw a picture, after `reason` tokens of reasoning if that is not 0."""
        words = {"max_new_tokens": reason, "do_sample": False} if reason else {}
        result, cost = measured(
            lambda: self.pipeline(
                prompt=prompt,
                image=_pictures(images),
                generation_mode="text_image" if reason else "image",
                height=size,
                width=size,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                **words,
            ),
            self.device,
        )
        result.images[0].save(out)
        return cost

    def _read(self, file: str) -> torch.Tensor:
        return load_file(file)["value"].to(self.device, self.dtype)


def _pictures(files: list[str]):
    return [Image.open(file).convert("RGB") for file in files] or None


if __name__ == "__main__":
    official = Official()
    names = "hello", "load", "see", "context", "steps", "vae_encode", "vae_decode", "text", "generate"
    serve({name: getattr(official, name) for name in names})
