# SPDX-License-Identifier: MIT
"""Calls of the C library, prepared. Everything a call needs but data pointers is made once per signature (shapes, strides,
types, options) and kept: structs, plan, and how to make the results. A prepared call is taken from a pool and put back, so
that threads never share one; so is a workspace, which serves calls of all signatures."""
from __future__ import annotations

import ctypes
from ctypes import byref, c_int64, c_void_p
from typing import Any, Callable, Dict, Hashable, List, Optional, Sequence, Tuple, Union

from . import _library as c
from ._arrays import CPU, CUDA_HOST, Adapter, Shape, View, _adapters, _find_adapter, adapter_of

Output = Tuple[str, Shape, str, bool]  # name, shape, the operand to be like, whether of the log-sum-exp's type
Backend = Union[str, Sequence[str], None]
_MAX_SIGNATURES = 512
_MAX_WORKSPACE = 1 << 26  # bytes of one that is kept
_SWAPPED = frozenset(("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v"))  # what layout="bnhd" is about


def _backend_bits(backend: Backend) -> int:
    names = (backend,) if isinstance(backend, str) else tuple(backend or ())
    bits = 0
    for name in names:
        if name not in c.BACKENDS:
            raise c.ArgumentError(f"backend: expected one of {', '.join(c.BACKENDS)} or several of them, got {name!r}")
        bits |= c.BACKENDS[name]
    return bits


def make_options(causal: bool, top_left: bool, window: Optional[Tuple[int, int]], softcap: float, dropout: float,
                 scale: Optional[float], backend: Backend, max_q_len: int, max_k_len: int, stage: Optional[str], threads: int,
                 kernel: Optional[str]) -> c.Options:
    o = c.Options(size=ctypes.sizeof(c.Options))
    o.flags = (c.CAUSAL if causal else 0) | (c.TOP_LEFT if top_left else 0)
    if window is not None:
        o.flags |= c.WINDOW
        o.window_left, o.window_right = window
    if scale is not None:
        o.flags |= c.SCALE
        o.scale = scale
    o.backends, o.softcap, o.dropout = _backend_bits(backend), softcap, dropout
    o.max_q_len, o.max_k_len, o.threads = max_q_len, max_k_len, threads
    if stage not in c.STAGES and stage is not None:
        raise c.ArgumentError(f"return_scores: expected one of {', '.join(c.STAGES)}, got {stage!r}")
    o.scores_stage = c.STAGES[stage or "raw"]
    o.kernel = kernel.encode() if kernel else None
    return o


class Prepared:
    """One signature's structs and plan."""

    def __init__(self, direction: int, views: Dict[str, View], options: c.Options, swap: bool):
        self.tensors: List[c.Tensor] = []
        self.args = c.Args(size=ctypes.sizeof(c.Args))
        self.direction, self.options, self.plan, self.workspace_bytes = direction, options, c_void_p(), 0
        self.run = c.lib.attend_forward if direction == c.FORWARD else c.lib.attend_backward
        self.makers: List[Callable[[], Any]] = []  # of the results, whose tensors come last
        self.results_of: Optional[Adapter] = None
        self.on_cpu = views["q"].device[0] in (CPU, CUDA_HOST)
        for name, view in views.items():
            shape, strides = list(view.shape), list(view.strides)
            if swap and name in _SWAPPED and len(shape) == 4:
                shape[1], shape[2], strides[1], strides[2] = shape[2], shape[1], strides[2], strides[1]
            tensor = c.Tensor(view.pointer, view.device[0], view.device[1], len(shape), view.code, view.bits, 1,
                              (c_int64 * len(shape))(*shape), (c_int64 * len(shape))(*strides), 0)
            self.tensors.append(tensor)
            setattr(self.args, name, ctypes.pointer(tensor))
        self.args_pointer = ctypes.addressof(self.args)

    def make_plan(self) -> None:
        """Also called again when data came less aligned than the plan assumed."""
        c.lib.attend_plan_destroy(self.plan)
        self.plan = c_void_p()
        status = c.lib.attend_plan_create(self.direction, self.args_pointer, byref(self.options), byref(self.plan))
        if status:
            raise c.failure(status)
        self.workspace_bytes = c.lib.attend_plan_workspace_bytes(self.plan)

    def execute(self, home: Adapter, q: Any) -> int:
        """The status. Data pointers are in place; home and q tell the GPU and its stream, where there is one."""
        if not self.on_cpu:
            address, owner = home.scratch(self.workspace_bytes, q) if self.workspace_bytes else (None, None)
            status: int = self.run(self.plan, self.args_pointer, address, self.workspace_bytes, home.stream(q))
            del owner  # alive until everything is enqueued
            return status
        workspace = _borrow(self.workspace_bytes)
        status = self.run(self.plan, self.args_pointer, workspace.address, self.workspace_bytes, None)
        if workspace.size <= _MAX_WORKSPACE:
            _workspaces.append(workspace)
        return status

    def __del__(self) -> None:
        c.lib.attend_plan_destroy(self.plan)


class _Workspace:
    """Memory on the CPU, aligned."""

    def __init__(self, size: int):
        self.size = size
        self.memory = ctypes.create_string_buffer(size + c.WORKSPACE_ALIGNMENT)
        self.address = -(-ctypes.addressof(self.memory) // c.WORKSPACE_ALIGNMENT) * c.WORKSPACE_ALIGNMENT


_workspaces: List[_Workspace] = []  # those that no call uses now
_pools: Dict[Hashable, List[Prepared]] = {}


def _borrow(size: int) -> _Workspace:
    try:
        found = _workspaces.pop()
    except IndexError:
        found = _Workspace(max(size, 1 << 16))
    return found if found.size >= size else _Workspace(size)


def _prepare(direction: int, names: Sequence[str], arrays: Sequence[Any], settings: Tuple[Any, ...], layout: str,
             what: Tuple[Any, ...], outputs_of: Callable[..., List[Output]]) -> Prepared:
    if layout not in ("bhnd", "bnhd"):
        raise c.ArgumentError(f"layout: expected 'bhnd' or 'bnhd', got {layout!r}")
    views = {name: adapter_of(x).view(x) for name, x in zip(names, arrays)}
    outputs, named = outputs_of({name: view.shape for name, view in views.items()}, layout, *what), dict(zip(names, arrays))
    makers = [adapter_of(arrays[0]).maker(shape, named[like], wide) for _, shape, like, wide in outputs]
    results = [make() for make in makers]
    views.update((output[0], adapter_of(x).view(x)) for output, x in zip(outputs, results))
    prepared = Prepared(direction, views, make_options(*settings), layout == "bnhd")
    prepared.make_plan()
    prepared.makers, prepared.results_of = makers, adapter_of(results[0])
    return prepared


def call(direction: int, names: Tuple[str, ...], arrays: Sequence[Any], settings: Tuple[Any, ...], layout: str,
         what: Tuple[Any, ...], outputs_of: Callable[..., List[Output]], seed: int, offset: int) -> List[Any]:
    """Run with these operands, arrays[0] being q; settings are those of make_options. outputs_of(shapes by name, layout, *what)
    lists the results, and is asked once per signature."""
    signature: List[Any] = [direction, names, settings, layout, what, type(arrays[0])]
    pointers, owners = [], []
    for x in arrays:
        adapter = _adapters.get(type(x)) or _find_adapter(type(x), x)
        looks, pointer, owner = adapter.look(x)
        signature.append(looks)
        pointers.append(pointer)
        owners.append(owner)
    key: Hashable = tuple(signature)
    try:
        pool = _pools.get(key)
    except TypeError as error:
        raise c.ArgumentError(f"an option has a type that it cannot have: {error}") from None
    if pool is None:
        if len(_pools) >= _MAX_SIGNATURES:
            _pools.clear()
        pool = _pools[key] = []
    try:
        prepared = pool.pop()
    except IndexError:
        prepared = _prepare(direction, names, arrays, settings, layout, what, outputs_of)
    results = [make() for make in prepared.makers]
    pointer_of = prepared.results_of.pointer  # type: ignore[union-attr]
    pointers += [pointer_of(x) for x in results]
    for tensor, pointer in zip(prepared.tensors, pointers):
        tensor.data = pointer
    prepared.args.dropout_seed, prepared.args.dropout_offset = seed, offset
    home = _adapters[type(arrays[0])]
    status = prepared.execute(home, arrays[0])
    if status == c.ERROR_ALIGNMENT:
        prepared.make_plan()
        status = prepared.execute(home, arrays[0])
    if status:
        raise c.failure(status)
    pool.append(prepared)
    return results if home.gives else [home.finish(x) for x in results]
