"""What tests, scripts and benchmarks share. None of them imports what is inside another one; they import from here.

The folder tests/ is on the path of pytest (pyproject.toml); scripts and benchmarks put it there themselves.
"""
