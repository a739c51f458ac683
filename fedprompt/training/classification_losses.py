"""The loss of a classifier at a site whose classes are not equally frequent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["log_prior", "logit_adjusted_cross_entropy"]


def log_prior(labels: Sequence[int] | Tensor, classes: int) -> Tensor:
    """Logarithm of the share of each class among a site's train labels: (classes,) float32, finite.

    Args:
        labels: Class numbers of the n train cases.
        classes: Number of classes of the study.
    """
    counts = torch.bincount(torch.as_tensor(labels, dtype=torch.int64), minlength=classes).double()
    # A class without a case counts as half a case, a share of about 1 / (2n): below every class that the
    # site has, and no surer of its absence than n cases can be. Zero would give -inf: NaN at strength 0,
    # and an infinite loss where a soft target gives the class some weight.
    shares = counts.clamp(min=0.5)
    return (shares / shares.sum()).log().float()


def logit_adjusted_cross_entropy(
    logits: Tensor, labels: Tensor, log_prior: Tensor, strength: float
) -> Tensor:
    """Cross-entropy of `logits + strength · log prior`, mean over the batch.

    With strength 1 the logits learn what tells the classes apart, and the site's class shares are left to
    the prior: a rare class is not pushed down, and one that the site lacks hardly at all, although no case
    there speaks for it. At inference nothing is added, which suits balanced accuracy (Menon et al., ICLR
    2021, arXiv 2007.07314; with the shares of each site after FedLC, Zhang et al., ICML 2022, arXiv
    2209.00189).

    Args:
        logits: (B, C).
        labels: (B,) int64 class numbers, or soft targets (B, C).
        log_prior: (C,), from the function of that name.
        strength: 0 is plain cross-entropy.
    """
    return F.cross_entropy(logits + strength * log_prior, labels)
