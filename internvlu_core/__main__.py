"""`python -m internvlu_core`: the command line, see cli.py."""

import sys

from .cli import run

sys.exit(run())
