#!/usr/bin/env python3
"""Prints a table in Markdown: how much error each group of matrices adds when it alone is in a GGUF block type.

    python scripts/measure_gguf.py CHECKPOINT [--types Q8_0,Q4_0]

The error is the relative difference to float32 of the MMDiT's first velocity for a group of the MMDiT, and of the
language model's logits for a group of the VLM, over two prompts.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from torch import nn  # noqa: E402

from internvlu_core import InternVLU  # noqa: E402
from internvlu_core.checkpoints.gguf import BLOCKS  # noqa: E402
from internvlu_core.quantization import Gguf  # noqa: E402
from internvlu_core.quantization.formats import is_block_matrix  # noqa: E402
from support.tensors import noise, relative  # noqa: E402

PROMPTS = "a red circle", "a boat on a lake at night"
VELOCITY, LOGITS = 0, 1


@torch.inference_mode()
def outputs(model: InternVLU) -> tuple[torch.Tensor, torch.Tensor]:
    """(first velocities, logits) of the prompts."""
    model.conditioner = type(model.conditioner)(model.vlm, model.tokenizer, model.config)  # it caches what it has read
    velocities, logits = [], []
    for prompt in PROMPTS:
        context = model.encode(prompt).full
        velocities.append(model.velocity(context, noise(1, 16, 16, 16), torch.tensor([999.0])).flatten())
        language = model.vlm.language_model
        ids = torch.tensor([model.conditioner.prompts.chat(prompt, [], None).ids])
        (hidden,) = language(model.vlm.embed_generated(ids), (language.config.num_layers,))
        logits.append(language.logits(hidden).flatten())
    return torch.cat(velocities), torch.cat(logits)


def groups(model: InternVLU) -> dict[str, tuple[int, list[nn.Module]]]:
    """{group: (what it has an effect on, its layers)}"""
    found: dict[str, tuple[int, list[nn.Module]]] = {}
    for name, network, effect in (("MMDiT", model.mmdit, VELOCITY), ("VLM", model.vlm, LOGITS)):
        for path, layer in network.named_modules():
            if not isinstance(layer, nn.Linear | nn.Embedding) or path.startswith(("vision_model", "mlp1", "special")):
                continue  # no prompt here has a picture
            inside = is_block_matrix(f"{path}.weight", layer.weight)
            group = "repeated layers" if inside else path.partition(".timestep_embedder")[0]
            found.setdefault(f"{name}: {group}", (effect, []))[1].append(layer)
            if "_mod." in path:
                found.setdefault(f"{name}: modulations of these", (effect, []))[1].append(layer)
    return found


def error(model, layers: list[nn.Module], block_type: str, effect: int, exact: torch.Tensor) -> str:
    """The error with these layers in the type; a dash if their rows are no whole blocks of it."""
    if any(layer.weight.shape[1] % BLOCKS[block_type][0] for layer in layers):
        return "–"
    packed, kept = Gguf(block_type), [layer.weight.data for layer in layers]
    for layer in layers:
        layer.weight.data = packed.dequantise(packed.quantise(layer.weight.data), torch.float32)
    result = relative(outputs(model)[effect], exact)
    for layer, weight in zip(layers, kept, strict=True):
        layer.weight.data = weight
    return f"{100 * result:.2f}%"


def main(options):
    model = InternVLU.from_pretrained(options.checkpoint, dtype=torch.float32)
    exact, types = outputs(model), options.types.split(",")
    print(f"| group | values | measured | {' | '.join(types)} |\n|{'---|' * (3 + len(types))}")
    for group, (effect, layers) in groups(model).items():
        values = sum(layer.weight.numel() for layer in layers)
        errors = [error(model, layers, block_type, effect, exact[effect]) for block_type in types]
        print(f"| {group} | {values} | {('velocity', 'logits')[effect]} | {' | '.join(errors)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--types", default="Q8_0,Q4_0", help="of: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, MXFP4")
    main(parser.parse_args())
