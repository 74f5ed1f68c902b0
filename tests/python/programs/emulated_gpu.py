# SPDX-License-Identifier: MIT
"""Run by test_cuda.py in front of the emulated CUDA driver: arrays on that GPU, which look like CuPy's and PyTorch's, go to the
CUDA back-end on the stream and with the workspace of their library."""
import ctypes
import sys
import types
from ctypes import byref, c_size_t, c_uint64, c_void_p

driver = ctypes.CDLL("libcuda.so.1")  # before PyTorch, which may bring an empty one

import numpy as np  # noqa: E402
import torch  # noqa: E402

from attend import _arrays, _library, attention, attention_backward, explain  # noqa: E402

context = c_void_p()
assert driver.cuInit(0) == 0 and driver.cuDevicePrimaryCtxRetain(byref(context), 0) == 0
assert driver.cuCtxPushCurrent_v2(context) == 0
STREAM = 0x5000


class Array:
    """Device memory; released when dropped, as the memory of a caching allocator may be."""

    def __init__(self, shape, dtype):
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.numpy_dtype = np.dtype(dtype)
        self.strides = _arrays.compact_strides(self.shape)
        self.size = max(int(np.prod(self.shape)) * self.numpy_dtype.itemsize, 1)
        self.memory = c_uint64()
        assert driver.cuMemAlloc_v2(byref(self.memory), c_size_t(self.size)) == 0

    def __del__(self):
        assert driver.cuMemFree_v2(self.memory) == 0

    @classmethod
    def of(cls, a):
        self = cls(a.shape, a.dtype)
        assert driver.cuMemcpyHtoD_v2(self.memory, np.ascontiguousarray(a).ctypes.data_as(c_void_p), c_size_t(a.nbytes)) == 0
        return self

    def get(self):
        a = np.empty(self.shape, self.numpy_dtype)
        assert driver.cuMemcpyDtoH_v2(a.ctypes.data_as(c_void_p), self.memory, c_size_t(a.nbytes)) == 0
        return a


class Device:
    id = 0
    __enter__ = __exit__ = lambda *_: None


class CuPyArray(Array):
    def __init__(self, shape, dtype):
        super().__init__(shape, dtype)
        self.dtype, self.device = self.numpy_dtype, Device()
        self.strides = tuple(s * self.dtype.itemsize for s in self.strides)
        self.data = types.SimpleNamespace(ptr=self.memory.value)


NUMPY = {torch.float32: "f4", torch.float64: "f8", torch.uint8: "u1"}


class TorchTensor(Array):
    layout, requires_grad, is_cuda = torch.strided, False, True

    def __init__(self, shape, dtype=torch.float32, device=None):
        super().__init__(shape, NUMPY.get(dtype, dtype))
        self.dtype = next(theirs for theirs, ours in NUMPY.items() if np.dtype(ours) == self.numpy_dtype)
        self.device = torch.device("cuda", 0)

    def stride(self):
        return self.strides

    def is_neg(self):
        return False

    def data_ptr(self):
        return self.memory.value


def stream(*_):
    return types.SimpleNamespace(ptr=STREAM, cuda_stream=STREAM)


CuPyArray.__module__ = "cupy"
sys.modules["cupy"] = types.SimpleNamespace(
    ndarray=CuPyArray, empty=CuPyArray, cuda=types.SimpleNamespace(get_current_stream=stream))
_arrays._adapters[TorchTensor] = _arrays.Torch(types.SimpleNamespace(
    **{name: getattr(torch, name) for name in dir(torch) if "int" in name or "float" in name or "complex" in name},
    bool=torch.bool, strided=torch.strided, is_grad_enabled=torch.is_grad_enabled, empty=TorchTensor,
    cuda=types.SimpleNamespace(current_stream=stream)))

seen = []
for name in ("attend_forward", "attend_backward"):
    def spy(plan, args, workspace, size, given, run=getattr(_library.lib, name)):
        seen.append((workspace, size, given))
        return run(plan, args, workspace, size, given)
    setattr(_library.lib, name, spy)

random = np.random.default_rng(1)
q, k, v, d_out = (random.standard_normal((1, 2, n, 8), dtype=np.float32) for n in (35, 41, 41, 35))
want, lse = attention(q, k, v, causal=True, return_lse=True)
gradients = attention_backward(d_out, q, k, v, want, lse, causal=True)
for kind in (CuPyArray, TorchTensor):
    on_gpu = [kind.of(x) for x in (q, k, v, d_out)]
    del seen[:]
    assert "cuda" in explain(*on_gpu[:3], causal=True).kernel
    for _ in range(2):  # planned, and by the kept plan
        out, row = attention(*on_gpu[:3], causal=True, return_lse=True)
        assert type(out) is kind
        np.testing.assert_allclose(out.get(), want, atol=2e-6)
        found = attention_backward(on_gpu[3], *on_gpu[:3], out, row, causal=True)
        for ours, theirs in zip(found[:3], gradients[:3]):
            np.testing.assert_allclose(ours.get(), theirs, atol=5e-6)
    assert len(seen) == 4 and all(given == STREAM and bool(size) == bool(where) for where, size, given in seen)
    assert any(size for _, size, _ in seen)
    try:
        attention(on_gpu[0], k, v)
    except ValueError as error:
        assert "DEVICE" in str(error)
    else:
        raise AssertionError("mixed devices were accepted")
print("done")
