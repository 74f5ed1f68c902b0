# SPDX-License-Identifier: MIT
"""The C library: its structs, declared as in include/attend.h, and its errors as exceptions."""
from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint32, \
    c_uint64, c_void_p
from pathlib import Path

NAME_SIZE, REASON_SIZE, MAX_CANDIDATES, WORKSPACE_ALIGNMENT = 64, 192, 32, 256
CAUSAL, TOP_LEFT, WINDOW, SCALE, ACCUMULATE = 1, 2, 4, 8, 16
BACKENDS = {"flash": 1, "efficient": 2, "math": 4, "reference": 8}
STAGES = {"raw": 0, "softcap": 1, "masked": 2}
FORWARD, BACKWARD = 0, 1


class Tensor(ctypes.Structure):
    """attend_tensor, which is DLPack's DLTensor."""
    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32),
                ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16), ("shape", POINTER(c_int64)),
                ("strides", POINTER(c_int64)), ("byte_offset", c_uint64)]


OPERANDS = ("q", "k", "v", "out", "mask", "bias", "alibi_slopes", "sink", "kv_len", "q_offsets", "k_offsets", "block_table",
            "lse", "probs", "scores", "d_out", "d_lse", "d_q", "d_k", "d_v", "d_bias", "d_sink")


class Args(ctypes.Structure):
    _fields_ = [("size", c_size_t)] + [(name, POINTER(Tensor)) for name in OPERANDS] + [
        ("dropout_seed", c_uint64), ("dropout_offset", c_uint64)]


class Options(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("flags", c_uint32), ("backends", c_uint32), ("kernel", c_char_p), ("scale", c_double),
                ("softcap", c_double), ("dropout", c_double), ("window_left", c_int64), ("window_right", c_int64),
                ("max_q_len", c_int64), ("max_k_len", c_int64), ("scores_stage", c_int), ("threads", c_int),
                ("hooks", c_void_p)]


class Candidate(ctypes.Structure):
    _fields_ = [("kernel", c_char * NAME_SIZE), ("reason", c_char * REASON_SIZE), ("backend", c_uint32), ("chosen", c_int32)]


class Explanation(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("status", c_int), ("backend", c_uint32), ("kernel", c_char * NAME_SIZE),
                ("tile_q", c_int64), ("tile_k", c_int64), ("splits", c_int64), ("threads", c_int64),
                ("workspace_bytes", c_uint64), ("alignment", c_uint64), ("candidate_count", c_int64),
                ("candidates", Candidate * MAX_CANDIDATES)]


class Kernel(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("name", c_char * NAME_SIZE), ("reason", c_char * REASON_SIZE), ("backend", c_uint32),
                ("device", c_int32), ("direction", c_int32), ("usable", c_int32), ("code", c_uint8), ("bits", c_uint8),
                ("lanes", c_uint16)]


class Gpu(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("name", c_char * NAME_SIZE), ("reason", c_char * REASON_SIZE), ("major", c_int32),
                ("minor", c_int32), ("multiprocessors", c_int32), ("memory_bytes", c_uint64), ("image", c_char * NAME_SIZE)]


class AttendError(Exception):
    """What the C library answered; `status` is the number of its attend_status."""
    status = 0


class ArgumentError(AttendError, ValueError):
    """A shape, stride, option, index or device that does not fit."""


class ElementTypeError(AttendError, TypeError):
    """An element type that this argument does not take."""


class NoBackendError(AttendError, NotImplementedError):
    """Nothing in the allowed set of back-ends can serve; the message has every candidate's reason."""


class OutOfMemoryError(AttendError, MemoryError):
    """The allocator said no."""


_ERRORS = {3: ElementTypeError, 10: NoBackendError, 11: OutOfMemoryError}
ERROR_ALIGNMENT = 8


def _load() -> ctypes.CDLL:
    here = Path(__file__).parent
    wanted = os.environ.get("ATTEND_LIBRARY")
    for path in [wanted] if wanted else [str(here / "libattend.so"), "libattend.so.0"]:
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            last = error
    raise ImportError(f"libattend.so was not found: install the package, or set ATTEND_LIBRARY to its path ({last})")


lib = _load()
_PROTOTYPES = {
    "attend_status_name": (c_char_p, [c_int]), "attend_error_message": (c_char_p, []), "attend_version": (c_char_p, []),
    "attend_cpu_features": (c_char_p, []), "attend_cpu_threads": (c_int, []),
    "attend_plan_create": (c_int, [c_int, c_void_p, c_void_p, c_void_p]), "attend_plan_destroy": (None, [c_void_p]),
    "attend_plan_workspace_bytes": (c_size_t, [c_void_p]),
    "attend_forward": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p]),
    "attend_backward": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p]),
    "attend_explain": (c_int, [c_int, c_void_p, c_void_p, c_void_p]),
    "attend_kernel_at": (c_int, [c_int64, c_void_p]), "attend_gpu_at": (c_int, [c_int64, c_void_p]),
}
for _name, (_result, _arguments) in _PROTOTYPES.items():
    _function = getattr(lib, _name)
    _function.restype, _function.argtypes = _result, _arguments


def failure(status: int) -> AttendError:
    """The exception of a status, with the message of the thread's last failing call."""
    name, message = lib.attend_status_name(status).decode(), lib.attend_error_message().decode()
    error = _ERRORS.get(status, ArgumentError)(message if message.startswith(name) else f"{name}: {message}")
    error.status = status
    return error
