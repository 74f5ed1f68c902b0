# SPDX-License-Identifier: MIT
"""Arrays of every library, seen alike: one adapter per library tells an array's signature, its data pointer, and how to make
another like it. NumPy and PyTorch are read through their own attributes, which is quicker than a capsule; everything else
through __dlpack__, versioned where the library offers that."""
from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

from ._library import Tensor

CPU, CUDA = 1, 2


class View(NamedTuple):
    """What attend_tensor needs, strides in elements; `owner` keeps the memory alive."""
    pointer: int
    shape: tuple
    strides: tuple
    code: int
    bits: int
    device: tuple
    owner: Any


def compact_strides(shape) -> tuple:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


_NUMPY_CODES = {"b": 6, "i": 0, "u": 1, "f": 2, "c": 5}


class NumPy:
    """numpy.ndarray, read-only ones and bfloat16 of ml_dtypes included."""

    def __init__(self):
        import numpy
        self.numpy = numpy

    def signature(self, a):
        return a.shape, a.strides, a.dtype

    def pointer(self, a):
        return a.__array_interface__["data"][0]

    def view(self, a) -> View:
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
        return View(self.pointer(a), a.shape, strides, code, 8 * dtype.itemsize, (CPU, 0), a)

    def empty(self, shape, like, wide=False):
        if wide:
            return self.numpy.empty(shape, self.numpy.float64 if like.dtype == self.numpy.float64 else self.numpy.float32)
        return self.numpy.empty(shape, like.dtype)

    def finish(self, a):
        return a

    def stream(self, a):
        return None


class Torch:
    """torch.Tensor on the CPU or CUDA."""

    def __init__(self, torch):
        self.torch = torch
        self.codes = {torch.float32: (2, 32), torch.float16: (2, 16), torch.bfloat16: (4, 16), torch.float64: (2, 64),
                      torch.bool: (6, 8), torch.int32: (0, 32), torch.int64: (0, 64), torch.int8: (0, 8),
                      torch.int16: (0, 16), torch.uint8: (1, 8), torch.complex64: (5, 64), torch.complex128: (5, 128)}

    def signature(self, a):
        return a.shape, a.stride(), a.dtype, a.device, a.requires_grad and self.torch.is_grad_enabled()

    def pointer(self, a):
        return a.data_ptr()

    def view(self, a) -> View:
        if a.requires_grad and self.torch.is_grad_enabled():
            raise ValueError("a tensor that requires grad: use attend.torch, or detach() it")
        if a.layout != self.torch.strided or a.dtype not in self.codes or a.device.type not in ("cpu", "cuda"):
            raise TypeError(f"a {a.layout} tensor of {a.dtype} on {a.device} cannot be passed to libattend")
        code, bits = self.codes[a.dtype]
        device = (CPU, 0) if a.device.type == "cpu" else (CUDA, a.device.index or 0)
        return View(a.data_ptr(), tuple(a.shape), a.stride(), code, bits, device, a)

    def empty(self, shape, like, wide=False):
        dtype = like.dtype
        if wide:
            dtype = self.torch.float64 if dtype == self.torch.float64 else self.torch.float32
        return self.torch.empty(shape, dtype=dtype, device=like.device)

    def finish(self, a):
        return a

    def stream(self, a):
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


class DLPack:
    """Any array with __dlpack__. A capsule that nobody renames frees its array itself, so keeping it is enough."""

    def signature(self, a):
        return self.view(a)[1:6]

    def pointer(self, a):
        return self.view(a).pointer

    def view(self, a) -> View:
        try:
            capsule = a.__dlpack__(max_version=(1, 1))
        except (TypeError, BufferError):
            capsule = a.__dlpack__()
        if _is_valid(capsule, b"dltensor_versioned"):
            managed: Any = ctypes.cast(_get_pointer(capsule, b"dltensor_versioned"), POINTER(_ManagedVersioned)).contents
        else:
            managed = ctypes.cast(_get_pointer(capsule, b"dltensor"), POINTER(_Managed)).contents
        t = managed.tensor
        shape = tuple(t.shape[i] for i in range(t.ndim))
        strides = tuple(t.strides[i] for i in range(t.ndim)) if t.strides else compact_strides(shape)
        return View((t.data or 0) + t.byte_offset, shape, strides, t.code, t.bits, (t.device_type, t.device_id), capsule)

    def empty(self, shape, like, wide=False):
        namespace = like.__array_namespace__()
        dtype = like.dtype
        if wide:
            dtype = namespace.float64 if "float64" in str(dtype) else namespace.float32
        return namespace.empty(shape, dtype=dtype, device=like.device)

    def finish(self, a):
        return a

    def stream(self, a):
        return None


class Jax(DLPack):
    """jax.Array: immutable, so a result is made as a NumPy array and handed over without a copy."""

    def __init__(self, jax):
        self.jax = jax

    def empty(self, shape, like, wide=False):
        import numpy
        wide_type = numpy.float64 if like.dtype == numpy.float64 else numpy.float32
        return numpy.empty(shape, wide_type if wide else like.dtype)

    def finish(self, a):
        return self.jax.numpy.asarray(a)


_adapters: dict = {}


def adapter_of(a):
    """The adapter of an array's library."""
    kind = type(a)
    found = _adapters.get(kind)
    return found if found is not None else _find_adapter(kind, a)


def _find_adapter(kind, a):
    module = kind.__module__.split(".")[0]
    if module == "numpy" or (("numpy" in sys.modules) and isinstance(a, sys.modules["numpy"].ndarray)):
        if not isinstance(a, sys.modules["numpy"].ndarray):
            raise TypeError(f"expected an array, got {kind.__name__}")
        adapter: Any = NumPy()
    elif "torch" in sys.modules and isinstance(a, sys.modules["torch"].Tensor):
        adapter = Torch(sys.modules["torch"])
    elif module in ("jax", "jaxlib"):
        adapter = Jax(sys.modules["jax"])
    elif hasattr(a, "__dlpack__"):
        adapter = DLPack()
    else:
        raise TypeError(f"expected an array with __dlpack__, got {kind.__name__}")
    _adapters[kind] = adapter
    return adapter
