# SPDX-License-Identifier: MIT
"""Checked by test_types.py as a user's program is: strictly."""
from typing import Tuple

import numpy as np
import torch

import attend
from attend import flash_attn
from attend.torch import Attend, scaled_dot_product_attention


def of_numpy(q: np.ndarray[Tuple[int, ...], np.dtype[np.float32]]) -> attend.Gradients:
    out, lse = attend.attention(q, q, q, causal=True, window=(3, 0), return_lse=True, backend=("flash", "math"))
    kernel: str = attend.explain(q, q, q).kernel
    print(kernel, attend.info()["version"])
    return attend.attention_backward(out, q, q, q, out, lse, causal=True, gradients=("q",))


def of_torch(q: torch.Tensor) -> torch.Tensor:
    module = Attend(causal=True, dropout=0.1, flash=True)
    out: torch.Tensor = module(q, q, q)
    cached: torch.Tensor = flash_attn.flash_attn_func(q, q, q, causal=True)
    return scaled_dot_product_attention(out, q, cached, dropout_p=0.5, enable_gqa=True)


try:
    of_numpy(np.ones((1, 1, 2, 3), np.float32))
except attend.AttendError as error:
    status: int = error.status
