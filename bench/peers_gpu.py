# SPDX-License-Identifier: MIT
"""This library beside PyTorch's back-ends on the first GPU: same inputs, same process, turns interleaved, medians of event
times. Each side's calls are captured in a CUDA graph, so that nobody pays for its host code; inputs are rotated past the
L2 cache. Checks that they agree, prints a table, draws docs/performance/gpu.svg, and replaces the table of
docs/performance/gpu.md between its markers."""
import argparse
import dataclasses
import io
import os
import statistics
import sys
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from library import Library

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
MARKS = ("<!-- bench-gpu -->\n", "<!-- /bench-gpu -->\n")
PEERS = {"FlashAttention-2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION,
         "memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
L2_BYTES = 2e8  # several times any


@dataclasses.dataclass
class Case:
    kind: str  # short, decode, f32, bf16, or an option
    b: int
    h: int
    kv: int
    q: int
    k: int
    d: int
    causal: bool = False
    bnhd: bool = False
    backward: bool = False

    @property
    def dtype(self):
        return torch.float32 if self.kind == "f32" else torch.bfloat16

    def name(self):
        size = f"{self.b}×{self.h}×{self.q}×{self.d}" if self.kind != "decode" else \
            f"decode {self.b}×{self.k}, {self.h} heads on {self.kv}, {self.d}"
        option = "" if self.kind in ("short", "decode", "f32", "bf16") else f" {self.kind}"
        return (f"{size} {'causal' if self.causal else 'full'} {str(self.dtype)[6:].replace('float', 'f')}{option}"
                f"{' [B,N,H,D]' if self.bnhd and self.kind == 'short' else ''} "
                f"{'backward' if self.backward else 'forward'}")

    def flops(self):
        pairs = self.q * self.k / (2 if self.causal and self.q > 1 else 1)
        return 4 * self.b * self.h * pairs * self.d * (2.5 if self.backward else 1)

    def bytes(self):
        size = torch.finfo(self.dtype).bits // 8
        queries, keys = self.b * self.h * self.q * self.d, self.b * self.kv * self.k * self.d
        return size * ((3 * queries + 4 * keys) if self.backward else (2 * queries + 2 * keys))


def cases():
    both = (False, True)
    for n in (5, 8, 9, 16, 17, 32):
        for bnhd in both:
            for backward in both:
                yield Case("short", 8192, 8, 8, n, n, 64, True, bnhd, backward)
    for b, n in ((64, 4096), (1, 131072), (1, 4096)):
        yield Case("decode", b, 32, 8, 1, n, 128, bnhd=True)
    for kind, shapes in (("f32", ((2, 32, 2048, 64), (2, 16, 2048, 128), (1, 8, 8192, 64), (1, 8, 8192, 128))),
                         ("bf16", ((32, 32, 512, 64), (8, 32, 2048, 64), (1, 32, 16384, 64), (32, 16, 512, 128),
                                   (8, 16, 2048, 128), (1, 16, 16384, 128)))):
        for b, h, n, d in shapes:
            for causal in both:
                for backward in both:
                    yield Case(kind, b, h, h, n, n, d, causal, False, backward)
    for kind in ("bias", "mask", "dropout"):
        for backward in both:
            yield Case(kind, 8, 16, 16, 2048, 2048, 64, False, False, backward)


def random(case, heads, n, generator):
    shape = (case.b, n, heads, case.d) if case.bnhd else (case.b, heads, n, case.d)
    x = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(case.dtype)
    return x.transpose(1, 2) if case.bnhd else x


def make_calls(library, case, peers, seed):
    """{name: function} on one set of inputs, and {name: what it computed last}."""
    generator = torch.Generator("cuda").manual_seed(seed)
    q, d_out = (random(case, case.h, case.q, generator) for _ in range(2))
    k, v = (random(case, case.kv, case.k, generator) for _ in range(2))
    more, attn_mask = {}, None
    dropout = 0.1 if case.kind == "dropout" else 0.0
    if case.kind == "bias":
        attn_mask = more["bias"] = torch.randn(1, case.h, case.q, case.k, generator=generator, device="cuda").bfloat16()
    if case.kind == "mask":
        attn_mask = more["mask"] = torch.rand(1, 1, case.q, case.k, generator=generator, device="cuda") < 0.9
    out, lse = torch.empty_like(q), torch.empty(case.b, case.h, case.q, device="cuda")
    calls, results = {}, {}
    forward = library.call(False, case.causal, dropout=dropout, q=q, k=k, v=v, out=out, lse=lse, **more)
    if not case.backward:
        calls["attend"] = forward
        results["attend"] = [out]
    else:
        forward()
        grads = [torch.empty_like(t) for t in (q, k, v)]
        named = dict(zip(("d_q", "d_k", "d_v"), grads))
        if case.kind == "bias":
            named["d_bias"] = torch.empty_like(more["bias"])
        calls["attend"] = library.call(True, case.causal, dropout=dropout, q=q, k=k, v=v, out=out, lse=lse,
                                       d_out=d_out, **named, **more)
        results["attend"] = list(named.values())
    for name in peers:
        inputs = [t.detach().requires_grad_(case.backward) for t in (q, k, v)]
        mask = attn_mask.detach().requires_grad_() if case.backward and case.kind == "bias" else attn_mask
        def sdpa(backend=PEERS[name], inputs=inputs, mask=mask):
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=dropout, is_causal=case.causal,
                                                      enable_gqa=case.kv != case.h)
        if not case.backward:
            def call(name=name, sdpa=sdpa):
                with torch.no_grad():
                    results[name] = [sdpa()]
        else:
            wanted = inputs + ([mask] if case.kind == "bias" else [])
            done = sdpa()
            def call(name=name, done=done, wanted=wanted):
                results[name] = torch.autograd.grad(done, wanted, d_out, retain_graph=True)
        calls[name] = call
    return calls, results


def disagreement(case, results, name):
    """The largest difference over the largest value, over all outputs; None where dropout masks differ by design."""
    if case.kind == "dropout":
        return None
    return max(((a.float() - b.float()).abs().max() / a.float().abs().max().clamp(min=1e-6)).item()
               for a, b in zip(results["attend"], results[name]))


def measure(library, case, seconds):
    """Calls are captured in CUDA graphs, but for backward with dropout: PyTorch's then takes the state of the generator for
    an address on the GPU, unless forward was captured too."""
    peers = [p for p in PEERS if p != "math" or case.kind == "short"]
    sets = min(16, max(1, round(L2_BYTES / case.bytes())))
    runs, notes = {}, []
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for name in ["attend", *peers]:
            try:
                kept = []
                for n in range(sets):
                    calls, results = make_calls(library, case, [name] if name != "attend" else [], 1 + n)
                    for _ in range(2):
                        calls[name]()
                        calls["attend"]()
                    kept.append((calls, results))
                if name != "attend":
                    error = disagreement(case, kept[0][1], name)
                    if error is not None and not error < (3e-2 if case.dtype == torch.bfloat16 else 2e-4):
                        notes.append(f"{case.name()}: attend and {name} differ by {error:.2g} of the largest value")
                def run(name=name, kept=kept):
                    for calls, _ in kept:
                        calls[name]()
                if not (case.backward and case.kind == "dropout"):
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, stream=stream):
                        run()
                    def run(graph=graph, kept=kept):
                        graph.replay()
                run()
                stream.synchronize()
                runs[name] = run
            except (RuntimeError, torch.OutOfMemoryError) as error:
                if name == "attend":
                    raise
                if "No available kernel" not in str(error):
                    notes.append(f"{case.name()}: {name}: {str(error).splitlines()[0]}")
                torch.cuda.synchronize()
        times = {name: [] for name in runs}
        def turn(name, count):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            for _ in range(count):
                runs[name]()
            end.record(stream)
            end.synchronize()
            return begin.elapsed_time(end) * 1e-3 / count / sets
        counts = {name: max(1, int(seconds / 6 / (turn(name, 1) * sets))) for name in runs}
        for _ in range(5):
            for name in runs:
                times[name].append(turn(name, counts[name]))
    torch.cuda.synchronize()
    return {name: statistics.median(t) for name, t in times.items()}, notes


def ceilings():
    def best(step, repeats):
        times = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
        return statistics.median(times[2:])
    x = torch.randn(2 << 28, device="cuda")
    y = torch.empty_like(x)
    size = x.numel() * 4
    copy = 2 * size / best(lambda: y.copy_(x), 9)
    read = max(copy, size / best(lambda: x.sum(), 9))
    del x, y
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    product = 2 * 8192**3 / best(lambda: a @ b, 9)
    gpu = torch.cuda.get_device_properties(0)
    clock = getattr(gpu, "clock_rate", 1980000) * 1e3  # kHz
    return {"copy": copy, "read": read, "bf16": product, "f32": gpu.multi_processor_count * 128 * 2 * clock}


def fraction(case, seconds, ceiling):
    if case.kind in ("short", "decode"):
        return case.bytes() / seconds / ceiling["copy" if case.kind == "short" else "read"]
    return case.flops() / seconds / ceiling["f32" if case.kind == "f32" else "bf16"]


def table(rows, ceiling):
    text = io.StringIO()
    gpu = torch.cuda.get_device_properties(0)
    print(f"{gpu.name}, PyTorch {torch.__version__.split('+')[0]}. Ceilings: copy {ceiling['copy'] * 1e-9:.0f} GB/s, read "
          f"{ceiling['read'] * 1e-9:.0f} GB/s, bf16 product {ceiling['bf16'] * 1e-12:.0f} TFLOP/s (measured in this run); "
          f"f32 multiply-adds {ceiling['f32'] * 1e-12:.0f} TFLOP/s (lanes times clock).\n", file=text)
    print("| case | attend, µs | TFLOP/s | of the ceiling | " + " | ".join(f"{p}, µs | ratio" for p in PEERS) + " |",
          file=text)
    print("|---" * (4 + 2 * len(PEERS)) + "|", file=text)
    for case, s in rows:
        cells = [case.name(), f"{s['attend'] * 1e6:.4g}", f"{case.flops() / s['attend'] * 1e-12:.3g}",
                 f"{100 * fraction(case, s['attend'], ceiling):.0f}%"]
        for p in PEERS:
            cells += [f"{s[p] * 1e6:.4g}", f"{s[p] / s['attend']:.2f}"] if p in s else ["", ""]
        print("| " + " | ".join(cells) + " |", file=text)
    return text.getvalue()


def draw(rows, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "attend"
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(9, 0.2 * len(rows) + 1.2))
    colors = ("#d1603d", "#7a8b99", "#3d7dd1", "#9a6fb0")
    for name, color in zip(PEERS, colors):
        points = [(s[name] / s["attend"], y) for y, (_, s) in enumerate(rows) if name in s]
        axis.plot(*zip(*points), "o", color=color, label=name, markersize=4)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [case.name() for case, _ in rows], fontsize=6)
    axis.invert_yaxis()
    axis.set_xlabel("time of PyTorch's back-end / time of attend")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each case and library")
    parser.add_argument("--kind", help="short, decode, f32, bf16, bias, mask or dropout alone; nothing is written")
    parser.add_argument("--output", default=os.path.join(ROOT, "docs", "performance"), help="folder of gpu.md and gpu.svg")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("peers_gpu.py: PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore", category=UserWarning)  # why a back-end of PyTorch does not serve a case
    library = Library(a.build)
    ceiling, rows = ceilings(), []
    for case in cases():
        if a.kind and case.kind != a.kind:
            continue
        seconds, notes = measure(library, case, a.seconds)
        rows.append((case, seconds))
        for note in notes:
            print(note, file=sys.stderr)
        print(f"{case.name():56}" + "  ".join(f"{n} {s * 1e6:.4g} us" for n, s in seconds.items()), flush=True)
    text = table(rows, ceiling)
    print("\n" + text)
    if a.kind:
        return
    draw(rows, os.path.join(a.output, "gpu.svg"))
    page = os.path.join(a.output, "gpu.md")
    with open(page) as f:
        before, rest = f.read().split(MARKS[0])
    with open(page, "w") as f:
        f.write(before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    main()
