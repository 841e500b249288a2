"""The module whose bfloat16 the recorder replaces."""

import torch  # noqa: F401
