# SPDX-License-Identifier: MIT
"""attend.attention on NumPy arrays against the formulas in f64, gradients against finite differences, and bad input."""
import gc
import threading

import ml_dtypes
import numpy as np
import pytest

import attend

RANDOM = np.random.default_rng(1)


def normal(*shape, dtype=np.float64):
    return RANDOM.standard_normal(shape).astype(dtype)


def expected(q, k, v, *, causal=False, top_left=False, window=None, mask=None, bias=None, alibi=None, softcap=0, sink=None,
             scale=None, kv_len=None):
    """out, lse by the formulas of docs/semantics.md, in f64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    if k.ndim == 3:
        k, v = k[:, None], v[:, None]
    groups, nq, nk = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = np.repeat(k, groups, 1), np.repeat(v, groups, 1)
    s = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        s = softcap * np.tanh(s / softcap)
    if bias is not None:
        s = s + bias.astype(np.float64)
    length = np.full(q.shape[0], nk) if kv_len is None else np.asarray(kv_len)
    off = (np.zeros_like(length) if top_left else length - nq).reshape(-1, 1, 1, 1)
    i, j = np.arange(nq).reshape(-1, 1), np.arange(nk)
    if alibi is not None:
        s = s - np.reshape(alibi, (-1, q.shape[1], 1, 1)) * abs(i + off - j)
    allowed = np.broadcast_to(j < length.reshape(-1, 1, 1, 1), s.shape).copy()
    if causal:
        allowed &= j <= i + off
    if window is not None:
        allowed &= (window[0] < 0) | (j >= i + off - window[0])
        allowed &= (window[1] < 0) | (j <= i + off + window[1])
    if mask is not None:
        allowed &= mask[:, None, None] if mask.ndim == 2 else mask
    weights = np.where(allowed, np.exp(np.where(allowed, s, 0)), 0)
    total = weights.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink.astype(np.float64)).reshape(1, -1, 1, 1))
    with np.errstate(divide="ignore"):
        return np.where(total > 0, weights / np.where(total > 0, total, 1), 0) @ v, np.log(total[..., 0])


CASES = {
    "plain": {}, "causal": dict(causal=True), "top_left": dict(causal=True, top_left=True), "window": dict(window=(3, 2)),
    "softcap": dict(softcap=2.0), "scale": dict(scale=0.0), "kv_len": dict(kv_len=[5, 0], causal=True),
    "mask": dict(mask=RANDOM.random((2, 4, 7, 11)) < 0.6, causal=True), "padding": dict(mask=RANDOM.random((2, 11)) < 0.6),
    "bias": dict(bias=normal(1, 4, 7, 11, dtype=np.float32), causal=True),
    "alibi": dict(alibi=np.array([0.5, 0.25, 0.125, 0.0625], np.float32)), "sink": dict(sink=normal(4, dtype=np.float32)),
}
TYPES = {"f64": (np.float64, 1e-12), "f32": (np.float32, 2e-6), "f16": (np.float16, 4e-3), "bf16": (ml_dtypes.bfloat16, 3e-2)}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_forward(case, dtype):
    element, bound = TYPES[dtype]
    q, k, v = normal(2, 4, 7, 8).astype(element), normal(2, 2, 11, 8).astype(element), normal(2, 2, 11, 6).astype(element)
    options = dict(CASES[case])
    if "sink" in options and dtype == "f64":
        options["sink"] = options["sink"].astype(np.float64)
    out, lse = attend.attention(q, k, v, return_lse=True, **options)
    want, want_lse = expected(q, k, v, **options)
    assert out.dtype == q.dtype and out.shape == (2, 4, 7, 6) and lse.shape == (2, 4, 7)
    np.testing.assert_allclose(out.astype(np.float64), want, rtol=0, atol=bound * max(1, abs(want).max()))
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=max(bound, 1e-12) * 4 if dtype != "f64" else 1e-6)


def test_layout_and_strides():
    q, k, v = normal(2, 4, 7, 8), normal(2, 4, 9, 8), normal(2, 4, 9, 8)
    want = attend.attention(q, k, v)
    swapped = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v)]
    np.testing.assert_array_equal(attend.attention(*swapped, layout="bnhd").swapaxes(1, 2), want)
    np.testing.assert_allclose(attend.attention(*[x.swapaxes(1, 2) for x in swapped]), want, atol=1e-14)
    backwards = [np.ascontiguousarray(x[..., ::-1])[..., ::-1] for x in (q, k, v)]
    np.testing.assert_allclose(attend.attention(*backwards), want, atol=1e-14)


def test_gradients_by_finite_differences():
    q, k, v, d_out = normal(1, 2, 4, 3), normal(1, 2, 5, 3), normal(1, 2, 5, 3), normal(1, 2, 4, 3)
    bias, sink = normal(1, 1, 4, 5), normal(2)
    options = dict(causal=True, softcap=3.0, dropout=0.25, seed=5)
    out, lse = attend.attention(q, k, v, bias=bias, sink=sink, return_lse=True, **options)
    gradients = attend.attention_backward(d_out, q, k, v, out, lse, bias=bias, sink=sink, **options)
    for x, gradient in zip((q, k, v, bias, sink), gradients):
        for index in np.ndindex(x.shape):
            kept, sides = x[index], []
            for step in (1e-6, -1e-6):
                x[index] = kept + step
                sides.append((attend.attention(q, k, v, bias=bias, sink=sink, **options) * d_out).sum())
            x[index] = kept
            assert abs((sides[0] - sides[1]) / 2e-6 - gradient[index]) < 1e-7


def test_ragged_and_paged():
    lengths = [3, 0, 6]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    q, k, v = normal(9, 4, 8), normal(9, 2, 8), normal(9, 2, 8)
    out, lse = attend.attention(q, k, v, q_offsets=offsets, k_offsets=offsets, causal=True, return_lse=True)
    gradients = attend.attention_backward(out, q, k, v, out, lse, q_offsets=offsets, k_offsets=offsets, causal=True)
    assert gradients.d_k.shape == k.shape and lse.shape == (4, 9)
    pages, table = normal(5, 2, 4, 8), np.array([[3, 1], [0, 4]], np.int32)
    values = normal(5, 2, 4, 8)
    new = normal(2, 4, 1, 8)
    paged = attend.attention(new, pages, values, block_table=table, kv_len=[6, 8], causal=True)
    for b in range(3):
        rows = slice(offsets[b], offsets[b + 1])
        one = attend.attention(*[np.ascontiguousarray(x[rows].swapaxes(0, 1))[None] for x in (q, k, v)], causal=True)
        np.testing.assert_allclose(out[rows].swapaxes(0, 1)[None], one, atol=1e-13)
    for b in range(2):
        keys, vals = (np.concatenate([x[t] for t in table[b]], 1)[None] for x in (pages, values))
        np.testing.assert_allclose(paged[b:b + 1], attend.attention(new[b:b + 1], keys, vals, kv_len=[[6, 8][b]]), atol=1e-13)


def test_dropout_is_a_function_of_its_seed():
    q, k, v = (normal(2, 2, 9, 8) for _ in range(3))
    first, again, other = (attend.attention(q, k, v, dropout=0.5, seed=s) for s in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_read_only_zero_sized_and_explain():
    q, k, v = (normal(1, 1, 4, 8, dtype=np.float32) for _ in range(3))
    for x in (q, k, v):
        x.setflags(write=False)
    assert attend.attention(q, k, v).flags.writeable
    assert attend.attention(q[:0], k[:0], v[:0]).shape == (0, 1, 4, 8)
    assert not attend.attention(q, k[:, :, :0], v[:, :, :0]).any()
    found = attend.explain(q, k, v, backend="math")
    assert found.backend == "math" and found.kernel and found.passed_over
    assert any(kernel["usable"] for kernel in attend.info()["kernels"])


def test_probabilities():
    q, k, v = (normal(1, 2, 4, 8) for _ in range(3))
    out, probs = attend.attention(q, k, v, return_probs=True, backend="math")
    np.testing.assert_allclose(probs @ v, out, atol=1e-14)


Q = normal(2, 4, 7, 8, dtype=np.float32)


@pytest.mark.parametrize("change, kind, words", [
    (dict(k=normal(2, 3, 7, 8, dtype=np.float32)), ValueError, "k"), (dict(v=normal(2, 4, 6, 8, dtype=np.float32)), ValueError, "v"),
    (dict(k=normal(2, 4, 7, 8)), TypeError, "k"), (dict(q=Q[0]), ValueError, "q"), (dict(q=Q.astype(">f4")), TypeError, "byte order"),
    (dict(mask=np.ones((2, 7), np.int32)), TypeError, "mask"), (dict(dropout=1.5), ValueError, "dropout"),
    (dict(window=(-2, 0)), ValueError, "window"), (dict(softcap=float("nan")), ValueError, "softcap"),
    (dict(kv_len=[8, 1]), ValueError, "kv_len"), (dict(backend="quantum"), ValueError, "backend"), (dict(q=None), (TypeError, AttributeError), ""),
    (dict(q=[[1.0]]), (TypeError, AttributeError), ""), (dict(layout="nbhd"), ValueError, "layout"), (dict(bias=Q.astype(np.complex64)), TypeError, "bias"),
    (dict(kernel="none"), ValueError, "kernel"), (dict(backend="flash", return_probs=True), NotImplementedError, ""),
    (dict(window=[[1], [2]]), (TypeError, ValueError), ""),
])
def test_bad_input_is_an_exception_with_the_reason(change, kind, words):
    arguments = {"q": Q, "k": Q, "v": Q, **change}
    with pytest.raises(kind, match=words):
        attend.attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def test_threads_and_freed_arrays():
    """Inputs stay alive during a call, whoever drops them meanwhile; calls of one signature do not share anything."""
    want = attend.attention(Q, Q, Q)
    wrong = []

    def work():
        for _ in range(100):
            copies = [Q.copy() for _ in range(3)]
            if (attend.attention(copies.pop(), copies.pop(), copies.pop()) != want).any():
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        gc.collect()
    assert not wrong
