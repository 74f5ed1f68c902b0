# SPDX-License-Identifier: MIT
"""FlashAttention-2's functions over attend.torch: a program written for flash_attn runs on a CPU by changing an import.
Arrays are [B,N,H,D], or [T,H,D] with cumulative lengths; causal and window are bottom-right, as there. Dropout draws from
PyTorch's generator; `deterministic` holds always. With return_attn_probs, (out, lse, None) comes back: probabilities are
not kept (attend.attention(return_probs=True) computes them)."""
from __future__ import annotations

from typing import Any, Optional, Tuple, Union

import torch
from torch import Tensor

from . import _call
from .torch import attention


def _result(out: Any, return_attn_probs: bool) -> Any:
    return (*out, None) if return_attn_probs else out


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: Optional[float] = None,
                    causal: bool = False, window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                    alibi_slopes: Optional[Tensor] = None, deterministic: bool = False, return_attn_probs: bool = False) -> Any:
    """q [B,Nq,H,D], k, v [B,Nk,Hkv,D]; the result [B,Nq,H,D]."""
    found = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=causal, window=window_size, softcap=softcap,
                      alibi=alibi_slopes, dropout=dropout_p, scale=softmax_scale, return_lse=return_attn_probs)
    if return_attn_probs:
        return found[0].transpose(1, 2), found[1], None
    return found.transpose(1, 2)


def flash_attn_kvpacked_func(q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: Optional[float] = None,
                             causal: bool = False, window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                             alibi_slopes: Optional[Tensor] = None, deterministic: bool = False,
                             return_attn_probs: bool = False) -> Any:
    """kv [B,Nk,2,Hkv,D]; the rest as flash_attn_func."""
    k, v = kv.unbind(2)
    return flash_attn_func(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
                           return_attn_probs)


def flash_attn_qkvpacked_func(qkv: Tensor, dropout_p: float = 0.0, softmax_scale: Optional[float] = None,
                              causal: bool = False, window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                              alibi_slopes: Optional[Tensor] = None, deterministic: bool = False,
                              return_attn_probs: bool = False) -> Any:
    """qkv [B,N,3,H,D]; the rest as flash_attn_func."""
    q, k, v = qkv.unbind(2)
    return flash_attn_func(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
                           return_attn_probs)


def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
                           max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: Optional[float] = None,
                           causal: bool = False, window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                           alibi_slopes: Optional[Tensor] = None, deterministic: bool = False, return_attn_probs: bool = False,
                           block_table: Optional[Tensor] = None) -> Any:
    """q [Tq,H,D], k, v [Tk,Hkv,D]; or paged k, v [blocks,size,Hkv,D] with block_table, forward only."""
    if block_table is not None:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            raise NotImplementedError("paged keys have no backward pass")
        lengths = (cu_seqlens_k[1:] - cu_seqlens_k[:-1]).contiguous()
        with torch.no_grad():
            found = _call.attention(q, k.transpose(1, 2), v.transpose(1, 2), q_offsets=cu_seqlens_q, max_q_len=max_seqlen_q,
                                    block_table=block_table, kv_len=lengths, causal=causal, window=window_size,
                                    softcap=softcap, alibi=alibi_slopes, scale=softmax_scale, dropout=dropout_p,
                                    return_lse=return_attn_probs)
        return _result(found, return_attn_probs)
    found = attention(q, k, v, q_offsets=cu_seqlens_q, k_offsets=cu_seqlens_k, max_q_len=max_seqlen_q, max_k_len=max_seqlen_k,
                      causal=causal, window=window_size, softcap=softcap, alibi=alibi_slopes, dropout=dropout_p,
                      scale=softmax_scale, return_lse=return_attn_probs)
    return _result(found, return_attn_probs)


def flash_attn_varlen_kvpacked_func(q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
                                    max_seqlen_q: int, max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: Optional[float] = None,
                                    causal: bool = False, window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                                    alibi_slopes: Optional[Tensor] = None, deterministic: bool = False,
                                    return_attn_probs: bool = False) -> Any:
    """kv [Tk,2,Hkv,D]; the rest as flash_attn_varlen_func."""
    k, v = kv.unbind(1)
    return flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
                                  window_size, softcap, alibi_slopes, deterministic, return_attn_probs)


def flash_attn_varlen_qkvpacked_func(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: Optional[float] = None,
                                     causal: bool = False, window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                                     alibi_slopes: Optional[Tensor] = None, deterministic: bool = False,
                                     return_attn_probs: bool = False) -> Any:
    """qkv [T,3,H,D]; the rest as flash_attn_varlen_func."""
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal,
                                  window_size, softcap, alibi_slopes, deterministic, return_attn_probs)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of the first 2 * cos.shape[-1] features of x [B,N,H,D] at positions [B,N]."""
    size = cos.shape[-1]
    c, s = (t[positions].unsqueeze(2).float() for t in (cos, sin))
    head, rest = x[..., :2 * size].float(), x[..., 2 * size:]
    first, second = (head[..., ::2], head[..., 1::2]) if interleaved else (head[..., :size], head[..., size:])
    turned = first * c - second * s, first * s + second * c
    both = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat((both.to(x.dtype), rest), -1)


@torch.no_grad()
def flash_attn_with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Optional[Tensor] = None, v: Optional[Tensor] = None,
                            rotary_cos: Optional[Tensor] = None, rotary_sin: Optional[Tensor] = None,
                            cache_seqlens: Optional[Union[int, Tensor]] = None, cache_batch_idx: Optional[Tensor] = None,
                            cache_leftpad: Optional[Tensor] = None, block_table: Optional[Tensor] = None,
                            softmax_scale: Optional[float] = None, causal: bool = False,
                            window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0, rotary_interleaved: bool = True,
                            alibi_slopes: Optional[Tensor] = None, num_splits: int = 0, return_softmax_lse: bool = False) -> Any:
    """q [B,Nq,H,D]; caches [B,Nk,Hkv,D], or [blocks,size,Hkv,D] with block_table [B,columns]. k, v [B,new,Hkv,D] are written
    to the caches, in place, behind cache_seqlens; rotary turns q and k first."""
    batch, n_q = q.shape[:2]
    paged = block_table is not None
    capacity = block_table.shape[1] * k_cache.shape[1] if block_table is not None else k_cache.shape[1]
    if paged and (cache_batch_idx is not None or cache_leftpad is not None):
        raise ValueError("block_table: cannot be combined with cache_batch_idx or cache_leftpad")
    if cache_seqlens is None:
        cache_seqlens = 0 if k is not None else capacity
    lengths = cache_seqlens if isinstance(cache_seqlens, Tensor) else torch.full((batch,), cache_seqlens, device=q.device)
    lengths = lengths.long()
    steps = torch.arange(n_q, device=q.device)
    if rotary_cos is not None and rotary_sin is not None:
        local = causal or tuple(window_size) != (-1, -1)
        positions = lengths[:, None] + (steps if local else torch.zeros_like(steps))
        q = _rotate(q, rotary_cos, rotary_sin, positions, rotary_interleaved)
    if k is not None and v is not None:
        where = lengths[:, None] + torch.arange(k.shape[1], device=q.device)
        if where.numel() and int(where.max()) >= capacity:
            raise ValueError(f"k: {k.shape[1]} new keys do not fit into a cache of {capacity}")
        if rotary_cos is not None and rotary_sin is not None:
            k = _rotate(k, rotary_cos, rotary_sin, where, rotary_interleaved)
        rows = torch.arange(batch, device=q.device) if cache_batch_idx is None else cache_batch_idx.long()
        size = k_cache.shape[1]
        index = ((block_table.long().gather(1, where // size), where % size) if block_table is not None
                 else (rows[:, None].expand_as(where), where))
        k_cache[index], v_cache[index] = k, v
        lengths = lengths + k.shape[1]
    if cache_batch_idx is not None:
        k_cache, v_cache = k_cache[cache_batch_idx.long()], v_cache[cache_batch_idx.long()]
    mask = None
    if cache_leftpad is not None:
        mask = torch.arange(capacity, device=q.device) >= cache_leftpad[:, None]
    found = _call.attention(q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2), kv_len=lengths, mask=mask,
                            block_table=block_table, causal=causal, window=window_size, softcap=softcap,
                            alibi=alibi_slopes, scale=softmax_scale, return_lse=return_softmax_lse)
    return (found[0].transpose(1, 2), found[1]) if return_softmax_lse else found.transpose(1, 2)
