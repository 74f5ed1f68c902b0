# SPDX-License-Identifier: MIT
"""attend.torch takes a short way where it may; here each thing that PyTorch does to a call, by comparison with the eager way."""
import os
import shutil
import sysconfig

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import attend
from attend.torch import Attend, attention, scaled_dot_product_attention


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


def qkv(dtype=torch.float32, grad=True):
    return [torch.randn(2, 4, n, 8, dtype=dtype, requires_grad=grad) for n in (7, 9, 9)]


def gradients(f, tensors):
    return torch.autograd.grad(f(*tensors).square().sum(), tensors)


def equal(found, wanted):
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.skipif(shutil.which("g++") is None or not os.path.exists(sysconfig.get_path("include") + "/Python.h"),
                    reason="inductor needs a compiler and Python's headers")
def test_inductor():
    """One graph, compiled to machine code around the operator."""
    module = Attend(causal=True, flash=True)

    def f(q, k, v):
        return (module(q * 2, k, v) + 1).square()

    tensors = qkv()
    compiled = torch.compile(f, fullgraph=True)
    equal([compiled(*tensors), *gradients(compiled, tensors)], [f(*tensors), *gradients(f, tensors)])


def test_checkpoints_and_traces():
    tensors = qkv()
    equal(gradients(lambda *x: checkpoint(attention, *x, use_reentrant=False), tensors), gradients(attention, tensors))
    with pytest.raises(RuntimeError):  # torch.func cannot go through operators of torch.library
        torch.func.grad(lambda q: attention(q, q, q).sum())(tensors[0].detach())
    traced = torch.jit.trace(lambda q, k, v: attention(q, k, v, causal=True), [x.detach() for x in tensors], check_trace=False)
    assert "attend::forward" in str(traced.graph)
    other = qkv(grad=False)
    equal([traced(*other)], [attention(*other, causal=True)])


def test_second_derivatives_are_refused():
    tensors = qkv()
    first = torch.autograd.grad(attention(*tensors).square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|differentiat"):
        torch.autograd.grad(first[0].sum(), tensors)


def test_partial_gradients():
    """Each input's gradient comes whichever others are asked for, and through lse alone."""
    bias = torch.randn(1, 4, 7, 9)
    for index in range(4):
        tensors = [x.detach() for x in qkv()] + [bias]
        tensors[index].requires_grad_()
        one, = torch.autograd.grad(attention(*tensors[:3], bias=tensors[3]).square().sum(), tensors[index])
        every = [x.detach().requires_grad_() for x in tensors]
        torch.testing.assert_close(
            one, torch.autograd.grad(attention(*every[:3], bias=every[3]).square().sum(), every)[index], rtol=0, atol=2e-5)
    tensors = qkv(torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attention(*x, return_lse=True)[1], tensors)


def test_autocast_rules():
    """Floating-point operands go to autocast's type, f64 and masks stay, a sink is f32; gradients come back in the leaf's type."""
    q, k, v = qkv()
    bias, sink = torch.randn(1, 4, 7, 9, requires_grad=True), torch.randn(4, requires_grad=True)
    mask = torch.rand(2, 1, 1, 9) > 0.2
    for dtype in (torch.bfloat16, torch.float16):
        low = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, bias)]
        want = attention(*low[:3], bias=low[3], mask=mask, sink=sink)
        with torch.autocast("cpu", dtype=dtype):
            out = attention(q, k, v, bias=bias, mask=mask, sink=sink)
            with torch.autocast("cpu", enabled=False):
                assert attention(q, k, v).dtype == torch.float32
            assert attention(q.detach().half(), k.detach(), v.detach()).dtype == dtype
            with pytest.raises(TypeError):
                attention(q.double(), k, v)
        equal([out], [want])
        ours = torch.autograd.grad(out.float().sum(), (q, k, v, bias, sink))
        assert [x.dtype for x in ours] == [torch.float32] * 5
        theirs = torch.autograd.grad(want.float().sum(), (*low, sink))
        equal(ours, [x.float() for x in theirs])


def test_strides_and_negatives():
    """Views of every kind give what their copies give."""
    q, k, v = qkv(grad=False)
    wide = torch.randn(2, 4, 7, 16)
    views = {"every second": wide[..., ::2], "expanded": torch.randn(1, 4, 1, 8).expand(2, 4, 7, 8),
             "transposed": torch.randn(8, 7, 4, 2).permute(3, 2, 1, 0), "offset": torch.randn(2, 4, 8, 8)[:, :, 1:],
             "negative": torch.view_as_complex(torch.randn(2, 4, 7, 8, 2)).conj().imag}
    assert views["negative"].is_neg()
    for view in views.values():
        copy = view.clone(memory_format=torch.contiguous_format).resolve_neg()
        torch.testing.assert_close(attention(view, k, v), attention(copy, k, v), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="resolve_neg"):
        attend.attention(views["negative"], k, v)


def test_wrong_and_mixed_devices():
    q, k, v = qkv(grad=False)
    for wrong in (q.to("meta"), k.to("meta")):
        tensors = (wrong, k, v) if wrong.shape == q.shape else (q, wrong, v)
        with pytest.raises((TypeError, ValueError, NotImplementedError, RuntimeError)):
            attend.attention(*tensors)
    # libraries mix, as long as the memory is of one device
    equal([attend.attention(q, k.numpy(), v.numpy())], [attend.attention(q, k, v)])
    assert isinstance(attend.attention(q.numpy(), k, v), np.ndarray)


def test_masks_that_require_grad():
    q, k, v = qkv()
    with pytest.raises(RuntimeError, match="floating"):
        torch.ones(2, 9, dtype=torch.int32, requires_grad=True)
    with pytest.raises(TypeError, match="mask"):
        attention(q, k, v, mask=torch.ones(2, 9, requires_grad=True))
    with pytest.raises(TypeError, match="bias"):
        attention(q, k, v, bias=torch.zeros(1, 1, 7, 9, dtype=torch.int32))
    bias = torch.zeros(1, 1, 7, 9, requires_grad=True)
    scaled_dot_product_attention(q, k, v, bias).square().sum().backward()
    assert bias.grad.abs().sum() > 0


class Produced:
    """An array that only __dlpack__ knows, made anew for each call: nothing but the capsule keeps it."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **_):
        return (self.tensor * 1).__dlpack__()


def test_capsules_keep_what_they_hold():
    q, k, v = qkv(grad=False)
    want = attend.attention(q, k, v)
    for _ in range(50):
        equal([attend.attention(q, Produced(k), Produced(v))], [want])
