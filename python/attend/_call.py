# SPDX-License-Identifier: MIT
"""Calls of the C library. A call is prepared once per signature (shapes, strides, types, options): its structs, plan and
workspace are kept, so that a repeated call only stores data pointers. Prepared calls are taken from a pool and put back, so
that threads never share one."""
from __future__ import annotations

import ctypes
import random
from ctypes import byref, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Sequence, Tuple

from . import _library as c
from ._arrays import CPU, View, adapter_of, compact_strides

_MAX_SIGNATURES = 512
_pools: dict = {}


class _Prepared:
    """One signature's structs, plan and workspace."""

    def __init__(self, direction, views, options, swap):
        self.keep, self.tensors, self.args = [], {}, c.Args()
        self.args.size = ctypes.sizeof(c.Args)
        self.options, self.plan, self.workspace, self.workspace_bytes = options, c_void_p(), None, 0
        self.direction = direction
        self.run = c.lib.attend_forward if direction == c.FORWARD else c.lib.attend_backward
        for name, view in views.items():
            shape, strides = list(view.shape), list(view.strides)
            if swap and name in _SWAPPED and len(shape) == 4:
                shape[1], shape[2], strides[1], strides[2] = shape[2], shape[1], strides[2], strides[1]
            tensor = c.Tensor(view.pointer, view.device[0], view.device[1], len(shape), view.code, view.bits, 1,
                              (c_int64 * len(shape))(*shape), (c_int64 * len(shape))(*strides), 0)
            self.tensors[name] = tensor
            setattr(self.args, name, ctypes.pointer(tensor))
        self.args_pointer = ctypes.addressof(self.args)

    def make_plan(self):
        """Also called again when data came less aligned than the plan assumed."""
        c.lib.attend_plan_destroy(self.plan)
        self.plan = c_void_p()
        status = c.lib.attend_plan_create(self.direction, self.args_pointer, byref(self.options), byref(self.plan))
        if status:
            raise c.failure(status)
        self.workspace_bytes = c.lib.attend_plan_workspace_bytes(self.plan)
        device = self.tensors["q"].device_type
        if device != CPU:
            return
        memory = ctypes.create_string_buffer(self.workspace_bytes + c.WORKSPACE_ALIGNMENT)
        self.keep = [memory]
        self.workspace = (ctypes.addressof(memory) + c.WORKSPACE_ALIGNMENT - 1) // c.WORKSPACE_ALIGNMENT * c.WORKSPACE_ALIGNMENT

    def execute(self, pointers, seed, offset, workspace, stream):
        for name, pointer in pointers:
            self.tensors[name].data = pointer
        self.args.dropout_seed, self.args.dropout_offset = seed, offset
        status = self.run(self.plan, self.args_pointer, workspace or self.workspace, self.workspace_bytes, stream)
        if status == c.ERROR_ALIGNMENT:
            self.make_plan()
            status = self.run(self.plan, self.args_pointer, workspace or self.workspace, self.workspace_bytes, stream)
        if status:
            raise c.failure(status)

    def __del__(self):
        c.lib.attend_plan_destroy(self.plan)


_SWAPPED = frozenset(("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v"))


def _backend_bits(backend) -> int:
    names = (backend,) if isinstance(backend, str) else tuple(backend or ())
    bits = 0
    for name in names:
        if name not in c.BACKENDS:
            raise c.ArgumentError(f"backend: expected one of {', '.join(c.BACKENDS)} or several of them, got {name!r}")
        bits |= c.BACKENDS[name]
    return bits


def _options(causal, top_left, window, softcap, dropout, scale, backend, max_q_len, max_k_len, stage, threads, accumulate, kernel):
    o = c.Options()
    o.size = ctypes.sizeof(c.Options)
    o.flags = (c.CAUSAL if causal else 0) | (c.TOP_LEFT if top_left else 0) | (c.ACCUMULATE if accumulate else 0)
    if window is not None:
        o.flags |= c.WINDOW
        o.window_left, o.window_right = window
    if scale is not None:
        o.flags |= c.SCALE
        o.scale = scale
    o.backends, o.softcap, o.dropout = _backend_bits(backend), softcap, dropout
    o.max_q_len, o.max_k_len, o.threads = max_q_len, max_k_len, threads
    o.scores_stage = c.STAGES[stage or "raw"]
    o.kernel = kernel.encode() if kernel else None
    return o


def _seed_of(dropout, seed, direction) -> int:
    if not dropout:
        return 0
    if seed is None:
        if direction == c.BACKWARD:
            raise c.ArgumentError("seed: the backward pass of dropout needs the seed of its forward pass")
        return random.getrandbits(63)
    return seed & 0xFFFFFFFFFFFFFFFF


def _execute(direction, named, settings, layout, outputs, seed, offset):
    """named: the inputs. outputs: (name, shape, array to be like, whether of the log-sum-exp's type)."""
    if layout not in ("bhnd", "bnhd"):
        raise c.ArgumentError(f"layout: expected 'bhnd' or 'bnhd', got {layout!r}")
    main = named[0][1]
    home = adapter_of(main)
    adapters = [adapter_of(array) for _, array in named]
    results = [(name, home.empty(shape, like, wide)) for name, shape, like, wide in outputs]
    key = (direction, layout, settings, *[(name, a.signature(x)) for (name, x), a in zip(named, adapters)],
           *[(name, shape, wide) for name, shape, _, wide in outputs])
    try:
        pool = _pools.get(key)
    except TypeError as error:
        raise c.ArgumentError(f"an option has a type that it cannot have: {error}") from None
    out_adapter = adapter_of(results[0][1])
    if pool is None:
        if len(_pools) >= _MAX_SIGNATURES:
            _pools.clear()
        pool = _pools[key] = []
    try:
        prepared = pool.pop()
        pointers = [(name, a.pointer(x)) for (name, x), a in zip(named, adapters)]
    except IndexError:
        views = {name: a.view(x) for (name, x), a in zip(named, adapters)}
        pointers = [(name, view.pointer) for name, view in views.items()]
        views.update((name, out_adapter.view(x)) for name, x in results)
        prepared = _Prepared(direction, views, _options(*settings), layout == "bnhd")
        prepared.make_plan()
    pointers += [(name, out_adapter.pointer(x)) for name, x in results]
    workspace, scratch = None, None
    if prepared.tensors["q"].device_type != CPU:
        scratch = home.workspace(prepared.workspace_bytes, main)
        workspace = home.pointer(scratch)
    prepared.execute(pointers, seed, offset, workspace, home.stream(main))
    pool.append(prepared)
    return [home.finish(x) for _, x in results]


def _integers(x):
    """Lists of numbers become arrays of 64-bit integers; arrays pass."""
    if x is None or hasattr(x, "__dlpack__"):
        return x
    import numpy
    return numpy.asarray(x, numpy.int64)


def _longest(offsets) -> int:
    import numpy
    if getattr(getattr(offsets, "device", None), "type", "cpu") != "cpu":
        return 0
    steps = numpy.diff(numpy.asarray(offsets))
    return max(int(steps.max()), 1) if steps.size and steps.min() >= 0 else 0


def _inputs(q, k, v, mask, bias, alibi, sink, kv_len, q_offsets, k_offsets, block_table):
    named = [("q", q), ("k", k), ("v", v)]
    for name, x in (("mask", mask), ("bias", bias), ("alibi_slopes", alibi), ("sink", sink), ("kv_len", kv_len),
                    ("q_offsets", q_offsets), ("k_offsets", k_offsets), ("block_table", block_table)):
        if x is not None:
            named.append((name, x))
    return named


def _lse_shape(shape, layout):
    if len(shape) == 3:
        return (shape[1], shape[0])
    return (shape[0], shape[2], shape[1]) if layout == "bnhd" else tuple(shape[:-1])


def attention(q, k, v, *, causal: bool = False, top_left: bool = False, window: Optional[Tuple[int, int]] = None, mask=None,
              bias=None, alibi=None, softcap: float = 0.0, sink=None, dropout: float = 0.0, seed: Optional[int] = None,
              offset: int = 0, scale: Optional[float] = None, kv_len=None, layout: str = "bhnd", backend=None,
              return_lse: bool = False, q_offsets=None, k_offsets=None, max_q_len: int = 0, max_k_len: int = 0,
              block_table=None, return_probs: bool = False, return_scores: Optional[str] = None, threads: int = 0,
              kernel: Optional[str] = None) -> Any:
    """Exact attention of any arrays with ``__dlpack__``, without a copy; the result is an array of q's library.

    q [B,H,Nq,D], k [B,Hkv,Nk,D], v [B,Hkv,Nk,Dv], or with layout="bnhd" [B,N,H,D]; k, v [B,Nk,D] are one head for all.
    Ragged: q [Tq,H,D], k, v [Tk,Hkv,D] with q_offsets and k_offsets. Paged: k, v [blocks,Hkv,size,D] with block_table and kv_len.
    mask: bool, true = attend, [B,Nk] or broadcasting to [B,H,Nq,Nk]; bias: added, rank 4; alibi: slopes [H] or [B,H]; sink [H].
    causal is bottom-right unless top_left. backend: "flash", "efficient", "math", "reference", or several: a command.
    Returns out, or (out, lse, probs, scores) of those asked for. docs/semantics.md says what is computed.
    """
    q_offsets, k_offsets, kv_len, block_table = (_integers(x) for x in (q_offsets, k_offsets, kv_len, block_table))
    if q_offsets is not None and not max_q_len:
        max_q_len = _longest(q_offsets)
    if k_offsets is not None and not max_k_len:
        max_k_len = _longest(k_offsets)
    named = _inputs(q, k, v, mask, bias, alibi, sink, kv_len, q_offsets, k_offsets, block_table)
    for _, x in named[:3]:
        adapter_of(x)
    shape = tuple(q.shape)
    outputs = [("out", shape[:-1] + tuple(v.shape[-1:]), q, False)]
    if return_lse:
        outputs.append(("lse", _lse_shape(shape, layout), q, True))
    if return_probs or return_scores:
        lse = _lse_shape(shape, layout)
        keys = k.shape[1] if layout == "bnhd" or k.ndim == 3 else k.shape[2]
        outputs += [("probs", lse + (keys,), q, True)] if return_probs else []
        outputs += [("scores", lse + (keys,), q, True)] if return_scores else []
    if window is not None:
        window = tuple(window)
    if not (backend is None or isinstance(backend, str)):
        backend = tuple(backend)
    settings = (causal, top_left, window, softcap, dropout, scale, backend, max_q_len, max_k_len, return_scores, threads, False,
                kernel)
    results = _execute(c.FORWARD, named, settings, layout, outputs, _seed_of(dropout, seed, c.FORWARD), offset)
    return results[0] if len(results) == 1 else tuple(results)


class Gradients(NamedTuple):
    """What attention_backward returns; None for what was not asked for."""
    d_q: Any = None
    d_k: Any = None
    d_v: Any = None
    d_bias: Any = None
    d_sink: Any = None


def attention_backward(d_out, q, k, v, out, lse, *, d_lse=None, causal: bool = False, top_left: bool = False,
                       window: Optional[Tuple[int, int]] = None, mask=None, bias=None, alibi=None, softcap: float = 0.0,
                       sink=None, dropout: float = 0.0, seed: Optional[int] = None, offset: int = 0,
                       scale: Optional[float] = None, kv_len=None, layout: str = "bhnd", backend=None, q_offsets=None,
                       k_offsets=None, max_q_len: int = 0, max_k_len: int = 0, threads: int = 0, kernel: Optional[str] = None,
                       gradients: Sequence[str] = ("q", "k", "v", "bias", "sink")) -> Gradients:
    """The gradients of attention(): `out` and `lse` are those of the forward pass, the options the same."""
    q_offsets, k_offsets, kv_len = (_integers(x) for x in (q_offsets, k_offsets, kv_len))
    if q_offsets is not None and not max_q_len:
        max_q_len = _longest(q_offsets)
    if k_offsets is not None and not max_k_len:
        max_k_len = _longest(k_offsets)
    named = _inputs(q, k, v, mask, bias, alibi, sink, kv_len, q_offsets, k_offsets, None)
    named += [("out", out), ("lse", lse), ("d_out", d_out)] + ([("d_lse", d_lse)] if d_lse is not None else [])
    available = {"q": q, "k": k, "v": v, "bias": bias, "sink": sink}
    names = [name for name in available if name in gradients and available[name] is not None]
    outputs = [("d_" + name, tuple(available[name].shape), available[name], False) for name in names]
    if window is not None:
        window = tuple(window)
    if not (backend is None or isinstance(backend, str)):
        backend = tuple(backend)
    settings = (causal, top_left, window, softcap, dropout, scale, backend, max_q_len, max_k_len, None, threads, False, kernel)
    results = _execute(c.BACKWARD, named, settings, layout, outputs, _seed_of(dropout, seed, c.BACKWARD), offset)
    return Gradients(**{"d_" + name: x for name, x in zip(names, results)})


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


def explain(q, k, v, *, causal: bool = False, top_left: bool = False, window: Optional[Tuple[int, int]] = None, mask=None,
            bias=None, alibi=None, softcap: float = 0.0, sink=None, dropout: float = 0.0, scale: Optional[float] = None,
            kv_len=None, layout: str = "bhnd", backend=None, q_offsets=None, k_offsets=None, block_table=None, max_q_len: int = 0,
            max_k_len: int = 0, threads: int = 0, kernel: Optional[str] = None) -> Explanation:
    """What attention() would do with these arguments; nothing is computed."""
    named = _inputs(q, k, v, mask, bias, alibi, sink, _integers(kv_len), _integers(q_offsets), _integers(k_offsets),
                    _integers(block_table))
    views = {name: adapter_of(x).view(x) for name, x in named}
    shape = tuple(q.shape[:-1]) + tuple(v.shape[-1:])
    views["out"] = View(256, shape, compact_strides(shape), views["q"].code, views["q"].bits, views["q"].device, None)
    settings = (causal, top_left, window, softcap, dropout, scale, backend, max_q_len, max_k_len, None, threads, False, kernel)
    prepared, found = _Prepared(c.FORWARD, views, _options(*settings), layout == "bnhd"), c.Explanation()
    found.size = ctypes.sizeof(c.Explanation)
    status = c.lib.attend_explain(c.FORWARD, prepared.args_pointer, byref(prepared.options), byref(found))
    if status:
        raise c.failure(status)
    backends = {bit: name for name, bit in c.BACKENDS.items()}
    return Explanation(found.kernel.decode(), backends.get(found.backend, ""), found.tile_q, found.tile_k, found.splits,
                       found.threads, found.workspace_bytes,
                       tuple((x.kernel.decode(), x.reason.decode()) for x in found.candidates[:found.candidate_count]
                             if not x.chosen))


def info() -> dict:
    """What this machine has: version, CPU features, threads, every kernel compiled in, GPUs."""
    backends = {bit: name for name, bit in c.BACKENDS.items()}
    kernels, gpus = [], []
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
