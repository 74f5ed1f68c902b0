# SPDX-License-Identifier: MIT
"""attend for PyTorch: two operators (attend::forward, attend::backward) registered with torch.library, and over them
attention(), scaled_dot_product_attention() and the module Attend. Gradients reach q, k, v, bias, sink and, through lse, what
lse was used for. Dropout draws its seed from PyTorch's generator, as a tensor, so that torch.compile draws it anew too."""
from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple, Union

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import _call

_SHARED = ("Tensor? mask, Tensor? bias, Tensor? alibi, Tensor? sink, Tensor? kv_len, Tensor? q_offsets, Tensor? k_offsets, "
           "Tensor? seed, bool causal, bool top_left, int left, int right, float? scale, float softcap, float dropout, "
           "SymInt max_q_len, SymInt max_k_len, str backend")
_library = torch.library.Library("attend", "DEF")
_library.define(f"forward(Tensor q, Tensor k, Tensor v, {_SHARED}) -> (Tensor, Tensor)")
_library.define("backward(Tensor d_out, Tensor? d_lse, Tensor out, Tensor lse, bool need_bias, bool need_sink, "
                f"Tensor q, Tensor k, Tensor v, {_SHARED}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")


def _options(mask: Any, bias: Any, alibi: Any, sink: Any, kv_len: Any, q_offsets: Any, k_offsets: Any, seed: Any, causal: bool,
             top_left: bool, left: int, right: int, scale: Any, softcap: float, dropout: float, max_q_len: int, max_k_len: int,
             backend: str) -> Dict[str, Any]:
    return dict(mask=mask, bias=bias, alibi=alibi, sink=sink, kv_len=kv_len, q_offsets=q_offsets, k_offsets=k_offsets,
                seed=None if seed is None else int(seed), causal=causal, top_left=top_left,
                window=None if left == right == -1 else (left, right), scale=scale, softcap=softcap, dropout=dropout,
                max_q_len=max_q_len, max_k_len=max_k_len, backend=tuple(backend.split()) or None)


def _forward(q: Tensor, k: Tensor, v: Tensor, *shared: Any) -> Any:
    return _call.attention(q, k, v, return_lse=True, **_options(*shared))


def _backward(d_out: Tensor, d_lse: Optional[Tensor], out: Tensor, lse: Tensor, need_bias: bool, need_sink: bool, q: Tensor,
              k: Tensor, v: Tensor, *shared: Any) -> Tuple[Tensor, ...]:
    names = ("q", "k", "v") + (("bias",) if need_bias else ()) + (("sink",) if need_sink else ())
    found = _call.attention_backward(d_out, q, k, v, out, lse, d_lse=d_lse, gradients=names, **_options(*shared))
    return tuple(q.new_empty(0) if x is None else x for x in found)


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: Any, alibi: Any, sink: Any, kv_len: Any, q_offsets: Any,
                  *rest: Any) -> Tuple[Tensor, Tensor]:
    lse_shape = q.shape[:-1] if q_offsets is None else (q.shape[1], q.shape[0])
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(lse_shape, dtype=wide)


def _backward_fake(d_out: Tensor, d_lse: Any, out: Tensor, lse: Tensor, need_bias: bool, need_sink: bool, q: Tensor, k: Tensor,
                   v: Tensor, mask: Any, bias: Any, alibi: Any, sink: Any, *rest: Any) -> Tuple[Tensor, ...]:
    # new_empty(shape), not empty_like: what comes back is compact whatever the strides of the input
    return tuple(x.new_empty(x.shape) if x is not None else q.new_empty(0)
                 for x in (q, k, v, bias if need_bias else None, sink if need_sink else None))


for _key in ("CPU", "CUDA"):
    _library.impl("forward", _forward, _key)
    _library.impl("backward", _backward, _key)
torch.library.register_fake("attend::forward", _forward_fake, lib=_library)
torch.library.register_fake("attend::backward", _backward_fake, lib=_library)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.set_materialize_grads(False)
    tensors = inputs[:11]
    ctx.save_for_backward(*output, *tensors)
    ctx.rest = inputs[11:]


def _gradients_by(run: Callable[..., Any], ctx: Any, d_out: Optional[Tensor], d_lse: Optional[Tensor]) -> Tuple[Any, ...]:
    out, lse, *tensors = ctx.saved_tensors
    if d_out is None and d_lse is None:
        return (None,) * (11 + len(ctx.rest))
    needs = ctx.needs_input_grad
    d_q, d_k, d_v, d_bias, d_sink = run(torch.zeros_like(out) if d_out is None else d_out, d_lse, out, lse, needs[4], needs[6],
                                        *tensors, *ctx.rest)
    return (d_q, d_k, d_v, None, d_bias if needs[4] else None, None, d_sink if needs[6] else None,
            *(None,) * (4 + len(ctx.rest)))


def _gradients(ctx: Any, d_out: Optional[Tensor], d_lse: Optional[Tensor]) -> Tuple[Any, ...]:
    return _gradients_by(torch.ops.attend.backward, ctx, d_out, d_lse)


torch.library.register_autograd("attend::forward", _gradients, setup_context=_keep, lib=_library)


class _Eager(torch.autograd.Function):
    """The same without the dispatcher, whose way through an operator of Python costs ten times as much. What is no tensor
    comes in one tuple, as apply() looks at every argument."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        inputs = inputs[:11] + inputs[11]
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, d_out: Any, d_lse: Any) -> Any:
        return _gradients_by(_backward, ctx, d_out, d_lse)[:12]


def _lowered(device: str, q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: Any, alibi: Any, sink: Any, *rest: Any) -> Tuple[Any, ...]:
    """Autocast's rule: floating-point operands in its type, but f64 stays, and the sink is f32."""
    dtype = torch.get_autocast_dtype(device)

    def lower(x: Any) -> Any:
        return x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x

    return lower(q), lower(k), lower(v), mask, lower(bias), alibi, sink.float() if sink is not None else None, *rest


def _register_autocast(device: str, key: Any) -> None:
    def cast(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return torch.ops.attend.forward(*_lowered(device, *arguments))

    _library.impl("forward", cast, "Autocast" + device.upper())


_register_autocast("cpu", torch._C.DispatchKey.AutocastCPU)
_register_autocast("cuda", torch._C.DispatchKey.AutocastCUDA)

_grad_enabled, _is_compiling, _tracing = torch.is_grad_enabled, torch.compiler.is_compiling, torch._C._get_tracing_state
_autocasts, _modes = torch._C._is_any_autocast_enabled, torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.maybe_current_level
_DISPATCH, _NEEDS_GRAD, _PLAIN = 2, 1, 0


def _way(tensors: Tuple[Optional[Tensor], ...]) -> int:
    """Whether a call has to go through PyTorch's dispatcher (tracing, subclasses, modes, transforms), or else needs a gradient."""
    if _is_compiling() or _modes() > 0 or _transforms() is not None or _tracing() is not None:
        return _DISPATCH
    way, grad = _PLAIN, _grad_enabled()
    for x in tensors:
        if x is not None:
            if type(x) is not Tensor and type(x) is not nn.Parameter or x.is_neg():
                return _DISPATCH
            if grad and x.requires_grad:
                way = _NEEDS_GRAD
    return way


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, top_left: bool = False,
              window: Optional[Tuple[int, int]] = None, mask: Optional[Tensor] = None, bias: Optional[Tensor] = None,
              alibi: Optional[Tensor] = None, softcap: float = 0.0, sink: Optional[Tensor] = None, dropout: float = 0.0,
              scale: Optional[float] = None, kv_len: Optional[Tensor] = None, q_offsets: Optional[Tensor] = None,
              k_offsets: Optional[Tensor] = None, max_q_len: int = 0, max_k_len: int = 0,
              backend: Union[str, Tuple[str, ...], None] = None, generator: Optional[torch.Generator] = None,
              return_lse: bool = False) -> Any:
    """attend.attention with autograd: the same operands, the seed of dropout drawn from `generator` or PyTorch's own."""
    way = _way((q, k, v, bias, sink))
    seed = None
    if dropout:
        seed = torch.randint(0, 2**63 - 1, (), generator=generator, device=None if generator is None else generator.device)
    lowers = _autocasts() and way != _DISPATCH and torch.is_autocast_enabled(q.device.type)
    if way == _PLAIN and not lowers:
        return _call.attention(q, k, v, causal=causal, top_left=top_left, window=window, mask=mask, bias=bias, alibi=alibi,
                               softcap=softcap, sink=sink, dropout=dropout, seed=None if seed is None else int(seed), scale=scale,
                               kv_len=kv_len, backend=backend, return_lse=return_lse, q_offsets=q_offsets, k_offsets=k_offsets,
                               max_q_len=max_q_len, max_k_len=max_k_len)
    left, right = (-1, -1) if window is None else window
    names = "" if backend is None else backend if isinstance(backend, str) else " ".join(backend)
    arguments: Tuple[Any, ...] = (q, k, v, mask, bias, alibi, sink, kv_len, q_offsets, k_offsets, seed, bool(causal), top_left,
                                  left, right, scale, float(softcap), float(dropout), max_q_len, max_k_len, names)
    if lowers:
        arguments = _lowered(q.device.type, *arguments)
    if way == _DISPATCH:
        out, lse = torch.ops.attend.forward(*arguments)
    else:
        out, lse = _Eager.apply(*arguments[:11], arguments[11:])  # type: ignore[no-untyped-call]
    return (out, lse) if return_lse else out


def _as_rank_4(x: Tensor, batch: torch.Size) -> Tensor:
    """[*batch, H, N, D] as [B, H, N, D]; without heads, H = 1."""
    return x.expand(*batch, *x.shape[-3:]).reshape(-1, *x.shape[-3:])


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor] = None,
                                 dropout_p: float = 0.0, is_causal: bool = False, scale: Optional[float] = None,
                                 enable_gqa: bool = False) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, signature and meaning: is_causal is aligned top-left, a boolean mask
    is true where attention is allowed, a float mask is added and gets a gradient. Mask and is_causal may be given together."""
    rank = query.dim()
    if rank < 2 or key.dim() < 2 or value.dim() < 2:
        raise ValueError(f"query, key, value: expected at least 2 dimensions, got {rank}, {key.dim()}, {value.dim()}")
    if rank == 4 == key.dim() == value.dim() and query.shape[0] == key.shape[0] == value.shape[0]:
        q, k, v, batch = query, key, value, query.shape[:1]
        if q.shape[1] != k.shape[1] and not enable_gqa:
            if k.shape[1] != 1:
                raise ValueError(f"key: expected {q.shape[1]} heads, got {k.shape[1]}; enable_gqa lets heads share keys")
    else:
        q, k, v = (x[(None,) * max(0, 3 - x.dim())] for x in (query, key, value))
        if rank == 3:
            q, k, v = (x.unsqueeze(1) for x in (q, k, v))
        batch = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
        q, k, v = (_as_rank_4(x, batch) for x in (q, k, v))
    mask = bias = None
    if attn_mask is not None:
        shaped = attn_mask.unsqueeze(-3) if rank == 3 and attn_mask.dim() > 2 else attn_mask
        shaped = shaped[(None,) * max(0, 4 - shaped.dim())]
        if shaped.dim() > 4 or len(batch) > 1:
            shaped = _as_rank_4(shaped, batch)
        mask, bias = (shaped, None) if shaped.dtype == torch.bool else (None, shaped)
    out: Tensor = attention(q, k, v, causal=is_causal, top_left=True, mask=mask, bias=bias, dropout=dropout_p, scale=scale)
    if rank == 4 and out.dim() == 4 and len(batch) == 1:
        return out
    return out.reshape(*batch, *(out.shape[-2:] if rank <= 3 else out.shape[-3:])) if rank != 2 else out[0, 0]


class Attend(nn.Module):
    """The Attend of MEGABYTE-pytorch, finished: mask, causal, dropout and attn_bias all take part, with `flash` or without.

    causal is bottom-right, as the original's get_mask says. flash=False leaves out the fast kernels. k and v may be
    [b, j, d], one head for all; mask is [b, j] or broadcasts to [b, h, i, j], true = attend; attn_bias broadcasts to it too."""

    def __init__(self, causal: bool = False, dropout: float = 0.0, flash: bool = False):
        super().__init__()
        self.causal, self.dropout, self.flash = causal, dropout, flash
        self.backend = ("flash", "efficient", "math") if flash else ("efficient", "math")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor] = None,
                attn_bias: Optional[Tensor] = None) -> Tensor:
        if attn_bias is not None and attn_bias.dim() < 4:
            attn_bias = attn_bias[(None,) * (4 - attn_bias.dim())]
        out: Tensor = attention(q, k, v, causal=self.causal, mask=mask, bias=attn_bias, backend=self.backend,
                                dropout=self.dropout if self.training else 0.0)
        return out

    def extra_repr(self) -> str:
        return f"causal={self.causal}, dropout={self.dropout}, flash={self.flash}"
