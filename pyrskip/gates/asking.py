"""Answer from a first look, and ask for more where that is not sure enough.

Axes: N questions.
"""

import torch
from torch import Tensor

NEVER = float("-inf")


def threshold(sure: Tensor, gain: Tensor) -> float:
    """How sure one must be not to ask: a number t such that asking where sure <= t gains most, the lowest
    such; NEVER where asking gains nothing. sure, gain [N]: how sure the first answer is, and what a second
    turn would add to its value."""
    order = sure.argsort()
    total, ordered = gain.double()[order].cumsum(0), sure[order]
    # those who are equally sure ask together
    last = torch.ones_like(order, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    total = total.masked_fill(~last, NEVER)
    best = int(total.argmax())
    return float(ordered[best]) if total[best] > 0 else NEVER
