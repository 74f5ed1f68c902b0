# SPDX-License-Identifier: MIT
"""A backend for models with the ONNX operator Attention, opsets 23 to 25, in ONNX's own interface (onnx.backend.base). The
graph around it is run by ONNX's reference evaluator, in which Attention is replaced by libattend's. onnx 1.23 or newer:
1.22 applied softcap in another order."""
from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np
from onnx.backend.base import Backend, BackendRep
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from . import attention

Array = np.ndarray[Any, Any]
_SCORES = {0: "raw", 1: "softcap", 2: "masked"}


def _heads(x: Array, count: Optional[int]) -> Array:
    """[B,N,H*D] as a view [B,H,N,D]."""
    if x.ndim == 4:
        return x
    if not count:
        raise ValueError("inputs of rank 3 need q_num_heads and kv_num_heads")
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def _allowed(n_q: int, n_k: int, offset: int, causal: bool, window: Tuple[int, int]) -> Array:
    """Causal and window for an offset that is neither 0 nor n_k - n_q."""
    distance = np.arange(n_k) - np.arange(n_q)[:, None] - offset
    allowed = np.ones((n_q, n_k), bool)
    if causal:
        allowed &= distance <= 0
    if window[0] >= 0:
        allowed &= -distance <= window[0]
    if window[1] >= 0:
        allowed &= distance <= window[1]
    return allowed[None, None]


class _AttentionOp(OpRun):
    op_domain = ""

    def _run(self, Q: Array, K: Array, V: Array, attn_mask: Optional[Array] = None, past_key: Optional[Array] = None,
             past_value: Optional[Array] = None, nonpad_kv_seqlen: Optional[Array] = None, scale: Optional[float] = None,
             is_causal: Optional[int] = None, q_num_heads: Optional[int] = None, kv_num_heads: Optional[int] = None,
             softmax_precision: Optional[int] = None, softcap: Optional[float] = None,
             qk_matmul_output_mode: Optional[int] = None, left_window_size: Optional[int] = None,
             right_window_size: Optional[int] = None) -> Tuple[Array, ...]:
        # softmax_precision asks for at least as much as the f32 (f64) in which libattend always works
        q, k, v = _heads(Q, q_num_heads), _heads(K, kv_num_heads), _heads(V, kv_num_heads)
        if (past_key is None) != (past_value is None):
            raise ValueError("past_key and past_value must be given together")
        if past_key is not None and nonpad_kv_seqlen is not None:
            raise ValueError("nonpad_kv_seqlen cannot be combined with past_key")
        if past_key is not None and past_value is not None:
            k, v = np.concatenate((past_key, k), 2), np.concatenate((past_value, v), 2)
        n_q, n_k, causal = q.shape[2], k.shape[2], bool(is_causal)
        window = (-1 if left_window_size is None else left_window_size, -1 if right_window_size is None else right_window_size)
        options: dict[str, Any] = dict(scale=scale or None, softcap=softcap or 0.0)
        where: dict[str, Any]
        mask = bias = None
        if attn_mask is not None:
            fill = False if attn_mask.dtype == bool else -np.inf
            missing = n_k - attn_mask.shape[-1]
            if missing > 0:
                attn_mask = np.pad(attn_mask, [(0, 0)] * (attn_mask.ndim - 1) + [(0, missing)], constant_values=fill)
            attn_mask = attn_mask.reshape((1,) * (4 - attn_mask.ndim) + attn_mask.shape)
            if attn_mask.dtype == bool:
                mask = attn_mask
            else:
                bias = attn_mask if attn_mask.dtype in (q.dtype, np.float32) else attn_mask.astype(q.dtype)
        # ONNX counts positions from the end of the past, from nonpad_kv_seqlen - n_q, or from 0
        offset = past_key.shape[2] if past_key is not None else 0
        if nonpad_kv_seqlen is not None or offset == n_k - n_q or offset == 0:
            where = dict(causal=causal, window=window, top_left=nonpad_kv_seqlen is None and offset == 0)
        else:
            allowed = _allowed(n_q, n_k, offset, causal, window)
            where, mask = {}, allowed if mask is None else mask & allowed
        where.update(mask=mask, bias=bias, kv_len=nonpad_kv_seqlen)
        mode = qk_matmul_output_mode or 0
        scores = None
        if len(self.onnx_node.output) < 4 or not self.onnx_node.output[3]:
            out = attention(q, k, v, **where, **options)
        elif mode == 3:
            out, scores = attention(q, k, v, return_probs=True, backend="math", **where, **options)
        elif mode == 2:
            out, scores = attention(q, k, v, return_scores="masked", backend="math", **where, **options)
        else:  # before any mask: of all keys
            out = attention(q, k, v, **where, **options)
            _, scores = attention(q, k, v, return_scores=_SCORES[mode], backend="math", **options)
        if Q.ndim == 3:
            out = out.swapaxes(1, 2).reshape(*Q.shape[:2], -1)
        scores = np.empty(0, Q.dtype) if scores is None else scores.astype(Q.dtype)  # the evaluator takes no None
        return (out, k, v, scores)[:max(1, len(self.onnx_node.output))]


# The evaluator looks an operator up by its class's name.
_AttentionOp.__name__ = "Attention"


class AttendBackendRep(BackendRep):
    """A model made ready to run."""

    def __init__(self, model: Any):
        self._evaluator = ReferenceEvaluator(model, new_ops=[_AttentionOp])

    def run(self, inputs: Any, **kwargs: Any) -> Tuple[Any, ...]:
        return tuple(self._evaluator.run(None, dict(zip(self._evaluator.input_names, inputs))))


class AttendBackend(Backend):
    """The backend: prepare(model).run(inputs), run_model(model, inputs)."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> AttendBackendRep:
        super().prepare(model, device, **kwargs)
        return AttendBackendRep(model)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


prepare, run_model, supports_device = AttendBackend.prepare, AttendBackend.run_model, AttendBackend.supports_device
