#!/usr/bin/env python3
"""Writes a checkpoint folder with random weights in bfloat16, shard by shard: a full-size one needs 8.5 GB of disk and
less than 2 GB of memory.

    python scripts/random_checkpoint.py FOLDER [--scale released|small|shallow|text|narrow]

tests/support/scaled_checkpoints.py has the scales.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.scaled_checkpoints import SCALES, write_checkpoint  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help="must not exist yet")
    parser.add_argument("--scale", choices=SCALES, default="released")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists already")
    write_checkpoint(options.folder, options.scale)
