# SPDX-License-Identifier: MIT
"""A small model of characters: two layers of causal attention, trained on Python's own language reference for a few seconds
on a CPU, then made to write. docs/training.md goes through it.

    python examples/train_characters.py [STEPS]"""
import random
import sys
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn

from attend.torch import Attend

DIM, HEADS, LENGTH, BATCH = 96, 4, 64, 8

text = "\n".join(topics[name] for name in sorted(topics))
alphabet = sorted(set(text))
number = {character: i for i, character in enumerate(alphabet)}
data = torch.tensor([number[character] for character in text])


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.before_attention, self.before_feed = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.attend = Attend(causal=True, dropout=0.05, flash=True)
        self.feed = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x):
        # [B,N,3*D] seen as three times [B,H,N,D]: strided views, which Attend reads where they lie
        q, k, v = self.to_qkv(self.before_attention(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.to_out(self.attend(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.feed(self.before_feed(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(len(alphabet), DIM), nn.Embedding(LENGTH, DIM)
        self.layers = nn.Sequential(Layer(), Layer(), nn.LayerNorm(DIM))
        self.to_logits = nn.Linear(DIM, len(alphabet))

    def forward(self, ids):
        return self.to_logits(self.layers(self.tokens(ids) + self.places.weight[:ids.shape[1]]))


def main(steps):
    torch.manual_seed(1)
    places = random.Random(1)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, steps + 1):
        starts = [places.randrange(len(data) - LENGTH) for _ in range(BATCH)]
        window = torch.stack([data[i:i + LENGTH + 1] for i in starts])
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == 1:
            print(f"step {step}: {loss.item():.3f} nats per character", flush=True)

    model.eval()
    ids = torch.tensor([[number[character] for character in "The "]])
    with torch.no_grad():
        while ids.shape[1] < LENGTH:
            ids = torch.cat((ids, torch.multinomial((model(ids)[:, -1] / 0.7).softmax(-1), 1)), 1)
    print("".join(alphabet[i] for i in ids[0]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
