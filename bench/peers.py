# SPDX-License-Identifier: MIT
"""This library beside PyTorch and ONNX Runtime on the CPU: same inputs, same process, calls interleaved, medians after a
warm-up, inputs rotated past the cache; with several threads a pause before each call. Checks that they agree, prints a
table, draws docs/performance/cpu.svg, and replaces the table of docs/performance/cpu.md between its markers."""
import argparse
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import time

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # PyTorch's tensors in huge pages, as the memory of the ceilings is
import numpy as np
import torch
import torch.nn.functional as F

from library import Library

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
MARKS = ("<!-- bench-peers -->\n", "<!-- /bench-peers -->\n")


@dataclasses.dataclass
class Case:
    kind: str  # decides the target and the ceiling
    b: int
    h: int
    kv: int
    q: int
    k: int
    d: int
    causal: bool
    dtype: torch.dtype
    backward: bool

    def name(self):
        size = f"{self.b}×{self.h}×{self.q}×{self.d}" if self.kind != "decode" else \
            f"decode {self.k}, {self.h} heads on {self.kv}, {self.d}"
        direction = "backward" if self.backward else "forward"
        return f"{size} {'causal' if self.causal else 'full'} {str(self.dtype)[6:].replace('float', 'f')} {direction}"

    def pairs(self):
        """Visible (query, key) pairs of one head."""
        return self.q * self.k - (self.q * (self.q - 1) // 2 if self.causal else 0)

    def flops(self):
        return 4 * self.b * self.h * self.pairs() * self.d * (2.5 if self.backward else 1)

    def bytes(self):
        size = torch.finfo(self.dtype).bits // 8
        queries, keys = self.b * self.h * self.q * self.d, self.b * self.kv * self.k * self.d
        return size * ((3 * queries + 4 * keys) if self.backward else (2 * queries + 2 * keys))

    def target(self):
        if self.kind == "short":
            return 5.0
        if self.kind == "decode":
            return 2.0
        return 1.0 if self.backward else 1.3 if self.causal else 1.1


def cases():
    f32, bf16 = torch.float32, torch.bfloat16
    for b, h, n, d in [(1, 8, 2048, 64), (1, 16, 2048, 128)]:
        for dtype in (f32, bf16):
            for causal in (False, True):
                yield Case("long", b, h, h, n, n, d, causal, dtype, False)
    for dtype in (f32, bf16):
        for causal in (False, True):
            yield Case("long", 1, 8, 8, 2048, 2048, 64, causal, dtype, True)
    for b, n in [(4096, 5), (2048, 8), (1024, 16)]:
        for dtype in (f32, bf16):
            for backward in (False, True):
                yield Case("short", b, 8, 8, n, n, 64, True, dtype, backward)
    for dtype in (f32, bf16):
        yield Case("decode", 1, 32, 8, 1, 32768, 128, False, dtype, False)


def ceilings(build, threads):
    """Multiply-adds of f32 and bf16, reading, three reads to one streaming write: measured by the command."""
    def measure(shape, *more):
        line = [os.path.join(build, "attend"), "bench", "--json", "--no-progress", "--threads", str(threads),
                "--seconds", "0.01", "--shape", shape, *more]
        return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)[0]
    square, row = measure("1,1,64,64"), measure("1,1,1/4096,64", "--dtype", "bf16")
    return {"float32": square["ceiling_gflops"], "bfloat16": max(row["ceiling_gflops"], square["ceiling_gflops"]),
            "read": row["ceiling_gbytes_per_s"], "stream": square["ceiling_gbytes_per_s"]}


def fraction(case, seconds, ceiling):
    flops = case.flops() / seconds * 1e-9 / ceiling[str(case.dtype)[6:]]
    memory = case.bytes() / seconds * 1e-9 / ceiling["read" if case.kind == "decode" else "stream"]
    return max(flops, memory)


def onnx_session(case, threads):
    """ONNX Runtime's fused MultiHeadAttention: f32 forward, as many key heads as query heads."""
    if case.dtype != torch.float32 or case.backward or case.kv != case.h:
        return None
    import onnxruntime
    from onnx import TensorProto, helper
    def value(name, heads, n):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [case.b, n, heads * case.d])
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["out"], domain="com.microsoft", num_heads=case.h,
                            unidirectional=int(case.causal))
    graph = helper.make_graph([node], "attention", [value("q", case.h, case.q), value("k", case.h, case.k),
                                                    value("v", case.h, case.k)], [value("out", case.h, case.q)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1") # else its threads spin into the others' turns
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def make_calls(library, case, threads, seed):
    """{library's name: function} on one set of inputs, and {name: what it computed}."""
    generator = torch.Generator().manual_seed(seed)
    def random(heads, n):
        return torch.randn(case.b, heads, n, case.d, generator=generator).to(case.dtype)
    q, k, v = random(case.h, case.q), random(case.kv, case.k), random(case.kv, case.k)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    calls, results = {}, {}
    shared = dict(causal=case.causal, threads=threads)
    if not case.backward:
        calls["attend"] = library.call(False, q=q, k=k, v=v, out=out, lse=lse, **shared)
        results["attend"] = lambda: out
        def sdpa():
            with torch.no_grad():
                results["torch"] = lambda r=F.scaled_dot_product_attention(q, k, v, is_causal=case.causal,
                                                                           enable_gqa=case.kv != case.h): r
        calls["torch"] = sdpa
        session = onnx_session(case, threads)
        if session: # it reads [B,N,H*D]
            feed = {n: t.transpose(1, 2).reshape(case.b, -1, t.shape[1] * case.d).numpy()
                    for n, t in (("q", q), ("k", k), ("v", v))}
            def run():
                r = session.run(None, feed)[0]
                results["onnxruntime"] = lambda: torch.from_numpy(r).view(case.b, case.q, case.h, case.d).transpose(1, 2)
            calls["onnxruntime"] = run
        return calls, results
    d_out = random(case.h, case.q)
    library.call(False, q=q, k=k, v=v, out=out, lse=lse, **shared)()
    grads = [torch.empty_like(t) for t in (q, k, v)]
    calls["attend"] = library.call(True, q=q, k=k, v=v, out=out, lse=lse, d_out=d_out, d_q=grads[0], d_k=grads[1],
                                   d_v=grads[2], **shared)
    results["attend"] = lambda: torch.cat([g.flatten() for g in grads])
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    forward = F.scaled_dot_product_attention(*inputs, is_causal=case.causal)
    def gradient():
        g = torch.autograd.grad(forward, inputs, d_out, retain_graph=True)
        results["torch"] = lambda: torch.cat([x.flatten() for x in g])
    calls["torch"] = gradient
    return calls, results


def agree(case, results):
    ours = results["attend"]().float()
    for name, theirs in results.items():
        error = (theirs().float() - ours).abs().max().item() / max(1e-6, ours.abs().max().item())
        if not error < (3e-2 if case.dtype == torch.bfloat16 else 1e-4):
            sys.exit(f"{case.name()}: attend and {name} differ by {error:.2g} of the largest value")


def measure(library, case, threads, seconds):
    sets = min(4, max(1, round(2.5e8 / case.bytes())))
    made = [make_calls(library, case, threads, 1 + n) for n in range(sets)]
    for calls, results in made:
        for call in calls.values():
            call()
        agree(case, results)
    clock = time.process_time if threads == 1 else time.perf_counter # the former is not stretched by a busy machine
    times = {name: [] for name in made[0][0]}
    start, turn = time.perf_counter(), 0
    while turn < 9 or time.perf_counter() - start < seconds:
        for name, call in made[turn % sets][0].items():
            if threads > 1:
                time.sleep(0.01) # the threads of another library spin on after their work
            before = clock()
            call()
            times[name].append(clock() - before)
        turn += 1
    return {name: statistics.median(t) for name, t in times.items()}


def table(rows, ceiling, threads):
    text = io.StringIO()
    versions = f"PyTorch {torch.__version__.split('+')[0]}"
    if any("onnxruntime" in r["seconds"] for r in rows):
        import onnxruntime
        versions += f", ONNX Runtime {onnxruntime.__version__}"
    count = f"{threads} threads" if threads > 1 else "One thread, its processor time"
    print(f"{count}; {versions}. Ceilings measured in this run: f32 {ceiling['float32']:.0f} GFLOP/s, bf16 "
          f"{ceiling['bfloat16']:.0f} GFLOP/s, reading {ceiling['read']:.1f} GB/s, three reads to one streaming write "
          f"{ceiling['stream']:.1f} GB/s.\n", file=text)
    print("| case | attend, ms | of the ceiling | PyTorch, ms | ratio | target | ONNX Runtime, ms | ratio |", file=text)
    print("|---|---|---|---|---|---|---|---|", file=text)
    for r in rows:
        case, s = r["case"], r["seconds"]
        other = s.get("onnxruntime")
        print(f"| {case.name()} | {s['attend'] * 1e3:.3g} | {100 * fraction(case, s['attend'], ceiling):.0f}% "
              f"| {s['torch'] * 1e3:.3g} | {s['torch'] / s['attend']:.2f} | {case.target():g} "
              + (f"| {other * 1e3:.3g} | {other / s['attend']:.2f} |" if other else "| | |"), file=text)
    return text.getvalue()


def draw(rows, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "attend"
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(9, 0.27 * len(rows) + 1.2))
    y = np.arange(len(rows))
    for name, color, shift in (("torch", "#d1603d", -0.18), ("onnxruntime", "#7a8b99", 0.18)):
        ratio = [r["seconds"].get(name, float("nan")) / r["seconds"]["attend"] for r in rows]
        axis.barh(y + shift, ratio, 0.34, color=color, label={"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}[name])
    axis.axvline(1, color="black", linewidth=0.8)
    axis.plot([r["case"].target() for r in rows], y, "|", color="black", markersize=9, label="target beside PyTorch")
    axis.set_xscale("log")
    axis.set_yticks(y, [r["case"].name() for r in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("time of the other library / time of attend")
    axis.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=2, help="for each case")
    parser.add_argument("--kind", help="long, short or decode alone; nothing is written")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    library = Library(a.build)
    ceiling = ceilings(a.build, a.threads)
    rows = []
    for case in cases():
        if a.kind and case.kind != a.kind:
            continue
        seconds = measure(library, case, a.threads, a.seconds)
        rows.append({"case": case, "seconds": seconds})
        print(f"{case.name():48}" + "  ".join(f"{n} {s * 1e3:.3g} ms" for n, s in seconds.items()), flush=True)
    text = table(rows, ceiling, a.threads)
    print("\n" + text)
    if a.kind:
        return
    folder = os.path.join(ROOT, "docs", "performance")
    os.makedirs(folder, exist_ok=True)
    draw(rows, os.path.join(folder, "cpu.svg"))
    page = os.path.join(folder, "cpu.md")
    with open(page) as f:
        before, rest = f.read().split(MARKS[0])
    with open(page, "w") as f:
        f.write(before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    main()
