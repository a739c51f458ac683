"""Every strategy table of a study has its class, and the simple ones do what they say."""

from __future__ import annotations

import numpy as np
import pytest

from fedprompt.config import (
    FedAdamOptions,
    FedAvgOptions,
    FedLPPAOptions,
    FedProxOptions,
    FullFinetuneOptions,
    LocalOptions,
    StrategyOptions,
)
from fedprompt.manifest import Manifest, Scope, TensorSpec
from strategies import FedAdam, FedAvg, FedLPPA, FedProx, FullFinetune, Local, Strategy, Update, make_strategy

MANIFEST = Manifest((TensorSpec("w", (2,), "float32", Scope.SHARED),))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (FedAvgOptions(), FedAvg),
        (FedProxOptions(), FedProx),
        (FedAdamOptions(), FedAdam),
        (FedLPPAOptions(), FedLPPA),
        (LocalOptions(), Local),
        (FullFinetuneOptions(), FullFinetune),
    ],
)
def test_each_table_has_its_strategy(options: StrategyOptions, kind: type[Strategy]) -> None:
    assert type(make_strategy(options)) is kind


@pytest.mark.parametrize("options", [FedAvgOptions(), FedProxOptions(mu=0.1), FullFinetuneOptions()])
def test_the_mean_with_the_cap_of_the_study(options: StrategyOptions) -> None:
    strategy = make_strategy(options)
    strategy.start(MANIFEST, {"w": np.zeros(2, "f4")}, {})
    cases = {"a": 98, "b": 1, "c": 1}
    updates = [Update(s, n, {"w": np.full(2, i, "f4")}, {}) for i, (s, n) in enumerate(cases.items())]
    facts = strategy.aggregate(1, updates)
    assert facts == {"weights": {"a": 0.5, "b": 0.25, "c": 0.25}}
    np.testing.assert_allclose(strategy.shared["w"], 0.75)


def test_local_shares_nothing() -> None:
    strategy = make_strategy(LocalOptions())
    strategy.start(MANIFEST.select(), {}, {})
    assert strategy.aggregate(1, [Update("a", 3, {}, {}), Update("b", 3, {}, {})]) == {}
    assert strategy.outgoing("a") == ({}, {}, {})
    assert strategy.state() == ({}, {})
