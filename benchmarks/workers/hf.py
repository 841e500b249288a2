"""A worker with transformers' Qwen3 on the language model of a checkpoint: `generate` with its defaults."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import Qwen3Config, Qwen3ForCausalLM
from wire import measured, serve, versions

PREFIX = "language_model."


class Transformers:
    def hello(self) -> dict:
        return versions("transformers")

    def load(self, checkpoint: str, device: str, dtype: str) -> dict:
        self.device = device
        folder = Path(checkpoint) / "vlm"
        config = Qwen3Config(**json.loads((folder / "config.json").read_text(encoding="utf-8"))["llm_config"])

        def load():
            state = {}
            for file in sorted(folder.glob("*.safetensors")):
                with safe_open(file, "pt") as handle:
                    for name in handle.keys():  # noqa: SIM118  it is no dict
                        if name.startswith(PREFIX):
                            state[name.removeprefix(PREFIX)] = handle.get_tensor(name)
            model = Qwen3ForCausalLM.from_pretrained(
                None, config=config, state_dict=state, torch_dtype=getattr(torch, dtype)
            )
            return model.to(device).eval()

        self.model, cost = measured(load, device)
        weights = {p.data_ptr(): p.nbytes for p in self.model.parameters()}
        return cost | {"weights": sum(weights.values()), "attention": self.model.config._attn_implementation}

    def continue_ids(self, ids: list[int], tokens: int) -> dict:
        """Decode exactly this many tokens after ids, greedily."""
        prompt = torch.tensor([ids], device=self.device)
        result, cost = measured(
            lambda: self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            ),
            self.device,
        )
        return cost | {"tokens": result[0, len(ids) :].tolist()}


if __name__ == "__main__":
    worker = Transformers()
    serve({name: getattr(worker, name) for name in ("hello", "load", "continue_ids")})
