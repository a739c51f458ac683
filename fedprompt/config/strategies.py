"""The `[strategy]` table of a study: a union by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedprompt.config.tables import Table

__all__ = [
    "FedAdamOptions",
    "FedAvgOptions",
    "FedLPPAOptions",
    "FedProxOptions",
    "FullFinetuneOptions",
    "LocalOptions",
    "StrategyBase",
    "StrategyOptions",
]


class StrategyBase(Table):
    max_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Largest share that one site may have in an average"
    )


class FedAvgOptions(StrategyBase):
    name: Literal["fedavg"] = "fedavg"


class FedProxOptions(StrategyBase):
    name: Literal["fedprox"] = "fedprox"
    mu: Annotated[float, Field(gt=0)] = Field(0.01, description="Weight of the proximal term")


class FedAdamOptions(StrategyBase):
    name: Literal["fedadam"] = "fedadam"
    server_learning_rate: Annotated[float, Field(gt=0)] = Field(
        0.01, description="Step of the server's Adam update"
    )
    beta_1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Decay of the first moment")
    beta_2: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="Decay of the second moment")
    tau: Annotated[float, Field(gt=0)] = Field(1e-3, description="Degree of adaptivity")


class FedLPPAOptions(StrategyBase):
    name: Literal["fedlppa"] = "fedlppa"
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.5, description="Temperature of the softmax over the affinities of the data-aware rows"
    )
    self_floor: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="Least share of a site's own auxiliary head in its mixture"
    )
    site_scope: Literal["site", "personal"] = Field(
        "site", description="'personal' keeps rows and auxiliary heads at the sites: nothing is mixed"
    )


class LocalOptions(StrategyBase):
    name: Literal["local"] = "local"


class FullFinetuneOptions(StrategyBase):
    name: Literal["full-finetune"] = "full-finetune"


StrategyOptions = Annotated[
    FedAvgOptions | FedProxOptions | FedAdamOptions | FedLPPAOptions | LocalOptions | FullFinetuneOptions,
    Field(discriminator="name"),
]
