"""Evaluation of a checkpoint: scores on the synthetic world, and outputs for public benchmarks."""

from .benchmarks import BENCHMARKS
from .toy import TASKS, evaluate

__all__ = ["BENCHMARKS", "TASKS", "evaluate"]
