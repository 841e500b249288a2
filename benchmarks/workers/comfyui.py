"""A worker with the pack in ComfyUI: the code of the nodes in this process, under ComfyUI's memory management.

    python comfyui.py COMFYUI DEVICE      the folder that has main.py; cpu or cuda

Also ComfyUI's own Wan VAE with the same weights, with which a user could decode as well.
"""

import importlib
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from wire import StepClock, measured, serve, versions

COMFYUI, DEVICE = sys.argv[1:]
ROOT = Path(__file__).resolve().parents[2]
PACK = "internvlu_pack"  # ComfyUI too loads a pack under a made-up name
WEIGHT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def load_pack():
    """As tests/support/inprocess.py does; returns a function that imports one of the pack's modules."""
    # In front: ComfyUI has a module called nodes, and so has this repository's root.
    sys.path.insert(0, COMFYUI)
    import comfy.options
    import utils.install_util  # noqa: F401  before ComfyUI's nodes.py puts comfy/, with its utils.py, in front

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = DEVICE == "cpu"  # must be set before comfy.model_management is imported
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])
    return lambda name: importlib.import_module(f"{PACK}.{name}")


module = load_pack()
loader, encode, sampling = (module(f"nodes.{name}") for name in ("loader", "encode", "sampling"))

import comfy.sd  # noqa: E402
import latent_preview  # noqa: E402


class ComfyUI:
    def hello(self) -> dict:
        import comfyui_version

        found = versions("transformers")
        found["versions"]["ComfyUI"] = comfyui_version.__version__
        return found

    def load(self, checkpoint: str, device: str, dtype: str) -> dict:
        def load():
            source = loader.open_source(checkpoint)
            config, kept = loader.Config.read(source), loader.DTYPES[WEIGHT_DTYPES[dtype]]
            return (
                loader.load_model(source, config, kept),
                loader.load_vlm(source, config, kept),
                loader.load_vae(source, config),
            )

        (self.model, self.vlm, self.vae), cost = measured(load, device)
        self.native = None
        self.device = device
        return cost

    @torch.inference_mode()
    def steps(self, prompt: str, images: list[str], size: int, seed: int, steps: int, out: str) -> dict:
        clock = StepClock(self.device)
        latent_preview.prepare_callback = lambda model, steps: lambda *step: clock.tick()
        pictures = {f"image{i}": _image(file) for i, file in enumerate(images, 1)}
        full, partial, unconditional = encode.InternVLUEncode.execute(self.vlm, prompt, self.vae, **pictures).args
        latent = {"samples": torch.zeros(1, 16, 1, size // 8, size // 8)}
        inputs = {"latent_image": latent, "seed": seed, "steps": steps, "denoise": 1.0}
        inputs |= dict.fromkeys(("all_scale", "partial_scale"), sampling.AUTOMATIC)
        result, cost = measured(
            lambda: sampling.InternVLUSampler.execute(self.model, full, partial, unconditional, **inputs).args[0],
            self.device,
        )
        result = result["samples"]
        config = self.vlm.config.vae
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        save_file({"value": ((result[:, :, 0] - mean) / std).contiguous()}, out)
        return cost | {"seconds": clock.intervals()}

    @torch.inference_mode()
    def vae_decode(self, latents: str, out: str) -> dict:
        """The pack's VAE on its socket."""
        return self._decode(self.vae, latents, out)

    @torch.inference_mode()
    def vae_encode(self, pixels: str, out: str) -> dict:
        return self._encode(self.vae, pixels, out)

    @torch.inference_mode()
    def native_decode(self, latents: str, out: str) -> dict:
        return self._decode(self._native(), latents, out)

    @torch.inference_mode()
    def native_encode(self, pixels: str, out: str) -> dict:
        return self._encode(self._native(), pixels, out)

    def _native(self):
        if self.native is None:
            self.native = comfy.sd.VAE(sd=self.vae.get_sd(), dtype=self.vae.vae_dtype)
            self.native.not_video = True
        return self.native

    def _decode(self, vae, latents: str, out: str) -> dict:
        config = self.vlm.config.vae
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        raw = (load_file(latents)["value"] * std + mean)[:, :, None]
        picture, cost = measured(lambda: vae.decode(raw), self.device)
        save_file({"value": (2 * picture[:, 0].movedim(-1, 1) - 1).float().cpu().contiguous()}, out)
        return cost

    def _encode(self, vae, pixels: str, out: str) -> dict:
        picture = (load_file(pixels)["value"].movedim(1, -1) + 1) / 2
        raw, cost = measured(lambda: vae.encode(picture), self.device)
        config = self.vlm.config.vae
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        save_file({"value": ((raw[:, :, 0].float().cpu() - mean) / std).contiguous()}, out)
        return cost


def _image(file: str) -> torch.Tensor:
    picture = Image.open(file).convert("RGB")
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return levels.view(1, picture.height, picture.width, 3).float() / 255


if __name__ == "__main__":
    comfyui = ComfyUI()
    names = "hello", "load", "steps", "vae_encode", "vae_decode", "native_encode", "native_decode"
    serve({name: getattr(comfyui, name) for name in names})
