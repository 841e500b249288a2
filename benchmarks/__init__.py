"""What the pack costs, side by side with what a user would otherwise run: `python -m benchmarks --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # for support/
