"""The two kinds of error that a user can cause, both ValueErrors, and the checks that raise them."""

import importlib
from numbers import Integral, Real

MAX_SEED = 2**64 - 1  # torch's generators take no larger one
MAX_BYTES = 2**63 - 1
MAX_SETTING = 2**31 - 1  # for counts that have no natural limit


class CheckpointError(ValueError):
    """A checkpoint folder that is missing, cut off, foreign, or at odds with its own JSON."""


class InputError(ValueError):
    """A prompt, picture, size or setting that the model cannot take. The message names the value."""


def check_integer(name: str, value, least: int, most: int):
    """Raise InputError unless value is an integer from least to most. Booleans are none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}; it must be an integer")
    if not least <= value <= most:
        raise InputError(f"{name} is {value}; it must be from {least} to {most}")


def check_number(name: str, value, good, wanted: str):
    """Raise InputError unless value is a number for which good(value) holds. wanted: says what is good."""
    if isinstance(value, bool) or not isinstance(value, Real) or not good(value):
        raise InputError(f"{name} is {value!r}; it must be {wanted}")


def check_text(name: str, value) -> str:
    """Return value. Raises InputError unless it is a string without unpaired surrogates."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid text: {error}") from error
    return value


def how_to_install(extra: str) -> str:
    """What a message says about an extra of pyproject.toml. No package index has this program, so by its folder."""
    return f'in the folder of this pack: pip install ".[{extra}]"'


def need(module: str, extra: str = "batch"):
    """Import and return a module that only some need. Raises InputError saying how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is missing ({error}); {how_to_install(extra)}") from error


def in_one_line(error: BaseException, longest: int = 200) -> str:
    """The message of an error without line breaks, cut after so many characters."""
    return " ".join(str(error).split())[:longest]
