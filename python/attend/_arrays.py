# SPDX-License-Identifier: MIT
"""Arrays of every library, seen alike: one adapter per library tells an array's signature, its data pointer, and how to make
another like it. NumPy and PyTorch are read through their own attributes, which is quicker than a capsule; everything else
through __dlpack__, versioned where the library offers that."""
from __future__ import annotations

import ctypes
import math
import sys
from ctypes import POINTER, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from functools import partial
from typing import Any, Callable, Dict, Hashable, NamedTuple, Optional, Tuple

from ._library import Tensor

CPU, CUDA, CUDA_HOST = 1, 2, 3
Shape = Tuple[int, ...]


class View(NamedTuple):
    """What attend_tensor needs, strides in elements."""
    pointer: Optional[int]
    shape: Shape
    strides: Shape
    code: int
    bits: int
    device: Tuple[int, int]


Look = Tuple[Hashable, Optional[int], Any]


def compact_strides(shape: Shape) -> Shape:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


class Adapter:
    """What differs between the libraries of arrays."""
    gives = True  # an array that the maker made is what the caller gets; else finish() of it

    def look(self, a: Any) -> Look:
        """What every call asks of an array: all that a plan depends on, where the data lies, and what keeps it there."""
        raise NotImplementedError

    def pointer(self, a: Any) -> Optional[int]:
        """The data pointer of an array that the maker made."""
        return self.look(a)[1]

    def view(self, a: Any) -> View:
        raise NotImplementedError

    def maker(self, shape: Shape, like: Any, wide: bool) -> Callable[[], Any]:
        """A function that makes an array of like's element type and device; wide: of the log-sum-exp's type."""
        raise NotImplementedError

    def finish(self, a: Any) -> Any:
        return a

    def scratch(self, size: int, like: Any) -> Tuple[int, Any]:
        """Memory on like's GPU, and its owner, which may be dropped once the work is enqueued."""
        raise TypeError(f"libattend cannot ask the library of a {type(like).__module__}.{type(like).__name__} for memory on a GPU")

    def stream(self, a: Any) -> Optional[int]:
        """The GPU's stream that the array's library enqueues its work on."""
        return None


_NUMPY_CODES = {"b": 6, "i": 0, "u": 1, "f": 2, "c": 5}


class NumPy(Adapter):
    """numpy.ndarray, read-only ones and bfloat16 of ml_dtypes included."""

    def __init__(self, numpy: Any):
        self.numpy = numpy
        # NumPy's C ABI has the data pointer right behind the object's header: read there it costs a fifth of what
        # __array_interface__ does. Where that is not so, it is not read there.
        self.header = object.__basicsize__
        probe = numpy.empty(3)
        if sys.implementation.name != "cpython" or c_void_p.from_address(id(probe) + self.header).value != probe.ctypes.data:
            self.look = self._look_by_interface  # type: ignore[method-assign]
            self.pointer = self._pointer_by_interface  # type: ignore[method-assign]

    def look(self, a: Any) -> Look:
        return (a.shape, a.strides, a.dtype), c_void_p.from_address(id(a) + self.header).value, a

    def _look_by_interface(self, a: Any) -> Look:
        return (a.shape, a.strides, a.dtype), a.__array_interface__["data"][0], a

    def pointer(self, a: Any) -> Optional[int]:
        return c_void_p.from_address(id(a) + self.header).value

    def _pointer_by_interface(self, a: Any) -> Optional[int]:
        address: int = a.__array_interface__["data"][0]
        return address

    def view(self, a: Any) -> View:
        dtype = a.dtype
        if dtype.name == "bfloat16":
            code = 4
        elif dtype.kind in _NUMPY_CODES and dtype.isnative:
            code = _NUMPY_CODES[dtype.kind]
        else:
            raise TypeError(f"arrays of {dtype} (byte order {dtype.byteorder}) cannot be passed to libattend")
        if any(s % dtype.itemsize for s in a.strides):
            raise ValueError(f"strides {a.strides} are not multiples of the element's {dtype.itemsize} bytes")
        strides = tuple(s // dtype.itemsize for s in a.strides)
        return View(a.__array_interface__["data"][0], a.shape, strides, code, 8 * dtype.itemsize, (CPU, 0))

    def maker(self, shape: Shape, like: Any, wide: bool) -> Callable[[], Any]:
        dtype = like.dtype
        if wide:
            dtype = self.numpy.dtype("f8" if dtype == "f8" else "f4")
        return partial(self.numpy.empty, shape, dtype)


class Torch(Adapter):
    """torch.Tensor on the CPU or CUDA."""

    def __init__(self, torch: Any):
        self.torch = torch
        self.grad_enabled = torch.is_grad_enabled
        self.codes = {torch.float32: (2, 32), torch.float16: (2, 16), torch.bfloat16: (4, 16), torch.float64: (2, 64),
                      torch.bool: (6, 8), torch.int32: (0, 32), torch.int64: (0, 64), torch.int8: (0, 8),
                      torch.int16: (0, 16), torch.uint8: (1, 8), torch.complex64: (5, 64), torch.complex128: (5, 128)}

    def look(self, a: Any) -> Look:
        unfit = a.is_neg() or a.requires_grad and self.grad_enabled()
        try:
            return (a.shape, a.stride(), a.dtype, a.device, unfit), a.data_ptr(), a
        except RuntimeError:
            self.view(a)  # has better words for what has no strides or no data
            raise

    def pointer(self, a: Any) -> Optional[int]:
        address: int = a.data_ptr()
        return address

    def view(self, a: Any) -> View:
        if a.requires_grad and self.grad_enabled():
            raise ValueError("a tensor that requires grad: use attend.torch, or detach() it")
        if a.layout != self.torch.strided or a.dtype not in self.codes or a.device.type not in ("cpu", "cuda"):
            raise TypeError(f"a {a.layout} tensor of {a.dtype} on {a.device} cannot be passed to libattend")
        if a.is_neg():
            raise ValueError("a tensor whose memory holds its negative: call resolve_neg()")
        code, bits = self.codes[a.dtype]
        device = (CPU, 0) if a.device.type == "cpu" else (CUDA, a.device.index or 0)
        return View(a.data_ptr(), tuple(a.shape), a.stride(), code, bits, device)

    def maker(self, shape: Shape, like: Any, wide: bool) -> Callable[[], Any]:
        dtype = like.dtype
        if wide:
            dtype = self.torch.float64 if dtype == self.torch.float64 else self.torch.float32
        return partial(self.torch.empty, shape, dtype=dtype, device=like.device)

    def scratch(self, size: int, like: Any) -> Tuple[int, Any]:
        # made on the current stream, so that its memory is given to others only behind what is enqueued there now
        memory = self.torch.empty(size, dtype=self.torch.uint8, device=like.device)
        return memory.data_ptr(), memory

    def stream(self, a: Any) -> Optional[int]:
        return self.torch.cuda.current_stream(a.device).cuda_stream if a.is_cuda else None


# ---- Everything else: DLPack -----------------------------------------------------------------------------------------


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", c_void_p), ("deleter", c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("deleter", c_void_p), ("flags", c_uint64),
                ("tensor", Tensor)]


_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = c_int, [ctypes.py_object, c_char_p]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]


class DLPack(Adapter):
    """Any array with __dlpack__. A capsule that nobody renames frees its array itself, so keeping it is enough."""

    def _open(self, a: Any) -> Tuple[View, Any]:
        try:
            capsule = a.__dlpack__(max_version=(1, 1))
        except (TypeError, BufferError):
            capsule = a.__dlpack__()
        managed: Any
        if _is_valid(capsule, b"dltensor_versioned"):
            managed = ctypes.cast(_get_pointer(capsule, b"dltensor_versioned"), POINTER(_ManagedVersioned)).contents
        else:
            managed = ctypes.cast(_get_pointer(capsule, b"dltensor"), POINTER(_Managed)).contents
        t = managed.tensor
        shape = tuple(t.shape[i] for i in range(t.ndim))
        strides = tuple(t.strides[i] for i in range(t.ndim)) if t.strides else compact_strides(shape)
        return View((t.data or 0) + t.byte_offset, shape, strides, t.code, t.bits, (t.device_type, t.device_id)), capsule

    def look(self, a: Any) -> Look:
        view, capsule = self._open(a)
        return view[1:], view.pointer, capsule

    def view(self, a: Any) -> View:
        return self._open(a)[0]

    def maker(self, shape: Shape, like: Any, wide: bool) -> Callable[[], Any]:
        namespace = like.__array_namespace__()
        dtype = like.dtype
        if wide:
            dtype = namespace.float64 if "float64" in str(dtype) else namespace.float32
        return partial(namespace.empty, shape, dtype=dtype, device=like.device)


class CuPy(DLPack):
    """cupy.ndarray, on CuPy's current stream."""

    def __init__(self, cupy: Any):
        self.cupy = cupy

    def _open(self, a: Any) -> Tuple[View, Any]:
        kind = a.dtype.kind
        if a.dtype.name != "bfloat16" and kind not in _NUMPY_CODES:
            raise TypeError(f"arrays of {a.dtype} cannot be passed to libattend")
        code, size = 4 if a.dtype.name == "bfloat16" else _NUMPY_CODES[kind], a.dtype.itemsize
        return View(a.data.ptr, a.shape, tuple(s // size for s in a.strides), code, 8 * size, (CUDA, a.device.id)), a

    def maker(self, shape: Shape, like: Any, wide: bool) -> Callable[[], Any]:
        dtype = like.dtype
        if wide:
            dtype = "f8" if dtype == "f8" else "f4"
        device = like.device

        def make() -> Any:
            with device:
                return self.cupy.empty(shape, dtype)
        return make

    def scratch(self, size: int, like: Any) -> Tuple[int, Any]:
        with like.device:
            memory = self.cupy.empty(size, "u1")
        return memory.data.ptr, memory

    def stream(self, a: Any) -> Optional[int]:
        with a.device:
            return int(self.cupy.cuda.get_current_stream().ptr)


class Jax(DLPack):
    """jax.Array on the CPU: immutable, so a result is made as a NumPy array and handed over, which takes no copy where it is
    aligned as JAX's own arrays are."""
    gives = False

    def __init__(self, jax: Any):
        import numpy
        self.jax: Any = jax
        self.numpy: Any = numpy

    def maker(self, shape: Shape, like: Any, wide: bool) -> Callable[[], Any]:
        numpy, dtype = self.numpy, like.dtype
        if wide:
            dtype = numpy.dtype("f8" if dtype == "f8" else "f4")
        size = math.prod(shape) * dtype.itemsize

        def make() -> Any:
            memory = numpy.empty(size + 64, "u1")
            start = -memory.ctypes.data % 64
            return memory[start:start + size].view(dtype).reshape(shape)
        return make

    def finish(self, a: Any) -> Any:
        return self.jax.device_put(a, self.jax.devices("cpu")[0], may_alias=True)


_adapters: Dict[type, Adapter] = {}


def adapter_of(a: Any) -> Adapter:
    """The adapter of an array's library."""
    found = _adapters.get(type(a))
    return found if found is not None else _find_adapter(type(a), a)


def _find_adapter(kind: type, a: Any) -> Adapter:
    module, adapter = kind.__module__.split(".")[0], Adapter()
    if "numpy" in sys.modules and isinstance(a, sys.modules["numpy"].ndarray):
        adapter = NumPy(sys.modules["numpy"])
    elif "torch" in sys.modules and isinstance(a, sys.modules["torch"].Tensor):
        adapter = Torch(sys.modules["torch"])
    elif module in ("jax", "jaxlib"):
        adapter = Jax(sys.modules["jax"])
    elif module == "cupy":
        adapter = CuPy(sys.modules["cupy"])
    elif hasattr(a, "__dlpack__") and module != "numpy":
        adapter = DLPack()
    else:
        raise TypeError(f"expected an array with __dlpack__, got {kind.__module__}.{kind.__name__}")
    _adapters[kind] = adapter
    return adapter
