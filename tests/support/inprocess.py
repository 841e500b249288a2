"""ComfyUI's modules and this pack inside the tests' own process, for what no server shows."""

import importlib.util
import os
import sys
from pathlib import Path

import torch

from .environment import SHIM
from .tensors import noise

ROOT = Path(__file__).resolve().parents[2]
PACK = "internvlu_pack"  # ComfyUI too loads a pack under a made-up name
SHIM_NAME = "comfy_shim"


def load_shim():
    """What the tests have by their PYTHONPATH (scripts/dev.py), for benchmarks, which are started without it."""
    if not any(type(finder).__name__ == "StandInForTorchaudio" for finder in sys.meta_path):
        spec = importlib.util.spec_from_file_location(SHIM_NAME, SHIM / "sitecustomize.py")
        sys.modules[SHIM_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[SHIM_NAME])


def load_pack():
    """Import ComfyUI (on the CPU) and the pack; returns the pack's package, whose modules import as PACK.nodes.…"""
    if PACK in sys.modules:
        return sys.modules[PACK]
    load_shim()
    # In front: ComfyUI has a module called nodes, and so has this repository's root.
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options
    import utils.install_util  # noqa: F401  before ComfyUI's nodes.py puts comfy/, with its utils.py, in front

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True  # must be set before comfy.model_management is imported
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


@torch.inference_mode()
def denoised(patcher) -> torch.Tensor:
    """x0 of the first step as ComfyUI computes it."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher])
    x, context = noise(1, 16, 1, 12, 10), noise(1, 24, patcher.model.diffusion_model.config.context_size, seed=1)
    return patcher.model.apply_model(x, torch.tensor([0.999]), c_crossattn=context, transformer_options={}).float()
