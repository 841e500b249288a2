"""Test-only nodes: they show tensors and network calls to a test, and bring a test's own tensors into a graph.

No part of the pack that users install; the servers of tests/comfy and tests/browser have this folder as a second pack.
"""

import hashlib
import json
import sys
from pathlib import Path

import comfy.model_patcher
import comfy.supported_models
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from safetensors.torch import load_file, save_file

ANY = "*"
CALLS = "DEBUG_CALLS"


class Fresh:
    """Runs again in every prompt: what it shows or counts belongs to one run."""

    CATEGORY = "debug"
    FUNCTION = "run"

    @classmethod
    def IS_CHANGED(cls, **kwargs):
        return float("nan")


class DebugSave(Fresh):
    """Shape, statistics and checksum of every tensor in a value, as UI text; the tensors in output/NAME.safetensors.

    value: LATENT, IMAGE, MASK, SIGMAS, CONDITIONING. A CONDITIONING's tensors are called 0.cond, 0.NAME, 1.cond, …
    """

    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "name": ("STRING", {})}, "optional": {"calls": (CALLS,)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def run(self, value, name, calls=None):
        tensors = {key: tensor.detach().contiguous().cpu().clone() for key, tensor in flatten(value)}
        save_file(tensors, Path(folder_paths.get_output_directory(), f"{name}.safetensors"))
        report = {"tensors": {key: describe(tensor) for key, tensor in tensors.items()}, "calls": calls}
        dynamo = sys.modules.get("torch._dynamo.utils")  # there once something was compiled
        report["compiled_graphs"] = dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
        return {"ui": {"text": [json.dumps(report)]}}


def flatten(value, prefix=""):
    """(name, tensor) of every tensor in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield prefix or "value", value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            # A CONDITIONING is a list of [hidden states, values].
            if isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[1], dict):
                item = {"cond": item[0], **item[1]}
            yield from flatten(item, f"{prefix}.{i}" if prefix else str(i))


def describe(tensor: torch.Tensor) -> dict:
    values = tensor.double()
    return {
        "shape": list(tensor.shape),
        "finite": bool(values.isfinite().all()),
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "checksum": hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest(),
    }


class DebugCount(Fresh):
    """A MODEL whose network calls are listed; for DebugSave's input of that name.

    The wrapper stands where the node stands: behind EasyCache it counts what EasyCache lets through.
    """

    RETURN_TYPES = ("MODEL", CALLS)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        calls = []

        def count(executor, x, timestep, context, *args, **kwargs):
            calls.append({"t": timestep[0].item(), "rows": len(x), "tokens": context.shape[1]})
            return executor(x, timestep, context, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "debug_count", count)
        return model, calls


class DebugLoad(Fresh):
    """A tensor that a test wrote to input/FILE, as every type that a plain tensor can be."""

    RETURN_TYPES = ("LATENT", "IMAGE", "MASK", "SIGMAS", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {})}}

    def run(self, file):
        tensor = load_file(Path(folder_paths.get_input_directory(), file))["value"]
        return {"samples": tensor}, tensor, tensor, tensor, [[tensor, {}]]


class DebugForeignModel(Fresh):
    """Another architecture's MODEL: a tiny SD 1.5 U-Net of random weights."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        config = comfy.supported_models.SD15(
            {
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "num_res_blocks": [1],
                "channel_mult": [1],
                "num_heads": 1,
                "context_dim": 128,
                "use_spatial_transformer": True,
                "transformer_depth": [1],
                "transformer_depth_output": [1, 1],
                "transformer_depth_middle": 1,
                "use_linear_in_transformer": False,
                "adm_in_channels": None,
            }
        )
        config.set_inference_dtype(torch.float32, None)
        device = torch.device("cpu")
        model = config.get_model({}, device=device).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
        return (comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device),)


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (DebugSave, DebugCount, DebugLoad, DebugForeignModel)}
