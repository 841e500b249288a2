"""docs/interop.md is what the rows of tests/support/interop.py say. tests/comfy/test_interop_*.py asserts the rows."""

import pytest

from support.interop import DOCUMENT, ROWS, Checks, document


def test_document_is_up_to_date():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run scripts/write_interop.py"


def test_every_row_is_tested():
    """Each part has a file, whose test fails for a row without a check."""
    comfy = DOCUMENT.parents[1] / "tests" / "comfy"
    files = {file.name for file in comfy.glob("test_interop_*.py")}
    assert files == {f"test_interop_{part.lower().replace(' ', '_')}.py" for part in ROWS}
    names = [nodes for rows in ROWS.values() for nodes in rows]
    assert len(set(names)) == len(names) >= 40


def test_a_check_needs_a_row_and_a_row_one_check():
    row = Checks("Sampling")
    row("SamplerCustom")(print)
    for nodes in ("SamplerCustom", "KSampler on Mars"):
        with pytest.raises(ValueError, match=nodes):
            row(nodes)
