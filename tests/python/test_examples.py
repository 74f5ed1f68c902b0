# SPDX-License-Identifier: MIT
"""The scripts of examples/ run as they stand."""
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def script(name, *arguments):
    done = subprocess.run([sys.executable, ROOT / "examples" / name, *arguments], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_characters():
    told = script("train_characters.py", "200")
    first, *_, last = (float(x) for x in re.findall(r"([\d.]+) nats", told))
    assert first > 4 and last < 2.9, told
    assert len(told.partition("200:")[2]) > 60
