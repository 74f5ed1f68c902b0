# SPDX-License-Identifier: MIT
"""The examples of docs/python.md do what they say."""
import doctest
from pathlib import Path


def test_python_page():
    page = Path(__file__).resolve().parents[2] / "docs" / "python.md"
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    assert found.attempted > 10 and found.failed == 0
