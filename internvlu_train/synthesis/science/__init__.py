"""Science: charts, physics, chemistry, computer science and mathematics, drawn by the libraries of these fields."""

from ..figures import apart
from . import charts, chemistry, computing, mathematics, physics
from .base import science

MODULES = (charts, physics, chemistry, computing, mathematics)
KINDS = {
    task: {kind: apart(make) for module in MODULES for kind, make in module.KINDS.get(task, {}).items()}
    for task in ("draw", "edit", "ask", "reason")
}
check = science.check
