# SPDX-License-Identifier: MIT
"""PyTorch's, JAX's and CuPy's arrays on a real GPU; skipped where there is none."""
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
import attend  # noqa: E402
from attend.torch import Attend, attention, scaled_dot_product_attention  # noqa: E402


def qkv(n=40, d=64, dtype=torch.bfloat16, grad=False, heads=4, kv_heads=2):
    torch.manual_seed(n)
    return [torch.randn(2, h, n, d, device="cuda").to(dtype).requires_grad_(grad) for h in (heads, kv_heads, kv_heads)]


def close(ours, exact, dtype):
    scale = exact.abs().max().item()
    assert (ours.double().cpu() - exact.double().cpu()).abs().max().item() <= {torch.float32: 2e-6}.get(dtype, 2e-2) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [5, 24, 130])
def test_agrees_with_the_cpu(dtype, n):
    q, k, v = qkv(n, dtype=dtype, grad=True)
    bias = torch.randn(1, 4, n, n, device="cuda", requires_grad=True)
    out = attention(q, k, v, bias=bias, causal=True)
    weight = torch.randn_like(out)
    ours = torch.autograd.grad(out, (q, k, v, bias), weight)
    exact_in = [x.detach().double().cpu().requires_grad_() for x in (q, k, v, bias)]
    exact = attention(*exact_in[:3], bias=exact_in[3], causal=True)
    close(out.detach(), exact.detach(), dtype)
    for a, b in zip(ours, torch.autograd.grad(exact, exact_in, weight.double().cpu())):
        close(a, b, dtype)


def test_the_same_dropout_as_the_cpu():
    q, k, v = (torch.randn(1, 2, 33, 16, device="cuda") for _ in range(3))
    v = torch.eye(33, device="cuda").expand(1, 2, 33, 33).contiguous()
    gpu, cpu = (attend.attention(*(x.to(device) for x in (q, k, v)), dropout=0.4, seed=9)
                for device in ("cuda", "cpu"))
    assert torch.equal(gpu.cpu() == 0, cpu == 0)


def test_streams_and_graphs():
    q, k, v = qkv(24)
    expected = attention(q, k, v, causal=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(attention(q, k, v, causal=True), expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = attention(q, k, v, causal=True)
        q.mul_(-1)
        graph.replay()
        replayed = out.clone()
        assert torch.equal(replayed, attention(q, k, v, causal=True)) and not torch.equal(replayed, expected)
    stream.synchronize()


def test_sdpa_and_the_layer():
    q, k, v = qkv(64, kv_heads=4)
    ours, theirs = (f(q, k, v, is_causal=True)
                    for f in (scaled_dot_product_attention, torch.nn.functional.scaled_dot_product_attention))
    close(ours, theirs, q.dtype)
    close(Attend(causal=True)(q, k, v), theirs, q.dtype)


def test_every_gpu_gives_the_same_bits():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    if len({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}) > 1:
        pytest.skip("GPUs of several kinds")
    for n in (5, 24, 300):
        q, k, v = qkv(n, grad=True)
        expected = attention(q, k, v, causal=True)
        gradients = torch.autograd.grad(expected.sum(), (q, k, v))
        for gpu in range(torch.cuda.device_count()):  # while GPU 0 is the current one
            there = [x.detach().to(f"cuda:{gpu}").requires_grad_() for x in (q, k, v)]
            out = attention(*there, causal=True)
            assert out.device.index == gpu and torch.equal(out.cpu(), expected.cpu())
            for a, b in zip(torch.autograd.grad(out.sum(), there), gradients):
                assert torch.equal(a.cpu(), b.cpu())
        with pytest.raises((ValueError, RuntimeError), match="device|cuda"):
            attention(q, k.to("cuda:1"), v)


def test_mixed_devices_are_refused():
    q, k, v = qkv()
    with pytest.raises((ValueError, RuntimeError), match="device|cuda|cpu"):
        attention(q, k.cpu(), v)


def test_cupy():
    cupy = pytest.importorskip("cupy")
    q, k, v = (x.float() for x in qkv(20))
    out = attend.attention(*(cupy.from_dlpack(x) for x in (q, k, v)))
    assert isinstance(out, cupy.ndarray)
    assert np.allclose(cupy.asnumpy(out), attention(q, k, v).cpu().numpy(), atol=1e-6)
