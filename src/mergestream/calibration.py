"""Whether probabilities can be believed: the expected calibration error, and a temperature that reduces it."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

BINS = 15
COLDEST, HOTTEST = 0.1, 10.0  # limits of a temperature; without them, logits without a mistake would get one of 0
CHUNK = 4096  # samples whose logits are computed with in double precision at a time


class CalibrationError:
    """The expected calibration error of Guo et al. 2017: Σ_b |B_b|/N · |acc(B_b) − conf(B_b)|.

    B_b are the samples whose confidence, the largest probability, is in the b-th of 15 bins of equal width; acc is
    the share that is predicted right, conf the mean confidence. Batches are added one by one, in this process.

    Args:
        temperature: what logits are divided by.
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature
        self.sums = torch.zeros(3, BINS, dtype=torch.float64)  # samples, right predictions and confidence of each bin

    def update(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Add a batch: logits [B, C], class ids [B]."""
        confidence_B, predicted_B = (logits_BC.double() / self.temperature).softmax(-1).max(-1)
        # Bin b is (b/15, (b+1)/15], as in the paper.
        bins_B = ((confidence_B * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        found = torch.stack([torch.ones_like(confidence_B), (predicted_B == labels_B).double(), confidence_B])
        self.sums.index_add_(1, bins_B.cpu(), found.cpu())

    def compute(self) -> float:
        """Return the error of all batches; NaN without a sample."""
        count, right, confidence = self.sums
        return ((right - confidence).abs().sum() / count.sum()).item()


class Temperature:
    """The temperature T that minimises the negative log-likelihood of softmax(logits / T) (Guo et al. 2017).

    It changes no prediction. Keeps the logits of all batches.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []

    def update(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Add a batch: logits [B, C], class ids [B]."""
        self.batches.append((logits_BC.cpu(), labels_B.cpu()))

    def compute(self) -> float:
        """Return the temperature between `COLDEST` and `HOTTEST`.

        The likelihood is concave in β = 1/T, with the derivative Σ_n z_n[y_n] − E_{softmax(βz_n)}[z_n]. So its zero is
        the only maximum, and bracketing finds it.
        """
        logits_NC, labels_N = (torch.cat(parts) for parts in zip(*self.batches, strict=True))

        def slope(log_beta: float) -> float:
            total = 0.0
            for z, y in zip(logits_NC.split(CHUNK), labels_N.split(CHUNK), strict=True):
                z = z.double()
                expected = ((z * math.exp(log_beta)).softmax(-1) * z).sum(-1)
                total += (z.gather(1, y[:, None])[:, 0] - expected).sum().item()
            return total

        low, high = -math.log(HOTTEST), -math.log(COLDEST)
        if slope(low) <= 0:
            return HOTTEST
        if slope(high) >= 0:
            return COLDEST
        return math.exp(-float(brentq(slope, low, high, xtol=1e-6)))
