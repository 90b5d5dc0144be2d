"""A baseline of the rule reinforce: the median of a question's samples."""

from torch import Tensor

from pyrskip.training.estimators import Sampled, baseline


@baseline("toy_baseline", samples=2)
def median(sampled: Sampled) -> Tensor:
    return sampled.reward - sampled.reward.median(-1, keepdim=True).values
