"""Training: LoRA adapters from a folder of pictures, and the report's stages (arXiv 2603.09877) for a toy model.

The way of a sample: folder or synthesis → data (tokens) → feed (micro-batches) → objectives (losses) → loop (optimizer,
moving average, resuming) → storage or lora (the result). settings has what can be configured. Run
`python -m internvlu_train --help`.

Only the repository has synthesis/, evaluation/ and toy/; the pack for ComfyUI has the rest, for LoRA and
the released model.
No module outside these folders imports one of them at import time (see repository.py).
"""
