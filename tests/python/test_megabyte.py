# SPDX-License-Identifier: MIT
"""The first steps of what `make -C bench megabyte` does at length: MEGABYTE-pytorch with its own Attend and with ours."""
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench" / "megabyte"))
import train  # noqa: E402


@pytest.mark.parametrize("flash", [False, True])
def test_first_steps(flash):
    """Twice the distance from f64 that the original has in f32, or two ulp of the loss."""
    exact, weights = train.train(exact=True, steps=5)
    (theirs, theirs_at), (ours, ours_at) = (train.train(ours=which, flash=flash, steps=5) for which in (False, True))
    noise = max(np.abs(np.subtract(theirs, exact)).max(), np.spacing(np.float32(exact[0])))
    assert np.abs(np.subtract(ours, exact)).max() <= 2 * noise
    assert np.linalg.norm(ours_at - weights) <= 2 * np.linalg.norm(theirs_at - weights)


def test_dropout_trains():
    losses, _ = train.train(ours=True, flash=True, dropout=0.2, steps=5)
    assert losses[-1] < losses[0] and losses == train.train(ours=True, flash=True, dropout=0.2, steps=5)[0]
