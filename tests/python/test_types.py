# SPDX-License-Identifier: MIT
"""mypy --strict finds nothing in the package, nor in a program that uses it; and it does find a wrong call."""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "tests" / "python" / "programs" / "typed_client.py"


def mypy(*files):
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir",
                           ROOT / "build" / "mypy", *files], env={**os.environ, "MYPYPATH": str(ROOT / "python")},
                          capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_strictly_typed(tmp_path):
    code, words = mypy(ROOT / "python" / "attend", CLIENT)
    assert code == 0, words
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import attend\nattend.attention(1, 2, 3, causal='yes', windows=None)\n")
    code, words = mypy(wrong)
    assert code == 1 and 'expected "bool"' in words and '"windows"' in words, words
