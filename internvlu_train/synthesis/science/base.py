"""The figures of science, which the modules of this folder add to."""

from ..figures import Figures

science = Figures("science")
