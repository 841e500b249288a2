"""How well a checkpoint draws, edits, answers and thinks: on the toy world, and on the files of public benchmarks."""

from .benchmarks import BENCHMARKS
from .toy import TASKS, evaluate

__all__ = ["BENCHMARKS", "TASKS", "evaluate"]
