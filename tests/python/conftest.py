# SPDX-License-Identifier: MIT
"""The tests use the library of the build tree: ATTEND_LIBRARY, or build/libattend.so."""
import os
from pathlib import Path

os.environ.setdefault("ATTEND_LIBRARY", str(Path(__file__).resolve().parents[2] / "build" / "libattend.so"))
