# SPDX-License-Identifier: MIT
"""Arrays on a GPU, as far as a machine without one can tell: the emulated driver of tests/fake, and arrays that look like CuPy's
and PyTorch's."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FAKE = Path(os.environ["ATTEND_LIBRARY"]).parent / "tests" / "fake"


@pytest.mark.skipif(not (FAKE / "libcuda.so.1").exists(), reason="the emulated CUDA driver is not built")
def test_emulated_gpu():
    environment = {**os.environ, "LD_LIBRARY_PATH": str(FAKE), "ATTEND_CUDA_IMAGES": "emulated",
                   "PYTHONPATH": str(HERE.parents[1] / "python")}
    done = subprocess.run([sys.executable, HERE / "programs" / "emulated_gpu.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr
