#!/usr/bin/env python3
"""Writes docs/interop.md from the rows in tests/support/interop.py.

python3 scripts/write_interop.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.interop import DOCUMENT, document

if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
