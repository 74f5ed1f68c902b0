# SPDX-License-Identifier: MIT
"""What a call from Python costs over the same call from C, on a tiny problem: processor time of this thread, the least of
many repetitions. Beside it PyTorch's own attention, and an operator of torch.library that does nothing: the floor of whatever
goes through PyTorch's dispatcher by way of Python, which is why attend.torch goes there only where it must.

    make -C bench overhead"""
import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))
import attend  # noqa: E402
import attend.torch  # noqa: E402
from attend import _prepared  # noqa: E402

LIBRARY = torch.library.Library("attend_overhead", "DEF")
LIBRARY.define("nothing(Tensor q, Tensor k, Tensor v) -> Tensor")
LIBRARY.impl("nothing", lambda q, k, v: torch.empty(q.shape), "CPU")


def microseconds(functions, number=100, rounds=200):
    """The least time of each, over rounds in which all take their turn: a machine that slows down for a while slows all."""
    least = [1e9] * len(functions)
    for _ in range(rounds):
        for i, f in enumerate(functions):
            least[i] = min(least[i], timeit.timeit(f, timer=time.thread_time, number=number))
    return [1e6 * t / number for t in least]


def c_calls():
    """100 calls from C with the plan, structs and workspace of the last call from Python."""
    prepared = list(_prepared._pools.values())[-1][0]
    workspace = _prepared._workspaces[0]
    with tempfile.TemporaryDirectory() as directory:
        loop = Path(directory) / "call_loop.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", f"-I{ROOT}/include", Path(__file__).parent / "call_loop.c", "-o", loop,
                        attend._library.lib._name, f"-Wl,-rpath,{Path(attend._library.lib._name).parent}"], check=True)
        run = ctypes.CDLL(str(loop)).call_loop
    arguments = (prepared.plan, ctypes.c_void_p(prepared.args_pointer), ctypes.c_void_p(workspace.address),
                 ctypes.c_size_t(prepared.workspace_bytes), ctypes.c_int64(100))
    assert run(*arguments) == 0
    return lambda: run(*arguments)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="1,2,4,16", help="B,H,N,D")
    shape = tuple(int(x) for x in parser.parse_args().shape.split(","))
    torch.set_num_threads(1)
    a = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    attend.attention(a, a, a)
    loop = c_calls()
    t = torch.from_numpy(a)
    g = t.clone().requires_grad_()
    module = attend.torch.Attend(causal=True, flash=True)
    rows = [("attend.attention, NumPy", lambda: attend.attention(a, a, a)),
            ("attend.attention, PyTorch", lambda: attend.attention(t, t, t)),
            ("attend.torch.attention", lambda: attend.torch.attention(t, t, t)),
            ("attend.torch.Attend", lambda: module(t, t, t)),
            ("attend.torch.attention, that requires grad", lambda: attend.torch.attention(g, g, g)),
            ("PyTorch's scaled_dot_product_attention", lambda: F.scaled_dot_product_attention(t, t, t)),
            ("PyTorch's, that requires grad", lambda: F.scaled_dot_product_attention(g, g, g)),
            ("an operator that does nothing (torch.library)", lambda: torch.ops.attend_overhead.nothing(t, t, t)),
            ("torch.ops.attend.forward", lambda: torch.ops.attend.forward(t, t, t, *[None] * 8, False, False, -1, -1, None, 0.0,
                                                                          0.0, 0, 0, ""))]
    *times, base = microseconds([f for _, f in rows] + [loop])
    base /= 100
    print(f"{'x'.join(map(str, shape))}, f32: the call from C takes {base:.2f} us; from Python, over that:")
    for (name, _), took in zip(rows, times):
        print(f"  {name:48} {took - (0 if 'nothing' in name else base):6.2f} us")


main()
