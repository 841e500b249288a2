"""The technical report's training stages (arXiv 2603.09877), on the toy world of internvlu_train.synthesis.

settings (frozen configs) → fresh (a checkpoint to start from) → data (samples to batches) → objectives (losses) →
loop (optimizer, EMA, resuming). Run `python -m internvlu_train --help`.
"""
