# SPDX-License-Identifier: MIT
"""The wheel: one for every Python, the library inside, usable far from the source tree, and on glibc 2.35. It is built around
the library of the build tree, which compiling once more would take a minute for."""
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import numpy, attend
q, k, v = (numpy.full((1, 2, 3, 8), x, numpy.float32) for x in (1, 2, 3))
assert (attend.attention(q, k, v, causal=True) == 3).all()
print(attend.__file__)
"""


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", directory,
        "--config-settings", "cmake.define.ATTEND_LIBRARY=" + os.environ["ATTEND_LIBRARY"])
    found, = directory.glob("*.whl")
    return found


def test_tag_and_contents(wheel):
    assert re.fullmatch(r"attend-[\d.]+-py3-none-\w+\.whl", wheel.name)
    names = run(sys.executable, "-m", "zipfile", "--list", wheel)
    for name in ("attend/libattend.so", "attend/py.typed", "attend/torch.py", "licenses/LICENSE"):
        assert name in names
    assert not re.search(r"attend\.h|bin/|\.a\b", names)


def test_glibc(wheel):
    """Of the system it needs libc and libm alone, of glibc at most 2.35."""
    told = run(sys.executable, "-m", "auditwheel", "show", wheel)
    version, = re.findall(r'following platform tag:\s+"manylinux_2_(\d+)_', told)
    assert int(version) <= 35, told
    assert set(re.findall(r"\blib\w+\.so[.\d]*", told)) <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"}, told


def test_works_from_a_clean_environment(wheel, tmp_path):
    """An environment of its own, with NumPy lent by the tests'."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATTEND", "PYTHON"))}
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", env=environment).strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", PROGRAM, cwd=tmp_path, env=environment).strip()
    assert where.startswith(str(site))
