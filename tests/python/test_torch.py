# SPDX-License-Identifier: MIT
"""attend.torch by PyTorch's own checks (opcheck, gradcheck, torch.compile), and PyTorch's SDPA as the oracle."""
import itertools

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch.library import opcheck  # noqa: E402

import attend  # noqa: E402
from attend.torch import Attend, attention, scaled_dot_product_attention  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


def qkv(*, b=2, h=4, hkv=2, nq=7, nk=9, d=8, dtype=torch.float64, grad=True):
    return [torch.randn(b, heads, n, d, dtype=dtype, requires_grad=grad) for heads, n in ((h, nq), (hkv, nk), (hkv, nk))]


VARIANTS = {
    "plain": lambda: {}, "causal": lambda: dict(causal=True), "top_left": lambda: dict(causal=True, top_left=True),
    "window": lambda: dict(window=(3, 1), softcap=4.0),
    "bias": lambda: dict(bias=torch.randn(1, 4, 7, 9, dtype=torch.float64, requires_grad=True), causal=True),
    "one_bias": lambda: dict(bias=torch.randn(2, 1, 1, 9, dtype=torch.float64, requires_grad=True)),
    "mask": lambda: dict(mask=torch.rand(2, 1, 7, 9) > 0.3), "padding": lambda: dict(mask=torch.rand(2, 9) > 0.3),
    "sink": lambda: dict(sink=torch.randn(4, dtype=torch.float64, requires_grad=True)),
    "kv_len": lambda: dict(kv_len=torch.tensor([8, 9]), causal=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant):
    options = VARIANTS[variant]()
    extra = [name for name in ("bias", "sink") if name in options]
    tensors = qkv() + [options.pop(name) for name in extra]

    def f(q, k, v, *rest):
        return attention(q, k, v, return_lse=True, **options, **dict(zip(extra, rest)))

    assert torch.autograd.gradcheck(f, tensors)


def test_gradcheck_dropout():
    def f(q, k, v):
        torch.manual_seed(5)
        return attention(q, k, v, dropout=0.3)
    assert torch.autograd.gradcheck(f, qkv())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    q, k, v = qkv(dtype=dtype)
    bias = torch.randn(1, 4, 7, 9, dtype=dtype, requires_grad=True)
    mask = torch.rand(2, 1, 1, 9) > 0.3
    for options in [(None, None, None), (mask, bias, torch.tensor(77))]:
        arguments = (q, k, v, options[0], options[1], None, None, None, None, None, options[2], True, False, -1, -1, None, 0.0,
                     0.0 if options[2] is None else 0.25, 0, 0, "")
        opcheck(torch.ops.attend.forward, arguments)
        with torch.no_grad():
            out, lse = torch.ops.attend.forward(*arguments)
            plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
        opcheck(torch.ops.attend.backward, (torch.randn_like(out), None, out, lse, options[1] is not None, False, *plain))


@pytest.mark.parametrize("causal, dropout", [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_compile_full_graph(causal, dropout):
    module = Attend(causal=causal, dropout=dropout, flash=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    q, k, v = qkv(dtype=torch.float32)
    results = []
    for f in (module, compiled):
        torch.manual_seed(3)
        out = f(q, k, v)
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for eager, traced in zip(*results):
        torch.testing.assert_close(eager, traced, rtol=0, atol=0)
    if dropout:
        assert not torch.equal(compiled(q, k, v), compiled(q, k, v))  # the seed is drawn anew, not traced in


def test_autocast():
    q, k, v = qkv(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k, v, causal=True)
        assert attention(*[x.double() for x in (q, k, v)]).dtype == torch.float64
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attention(q, k, v, causal=True), out, rtol=0, atol=0)


def test_dropout_comes_from_the_generator():
    q, k, v = qkv(dtype=torch.float32, grad=False)
    module = Attend(dropout=0.5)
    torch.manual_seed(9)
    first, second = module(q, k, v), module(q, k, v)
    torch.manual_seed(9)
    assert torch.equal(first, module(q, k, v)) and not torch.equal(first, second)
    assert torch.equal(module.eval()(q, k, v), Attend()(q, k, v))


@pytest.mark.parametrize("causal, flash", itertools.product([False, True], repeat=2))
def test_attend_is_the_original(causal, flash):
    """Also for keys and values of one head, a padding mask and a bias."""
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    mask, bias = torch.rand(2, 6) > 0.3, torch.randn(4, 6, 6)
    scores = torch.einsum("bhid,bjd->bhij", q, k) * 8**-0.5 + bias
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    if causal:
        scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf)
    want = torch.einsum("bhij,bjd->bhid", scores.softmax(-1).nan_to_num(), v)
    torch.testing.assert_close(Attend(causal=causal, flash=flash)(q, k, v, mask=mask, attn_bias=bias), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [2, 9, 40])
def test_nan_stays_in_its_row(dtype, n):
    """A bias of NaN for the first pair makes its row NaN, but nothing of the keys that causal hides from it."""
    q, k, v = qkv(b=1, h=1, hkv=1, nq=n, nk=n, dtype=dtype)
    bias = torch.zeros(1, 1, n, n, dtype=dtype)
    bias[..., 0, 0] = float("nan")
    out = attention(q, k, v, bias=bias, causal=True)
    for gradient in torch.autograd.grad(out, (q, k, v), torch.ones_like(out)):
        assert gradient.isnan().any(-1).flatten().tolist() == [True] + [False] * (n - 1)


# ---- PyTorch's SDPA as the oracle --------------------------------------------------------------------------------------

def draw(generator):
    """One problem: shapes, strides, mask. Sizes include tails, and one key or query."""
    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]
    b, hkv, group = pick(1, 2, 3), pick(1, 2, 3), pick(1, 1, 2, 4)
    nq, nk, d = pick(1, 5, 16, 33, 130), pick(1, 7, 32, 65, 140), pick(3, 8, 32, 64)
    def tensor(heads, n):
        kind = pick("bhnd", "bnhd", "packed")
        if kind == "bhnd":
            return torch.randn(b, heads, n, d, dtype=torch.float64, generator=generator)
        if kind == "bnhd":
            return torch.randn(b, n, heads, d, dtype=torch.float64, generator=generator).transpose(1, 2)
        return torch.randn(b, heads, n, 3 * d, dtype=torch.float64, generator=generator)[..., d:2 * d]
    q, k, v = tensor(hkv * group, nq), tensor(hkv, nk), tensor(hkv, nk)
    options = {"enable_gqa": group > 1, "scale": pick(None, 0.3), "is_causal": False, "attn_mask": None}
    kind = pick("none", "causal", "bool", "float")
    if kind == "causal":
        options["is_causal"] = True
    elif kind != "none":
        shape = (pick(1, b), pick(1, hkv * group), pick(1, nq), nk)
        mask = torch.rand(shape, generator=generator) > 0.3
        mask[..., 0] = True  # a row with nothing allowed is NaN in PyTorch's CPU backward
        options["attn_mask"] = mask if kind == "bool" else torch.randn(shape, dtype=torch.float64, generator=generator)
    return q, k, v, options


def both(f, q, k, v, d_out, options, dtype):
    mask = options["attn_mask"]
    options = dict(options)
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    if mask is not None and mask.dtype != torch.bool:
        options["attn_mask"] = mask.detach().to(dtype).requires_grad_()
        leaves.append(options["attn_mask"])
    out = f(*leaves[:3], **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out.to(dtype))]


def naive(q, k, v, attn_mask, is_causal, scale, enable_gqa):
    """Scores and probabilities in the element type, as the gate says."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else s + attn_mask
    return s.softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_sdpa_oracle(seed, dtype):
    """Error against PyTorch's SDPA in f64 at most 2 times that of the naive computation, 3 times for gradients. Backward takes
    p again from an lse that was rounded to f32: half an ulp of it is allowed on top (measured in f32: up to 5 times naive)."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, options = draw(generator)
    rounded = [x.to(dtype).double() for x in (q, k, v)]
    mask = options["attn_mask"]
    if mask is not None and mask.dtype != torch.bool:
        options["attn_mask"] = mask.to(dtype).double()
    d_out = torch.randn(*q.shape, dtype=torch.float64, generator=generator).to(dtype).double()
    want = both(F.scaled_dot_product_attention, *rounded, d_out, options, torch.float64)
    ours = both(scaled_dot_product_attention, *rounded, d_out, options, dtype)
    plain = both(naive, *rounded, d_out, options, dtype)
    lse = attention(*[x.float() for x in rounded], scale=options["scale"], return_lse=True)[1].abs().max()
    for index, (w, o, n) in enumerate(zip(want, ours, plain)):
        bound = (2 if index == 0 else 3) * (n - w).abs().max() + 2 * torch.finfo(dtype).eps * w.abs().max()
        bound += (index > 0) * torch.finfo(torch.float32).eps * lse * w.abs().max()
        assert (o - w).abs().max() <= bound, index


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 2, 3, 5, 8)])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_sdpa_ranks(shape, mask):
    q, k, v = (torch.randn(shape) for _ in range(3))
    given = None if mask is None else torch.rand(5, 5) > 0.2 if mask == "bool" else torch.randn(*shape[:-2], 5, 5)
    if given is not None and given.dtype == torch.bool:
        given[:, 0] = True
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, given), F.scaled_dot_product_attention(q, k, v, given),
                               rtol=0, atol=2e-6)


# ---- Bad input ---------------------------------------------------------------------------------------------------------

def test_bad_input():
    q, k, v = qkv(dtype=torch.float32, grad=False)
    with pytest.raises(TypeError, match="mask"):
        attention(q, k, v, mask=torch.ones(2, 9, dtype=torch.int64))
    with pytest.raises(TypeError, match="k"):
        attention(q, k.double(), v)
    with pytest.raises(ValueError, match="k"):
        attention(q, k[:, :, :, :4], v)
    with pytest.raises(ValueError, match="requires grad"):
        attend.attention(q.requires_grad_(), k, v)
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        attention(q.detach().to("meta"), k, v, backend="flash")
    with pytest.raises(TypeError, match="sparse|layout|strided"):
        attend.attention(q.detach().to_sparse(), k, v)
    with pytest.raises(ValueError, match="heads"):
        scaled_dot_product_attention(torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8))
    assert attention(q[:0].detach(), k[:0], v[:0]).shape == (0, 4, 7, 8)


def test_inputs_freed_between_forward_and_backward():
    q, k, v = qkv(dtype=torch.float32)
    out = attention(q, *[x * 1 for x in (k, v)])
    junk = [torch.full((2, 2, 9, 8), torch.nan) for _ in range(8)]
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v))) and junk
