"""Aggregation strategies over prompts: pure numpy. Only `strategies.wire` touches Flower's records."""

from __future__ import annotations

from fedprompt.config import (
    FedAdamOptions,
    FedLPPAOptions,
    FedProxOptions,
    FullFinetuneOptions,
    LocalOptions,
    StrategyOptions,
)
from strategies.base import Strategy, Update
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg, FedProx, FullFinetune, Local
from strategies.fedlppa import FedLPPA

__all__ = [
    "FedAdam",
    "FedAvg",
    "FedLPPA",
    "FedProx",
    "FullFinetune",
    "Local",
    "Strategy",
    "Update",
    "make_strategy",
]


def make_strategy(options: StrategyOptions) -> Strategy:
    """The strategy that a study's `[strategy]` table asks for."""
    if isinstance(options, FedLPPAOptions):
        return FedLPPA(options)
    if isinstance(options, FedAdamOptions):
        return FedAdam(options)
    if isinstance(options, FedProxOptions):
        return FedProx(options.max_weight)
    if isinstance(options, LocalOptions):
        return Local(options.max_weight)
    if isinstance(options, FullFinetuneOptions):
        return FullFinetune(options.max_weight)
    return FedAvg(options.max_weight)
