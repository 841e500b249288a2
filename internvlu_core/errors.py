"""The two kinds of error a user can cause. Both are ValueErrors, so callers that do not care need not import them."""


class CheckpointError(ValueError):
    """A checkpoint folder that is missing, cut off, foreign, or at odds with its own JSON."""


class InputError(ValueError):
    """A prompt, picture, size or setting that the model cannot take. The message names the value."""
