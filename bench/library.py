# SPDX-License-Identifier: MIT
"""The C library on PyTorch's tensors, without a copy: the structs of attend.h in ctypes, plans made once."""
import ctypes as c
import os

import torch

DTYPES = {torch.float32: (2, 32), torch.float16: (2, 16), torch.bfloat16: (4, 16),
          torch.int32: (0, 32), torch.bool: (6, 8)}


class Dtype(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class Tensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("device", c.c_int32), ("device_id", c.c_int32), ("ndim", c.c_int32),
                ("dtype", Dtype), ("shape", c.POINTER(c.c_int64)), ("strides", c.POINTER(c.c_int64)),
                ("byte_offset", c.c_uint64)]


NAMES = ("q k v out mask bias alibi_slopes sink kv_len q_offsets k_offsets block_table lse probs scores "
         "d_out d_lse d_q d_k d_v d_bias d_sink").split()


class Args(c.Structure):
    _fields_ = ([("size", c.c_size_t)] + [(n, c.POINTER(Tensor)) for n in NAMES]
                + [("dropout_seed", c.c_uint64), ("dropout_offset", c.c_uint64)])


class Options(c.Structure):
    _fields_ = [("size", c.c_size_t), ("flags", c.c_uint32), ("backends", c.c_uint32), ("kernel", c.c_char_p),
                ("scale", c.c_double), ("softcap", c.c_double), ("dropout", c.c_double),
                ("window_left", c.c_int64), ("window_right", c.c_int64), ("max_q_len", c.c_int64),
                ("max_k_len", c.c_int64), ("scores_stage", c.c_int), ("threads", c.c_int), ("hooks", c.c_void_p)]


def wrap(t):
    n = t.dim()
    code, bits = DTYPES[t.dtype]
    device = (2, t.device.index) if t.is_cuda else (1, 0)
    return Tensor(t.data_ptr(), *device, n, Dtype(code, bits, 1), (c.c_int64 * n)(*t.shape),
                  (c.c_int64 * n)(*t.stride()), 0)


class Library:
    def __init__(self, build):
        self.so = c.CDLL(os.path.join(build, "libattend.so"))
        self.so.attend_error_message.restype = c.c_char_p
        self.so.attend_plan_workspace_bytes.restype = c.c_size_t

    def check(self, status):
        if status:
            raise RuntimeError(self.so.attend_error_message().decode())

    def call(self, backward, causal, threads=0, dropout=0.0, **tensors):
        """A function that computes attention on these tensors, planned here; outputs are among them. On a GPU it runs on
        what PyTorch's current stream is then."""
        wrapped = {name: wrap(t) for name, t in tensors.items()}
        args = Args(size=c.sizeof(Args), **{name: c.pointer(t) for name, t in wrapped.items()})
        options = Options(size=c.sizeof(Options), flags=1 if causal else 0, threads=threads,
                          dropout=dropout)
        plan = c.c_void_p()
        self.check(self.so.attend_plan_create(int(backward), c.byref(args), c.byref(options), c.byref(plan)))
        size = self.so.attend_plan_workspace_bytes(plan)
        on_gpu = tensors["q"].is_cuda
        memory = torch.empty(size + 256, dtype=torch.uint8, device=tensors["q"].device)
        workspace = c.c_void_p(memory.data_ptr() + -memory.data_ptr() % 256)
        run = self.so.attend_backward if backward else self.so.attend_forward
        arguments = (plan, c.byref(args), workspace, c.c_size_t(size))
        keep = (tensors, wrapped, args, memory)
        def call():
            stream = torch.cuda.current_stream().cuda_stream if on_gpu else None
            self.check(run(*arguments, c.c_void_p(stream)))
            return keep and None
        return call
