# SPDX-License-Identifier: MIT
"""attend.attention on JAX's arrays, and jax.nn.dot_product_attention as the second oracle: in f64, forward and gradients."""
import numpy as np
import pytest

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp  # noqa: E402

import attend  # noqa: E402
from attend._arrays import adapter_of  # noqa: E402

RANDOM = np.random.default_rng(3)


def normal(*shape):
    return RANDOM.standard_normal(shape)


# name: what attend takes, what JAX takes. JAX's causal is top-left.
CASES = {
    "plain": ({}, {}), "scale": (dict(scale=0.3),) * 2,
    "causal": (dict(causal=True, top_left=True), dict(is_causal=True)),
    "window": (dict(window=(3, 2), top_left=True), dict(local_window_size=(3, 2))),
    "mask": (dict(mask=RANDOM.random((2, 4, 7, 9)) < 0.7),) * 2,
    "lengths": (dict(kv_len=[6, 9]), dict(key_value_seq_lengths=jnp.array([6, 9], jnp.int32))),
    "bias": ({}, {}),
}


def naive(q, k, v, bias, causal=False, top_left=True, window=None, mask=None, kv_len=None, scale=None):
    """Scores and probabilities in the element type, as the gate says."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    s = jnp.einsum("bihd,bjhd->bhij", q, k) * jnp.asarray(q.shape[-1] ** -0.5 if scale is None else scale, q.dtype)
    s = s if bias is None else s + bias
    distance = jnp.arange(k.shape[1]) - jnp.arange(q.shape[1])[:, None]
    allowed = jnp.ones(s.shape, bool) if mask is None else jnp.asarray(mask)
    allowed &= (distance <= 0) | (not causal)
    allowed &= True if window is None else (-distance <= window[0]) & (distance <= window[1])
    allowed &= True if kv_len is None else jnp.arange(k.shape[1]) < jnp.asarray(kv_len)[:, None, None, None]
    p = jax.nn.softmax(jnp.where(allowed, s, -jnp.inf).astype(q.dtype), -1)
    return jnp.einsum("bhij,bjhd->bihd", p, v)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=lambda t: t.__name__)
@pytest.mark.parametrize("case", CASES)
def test_dot_product_attention(case, dtype):
    """Errors at most 2 times those of the naive computation, 3 times for gradients, as everywhere."""
    ours, theirs = CASES[case]
    operands = [jnp.asarray(normal(2, n, h, 8), dtype) for n, h in ((7, 4), (9, 2), (9, 2))]
    bias = jnp.asarray(normal(1, 4, 7, 9), dtype) if case == "bias" else None
    operands += [] if bias is None else [bias]
    d_out = jnp.asarray(normal(2, 7, 4, 8), dtype)

    def oracle(q, k, v, bias=None):
        return jax.nn.dot_product_attention(q, k, v, bias=bias, **theirs)

    out, back = jax.vjp(oracle, *[x.astype(jnp.float64) for x in operands])
    want = [out, *back(d_out.astype(jnp.float64))]
    out, back = jax.vjp(lambda q, k, v, bias=None: naive(q, k, v, bias, **ours), *operands)
    plain = [out, *back(d_out)]
    out, lse = attend.attention(*operands[:3], bias=bias, layout="bnhd", return_lse=True, **ours)
    gradients = attend.attention_backward(d_out, *operands[:3], out, lse, bias=bias, layout="bnhd", **ours)
    found = [out, *[x for x in gradients if x is not None]]
    assert len(found) == len(want)
    for index, (w, f, n) in enumerate(zip(want, found, plain)):
        assert isinstance(f, jax.Array) and f.dtype == dtype and f.shape == w.shape
        bound = (3 if index else 2) * abs(n - w).max() + 2 * jnp.finfo(dtype).eps * abs(w).max()
        # lse is kept in f32 (f64 for f64): backward takes p again from it
        bound += (index > 0) * float(jnp.finfo(lse.dtype).eps) * abs(lse).max() * abs(w).max()
        assert abs(f - w).max() <= bound, index


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda t: t.__name__)
def test_without_a_copy(dtype):
    q, k, v = (jnp.asarray(normal(1, 2, 64, 32), dtype) for _ in range(3))
    assert adapter_of(q).look(q)[1] == q.unsafe_buffer_pointer()
    made = adapter_of(q).maker((3, 5), q, False)()
    assert adapter_of(q).finish(made).unsafe_buffer_pointer() == made.ctypes.data
    out = attend.attention(q, k, v)
    again = attend.attention(*[np.asarray(x) for x in (q, k, v)])
    np.testing.assert_array_equal(np.asarray(out), again)
    assert jax.jit(lambda x: x.sum())(out).dtype == dtype


def test_inside_jit():
    """JAX's callbacks run attend inside a compiled function."""
    q = jnp.asarray(normal(1, 2, 5, 8), jnp.float32)

    @jax.jit
    def f(q):
        return jax.pure_callback(lambda x: np.asarray(attend.attention(x, x, x)), jax.ShapeDtypeStruct(q.shape, q.dtype), q) * 2

    np.testing.assert_array_equal(f(q), attend.attention(q, q, q) * 2)
    with pytest.raises(Exception, match="[Tt]rac"):
        jax.jit(lambda x: attend.attention(x, x, x))(q)
