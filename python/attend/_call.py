# SPDX-License-Identifier: MIT
"""The functions of the package: attention, its backward pass, and what libattend says about itself."""
from __future__ import annotations

import ctypes
import random
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import _library as c
from ._arrays import CPU, Shape, View, adapter_of, compact_strides
from ._prepared import Backend, Output, Prepared, call, make_options

Window = Optional[Tuple[int, int]]


def _seed_of(dropout: float, seed: Optional[int], direction: int) -> int:
    if not dropout:
        return 0
    if seed is None:
        if direction == c.BACKWARD:
            raise c.ArgumentError("seed: the backward pass of dropout needs the seed of its forward pass")
        return random.getrandbits(63)
    return seed & 0xFFFFFFFFFFFFFFFF


def _integers(x: Any) -> Any:
    """Lists of numbers become arrays of 64-bit integers; arrays pass."""
    if x is None or hasattr(x, "__dlpack__"):
        return x
    import numpy
    return numpy.asarray(x, numpy.int64)


def _longest(offsets: Any) -> int:
    import numpy
    if getattr(getattr(offsets, "device", None), "type", "cpu") != "cpu":
        return 0
    steps = numpy.diff(numpy.asarray(offsets))
    return max(int(steps.max()), 1) if steps.size and steps.min() >= 0 else 0


_QKV = ("q", "k", "v")
_OPTIONAL = ("mask", "bias", "alibi_slopes", "sink", "kv_len", "q_offsets", "k_offsets", "block_table")


def _operands(q: Any, k: Any, v: Any, *optional: Any) -> Tuple[Tuple[str, ...], List[Any]]:
    """Names and arrays of those that are given; the optional ones in the order of _OPTIONAL."""
    given = [(name, x) for name, x in zip(_OPTIONAL, optional) if x is not None]
    return _QKV + tuple(name for name, _ in given), [q, k, v, *(x for _, x in given)]


def _lse_shape(shape: Shape, layout: str) -> Shape:
    if len(shape) == 3:
        return (shape[1], shape[0])
    return (shape[0], shape[2], shape[1]) if layout == "bnhd" else tuple(shape[:-1])


def _forward_outputs(shapes: Dict[str, Shape], layout: str, lse: bool, probs: bool, scores: bool) -> List[Output]:
    q, k, v = shapes["q"], shapes["k"], shapes["v"]
    outputs: List[Output] = [("out", q[:-1] + v[-1:], "q", False)]
    rows = _lse_shape(q, layout)
    if lse:
        outputs.append(("lse", rows, "q", True))
    if probs or scores:
        keys = k[1] if layout == "bnhd" or len(k) == 3 else k[2]
        outputs += [("probs", rows + (keys,), "q", True)] if probs else []
        outputs += [("scores", rows + (keys,), "q", True)] if scores else []
    return outputs


def attention(q: Any, k: Any, v: Any, *, causal: bool = False, top_left: bool = False, window: Window = None, mask: Any = None,
              bias: Any = None, alibi: Any = None, softcap: float = 0.0, sink: Any = None, dropout: float = 0.0,
              seed: Optional[int] = None, offset: int = 0, scale: Optional[float] = None, kv_len: Any = None,
              layout: str = "bhnd", backend: Backend = None, return_lse: bool = False, q_offsets: Any = None,
              k_offsets: Any = None, max_q_len: int = 0, max_k_len: int = 0, block_table: Any = None, return_probs: bool = False,
              return_scores: Optional[str] = None, threads: int = 0, kernel: Optional[str] = None) -> Any:
    """Exact attention of any arrays with ``__dlpack__``, without a copy; the result is an array of q's library.

    q [B,H,Nq,D], k [B,Hkv,Nk,D], v [B,Hkv,Nk,Dv], or with layout="bnhd" [B,N,H,D]; k, v [B,Nk,D] are one head for all.
    Ragged: q [Tq,H,D], k, v [Tk,Hkv,D] with q_offsets and k_offsets. Paged: k, v [blocks,Hkv,size,D] with block_table and kv_len.
    mask: bool, true = attend, [B,Nk] or broadcasting to [B,H,Nq,Nk]; bias: added, rank 4; alibi: slopes [H] or [B,H]; sink [H].
    causal is bottom-right unless top_left. backend: "flash", "efficient", "math", "reference", or several: a command.
    Returns out, or (out, lse, probs, scores) of those asked for. docs/semantics.md says what is computed.
    """
    names: Tuple[str, ...]
    if mask is bias is alibi is sink is kv_len is q_offsets is k_offsets is block_table is None:
        names, arrays = _QKV, [q, k, v]
    else:
        q_offsets, k_offsets = _integers(q_offsets), _integers(k_offsets)
        if q_offsets is not None and not max_q_len:
            max_q_len = _longest(q_offsets)
        if k_offsets is not None and not max_k_len:
            max_k_len = _longest(k_offsets)
        names, arrays = _operands(q, k, v, mask, bias, alibi, sink, _integers(kv_len), q_offsets, k_offsets,
                                  _integers(block_table))
    if window is not None:
        window = tuple(window)  # type: ignore[assignment]
    if backend is not None and not isinstance(backend, str):
        backend = tuple(backend)
    results = call(c.FORWARD, names, arrays, (causal, top_left, window, softcap, dropout, scale, backend, max_q_len, max_k_len,
                                              return_scores, threads, kernel),
                   layout, (return_lse, return_probs, return_scores is not None), _forward_outputs,
                   _seed_of(dropout, seed, c.FORWARD) if dropout else 0, offset)
    return results[0] if len(results) == 1 else tuple(results)


class Gradients(NamedTuple):
    """What attention_backward returns; None for what was not asked for."""
    d_q: Any = None
    d_k: Any = None
    d_v: Any = None
    d_bias: Any = None
    d_sink: Any = None


def _backward_outputs(shapes: Dict[str, Shape], layout: str, *gradients: str) -> List[Output]:
    return [("d_" + name, shapes[name], name, False) for name in gradients]


def attention_backward(d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *, d_lse: Any = None, causal: bool = False,
                       top_left: bool = False, window: Window = None, mask: Any = None, bias: Any = None, alibi: Any = None,
                       softcap: float = 0.0, sink: Any = None, dropout: float = 0.0, seed: Optional[int] = None, offset: int = 0,
                       scale: Optional[float] = None, kv_len: Any = None, layout: str = "bhnd", backend: Backend = None,
                       q_offsets: Any = None, k_offsets: Any = None, max_q_len: int = 0, max_k_len: int = 0, threads: int = 0,
                       kernel: Optional[str] = None,
                       gradients: Sequence[str] = ("q", "k", "v", "bias", "sink")) -> Gradients:
    """The gradients of attention(): `out` and `lse` are those of the forward pass, the options the same."""
    q_offsets, k_offsets = _integers(q_offsets), _integers(k_offsets)
    if q_offsets is not None and not max_q_len:
        max_q_len = _longest(q_offsets)
    if k_offsets is not None and not max_k_len:
        max_k_len = _longest(k_offsets)
    names, arrays = _operands(q, k, v, mask, bias, alibi, sink, _integers(kv_len), q_offsets, k_offsets, None)
    names += ("out", "lse", "d_out") if d_lse is None else ("out", "lse", "d_out", "d_lse")
    arrays += [out, lse, d_out] if d_lse is None else [out, lse, d_out, d_lse]
    wanted = tuple(name for name in ("q", "k", "v", "bias", "sink") if name in gradients and name in names)
    if window is not None:
        window = tuple(window)  # type: ignore[assignment]
    if backend is not None and not isinstance(backend, str):
        backend = tuple(backend)
    results = call(c.BACKWARD, names, arrays, (causal, top_left, window, softcap, dropout, scale, backend, max_q_len, max_k_len,
                                               None, threads, kernel),
                   layout, wanted, _backward_outputs, _seed_of(dropout, seed, c.BACKWARD) if dropout else 0, offset)
    return Gradients(**{"d_" + name: x for name, x in zip(wanted, results)})


@dataclass(frozen=True)
class Explanation:
    """Which kernel would serve a call; `passed_over` is (kernel, reason) of each that would not."""
    kernel: str
    backend: str
    tile_q: int
    tile_k: int
    splits: int
    threads: int
    workspace_bytes: int
    passed_over: Tuple[Tuple[str, str], ...]


def explain(q: Any, k: Any, v: Any, *, causal: bool = False, top_left: bool = False, window: Window = None, mask: Any = None,
            bias: Any = None, alibi: Any = None, softcap: float = 0.0, sink: Any = None, dropout: float = 0.0,
            scale: Optional[float] = None, kv_len: Any = None, layout: str = "bhnd", backend: Backend = None,
            q_offsets: Any = None, k_offsets: Any = None, block_table: Any = None, max_q_len: int = 0, max_k_len: int = 0,
            threads: int = 0, kernel: Optional[str] = None) -> Explanation:
    """What attention() would do with these arguments; nothing is computed."""
    names, arrays = _operands(q, k, v, mask, bias, alibi, sink, _integers(kv_len), _integers(q_offsets), _integers(k_offsets),
                              _integers(block_table))
    views = {name: adapter_of(x).view(x) for name, x in zip(names, arrays)}
    shape = views["q"].shape[:-1] + views["v"].shape[-1:]
    views["out"] = View(256, shape, compact_strides(shape), views["q"].code, views["q"].bits, views["q"].device)
    options = make_options(causal, top_left, window, softcap, dropout, scale, backend, max_q_len, max_k_len, None, threads, kernel)
    prepared, found = Prepared(c.FORWARD, views, options, layout == "bnhd"), c.Explanation()
    found.size = ctypes.sizeof(c.Explanation)
    status = c.lib.attend_explain(c.FORWARD, prepared.args_pointer, byref(prepared.options), byref(found))
    if status:
        raise c.failure(status)
    backends = {bit: name for name, bit in c.BACKENDS.items()}
    return Explanation(found.kernel.decode(), backends.get(found.backend, ""), found.tile_q, found.tile_k, found.splits,
                       found.threads, found.workspace_bytes,
                       tuple((x.kernel.decode(), x.reason.decode()) for x in found.candidates[:found.candidate_count]
                             if not x.chosen))


def info() -> Dict[str, Any]:
    """What this machine has: version, CPU features, threads, every kernel compiled in, GPUs."""
    backends = {bit: name for name, bit in c.BACKENDS.items()}
    kernels: List[Dict[str, Any]] = []
    gpus: List[Dict[str, Any]] = []
    kernel, gpu = c.Kernel(size=ctypes.sizeof(c.Kernel)), c.Gpu(size=ctypes.sizeof(c.Gpu))
    while c.lib.attend_kernel_at(len(kernels), byref(kernel)) == 0:
        kernels.append({"name": kernel.name.decode(), "backend": backends.get(kernel.backend, ""),
                        "device": "cpu" if kernel.device == CPU else "cuda", "usable": bool(kernel.usable),
                        "direction": "backward" if kernel.direction else "forward", "reason": kernel.reason.decode()})
    while c.lib.attend_gpu_at(len(gpus), byref(gpu)) == 0:
        gpus.append({"name": gpu.name.decode(), "compute_capability": (gpu.major, gpu.minor), "reason": gpu.reason.decode(),
                     "memory_bytes": gpu.memory_bytes, "image": gpu.image.decode()})
    return {"version": c.lib.attend_version().decode(), "cpu_features": c.lib.attend_cpu_features().decode(),
            "cpu_threads": c.lib.attend_cpu_threads(), "kernels": kernels, "gpus": gpus}
