"""Space: solids, their views, turns, cuts and unfoldings, by a geometric kernel."""

from .pictures import space
from .tasks import KINDS

check = space.check

__all__ = ["KINDS", "check", "space"]
