# SPDX-License-Identifier: MIT
"""attend.flash_attn against attend.torch on the same problem, laid out otherwise, and against a plain loop."""
import inspect

import pytest

torch = pytest.importorskip("torch")

from attend import flash_attn as fa  # noqa: E402
from attend.torch import attention  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


DENSE = "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs"
RAGGED = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"
CACHE = ("q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad block_table softmax_scale causal "
         "window_size softcap rotary_interleaved alibi_slopes num_splits return_softmax_lse")


@pytest.mark.parametrize("name, arguments", [
    ("flash_attn_func", f"q k v {DENSE}"), ("flash_attn_kvpacked_func", f"q kv {DENSE}"),
    ("flash_attn_qkvpacked_func", f"qkv {DENSE}"), ("flash_attn_varlen_func", f"q k v {RAGGED} {DENSE} block_table"),
    ("flash_attn_varlen_kvpacked_func", f"q kv {RAGGED} {DENSE}"),
    ("flash_attn_varlen_qkvpacked_func", f"qkv cu_seqlens max_seqlen {DENSE}"), ("flash_attn_with_kvcache", CACHE)])
def test_signatures_are_those_of_version_2(name, arguments):
    assert list(inspect.signature(getattr(fa, name)).parameters) == arguments.split()


def test_dense_and_packed():
    q, k, v = (torch.randn(2, 7, 4, 8, requires_grad=True) for _ in range(3))
    want = attention(*[x.transpose(1, 2) for x in (q, k, v)], causal=True, window=(4, 0), softcap=3.0).transpose(1, 2)
    options = dict(causal=True, window_size=(4, 0), softcap=3.0)
    out, lse, none = fa.flash_attn_func(q, k, v, return_attn_probs=True, **options)
    assert torch.equal(out, want) and lse.shape == (2, 4, 7) and none is None
    assert torch.equal(fa.flash_attn_qkvpacked_func(torch.stack((q, k, v), 2), **options), want)
    assert torch.equal(fa.flash_attn_kvpacked_func(q, torch.stack((k, v), 2), **options), want)
    for a, b in zip(torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(want.sum(), (q, k, v))):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_varlen():
    lengths = [3, 0, 5]
    offsets = torch.tensor([0, 3, 3, 8], dtype=torch.int32)
    qkv = torch.randn(8, 3, 4, 8, requires_grad=True)
    out = fa.flash_attn_varlen_qkvpacked_func(qkv, offsets, 5, causal=True)
    q, k, v = qkv.unbind(1)
    assert torch.equal(out, fa.flash_attn_varlen_kvpacked_func(q, torch.stack((k, v), 1), offsets, offsets, 5, 5, causal=True))
    want = torch.cat([fa.flash_attn_func(*[x[None] for x in part.unbind(1)], causal=True)[0]
                      for part in qkv.split(lengths) if len(part)])
    torch.testing.assert_close(out, want, rtol=0, atol=2e-6)
    torch.testing.assert_close(*[torch.autograd.grad(x.square().sum(), qkv)[0] for x in (out, want)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_kvcache_appends_and_rotates(paged, rotary):
    """Token by token from a cache is the same as all at once."""
    n, heads, d = 6, 2, 8
    q, k, v = (torch.randn(2, n, heads, d) for _ in range(3))
    angle = torch.arange(16)[:, None] / 10 ** torch.arange(3)
    tables = dict(rotary_cos=angle.cos(), rotary_sin=angle.sin()) if rotary else {}
    if paged:
        k_cache, v_cache = torch.zeros(5, 4, heads, d), torch.zeros(5, 4, heads, d)
        tables["block_table"] = torch.tensor([[4, 1], [0, 3]], dtype=torch.int32)
    else:
        k_cache, v_cache = torch.zeros(2, 8, heads, d), torch.zeros(2, 8, heads, d)
    steps = [fa.flash_attn_with_kvcache(q[:, t:t + 1], k_cache, v_cache, k[:, t:t + 1], v[:, t:t + 1], causal=True,
                                        cache_seqlens=torch.full((2,), t, dtype=torch.int32), **tables) for t in range(n)]
    if rotary:  # pairs of neighbours turn by position times angle: complex multiplication
        turn = torch.polar(torch.ones(n, 3), angle[:n])[None, :, None]
        q, k = (torch.cat((torch.view_as_real(torch.view_as_complex(x[..., :6].reshape(2, n, heads, 3, 2)) * turn).flatten(-2),
                           x[..., 6:]), -1) for x in (q, k))
    torch.testing.assert_close(torch.cat(steps, 1), fa.flash_attn_func(q, k, v, causal=True), rtol=0, atol=3e-6)


def test_cache_that_is_full():
    cache, new = torch.zeros(1, 4, 2, 8), torch.zeros(1, 2, 2, 8)
    with pytest.raises(ValueError, match="fit"):
        fa.flash_attn_with_kvcache(new, cache, cache.clone(), new, new, cache_seqlens=3)
