"""What users may have saved with earlier versions: tests/saved."""

import json
from pathlib import Path

SAVED = Path(__file__).resolve().parents[1] / "saved" / "0.1"


def saved_graph(name: str) -> dict:
    return json.loads((SAVED / f"{name}.json").read_text(encoding="utf-8"))


def saved_prompt(name: str) -> dict:
    """In API format."""
    return json.loads((SAVED / "api" / f"{name}.json").read_text(encoding="utf-8"))
