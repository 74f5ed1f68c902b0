# SPDX-License-Identifier: MIT
"""One training run of MEGABYTE-pytorch on real text: the library from PyPI as it is, or with nothing changed but the class
Attend of its module. The same seed gives the same weights and the same batches whichever Attend it is."""
import random
from pydoc_data.topics import topics

import MEGABYTE_pytorch.megabyte as original
import torch

import attend.torch

ORIGINAL_ATTEND = original.Attend
TEXT = "\n".join(topics[name] for name in sorted(topics)).encode()  # the language reference that ships with Python
PATCHES, PATCH, BATCH, STEPS = 48, 4, 4, 200


def model(ours, flash, dropout, seed):
    torch.manual_seed(seed)
    original.Attend = attend.torch.Attend if ours else ORIGINAL_ATTEND
    try:
        return original.MEGABYTE(num_tokens=256, dim=(96, 64), depth=(2, 2), max_seq_len=(PATCHES, PATCH), heads=4, dim_head=16,
                                 flash_attn=flash, attn_dropout=dropout, rel_pos=True)
    finally:
        original.Attend = ORIGINAL_ATTEND


def train(*, ours=False, flash=False, dropout=0.0, seed=1, threads=1, exact=False, steps=STEPS):
    """The loss of every step, in nats per byte, and the weights at the end; exact: all of it in f64."""
    torch.set_num_threads(threads)
    net = model(ours, flash, dropout, seed).to(torch.float64 if exact else torch.float32)
    assert sum(type(x) is attend.torch.Attend for x in net.modules()) == (4 if ours else 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    text, places, curve = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8), random.Random(seed), []
    for _ in range(steps):
        starts = [places.randrange(len(text) - PATCHES * PATCH) for _ in range(BATCH)]
        loss = net(torch.stack([text[i:i + PATCHES * PATCH] for i in starts]).long(), return_loss=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    return curve, torch.cat([x.detach().double().flatten() for x in net.parameters()]).numpy()
