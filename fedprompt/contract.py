"""All that server and site share: what an order asks, what a reply may say, and the records that carry it.

Both documents are strict JSON: an unknown key, a wrong type, NaN or infinity is refused at either end. Arrays
travel beside the document in one record per scope and are checked against the manifest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedprompt.config import SITE_ID, Annotation
from fedprompt.errors import RunError

__all__ = [
    "ORDER_RECORD",
    "PEERS_RECORD",
    "REPORT_RECORD",
    "SHARED_RECORD",
    "SITE_RECORD",
    "CaseCounts",
    "Failure",
    "Order",
    "Report",
    "SiteCard",
]

ORDER_RECORD = "order"
REPORT_RECORD = "report"
SHARED_RECORD = "shared"  # tensors of scope `shared`
SITE_RECORD = "site"  # tensors of scope `site` of the addressed site
PEERS_RECORD = "peers"  # what a strategy tells a site about the others (mean of their rows); never sent up

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Document(BaseModel):
    """Base of what crosses the boundary."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def encode(self) -> str:
        """One line of JSON."""
        return self.model_dump_json()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Parses what `encode` gave; raises `RunError` that names the first thing wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "document"
            raise RunError(
                f"{cls.__name__.lower()}: {place}: {first['msg']}", public="a message is malformed"
            ) from None


class Order(Document):
    """What the server asks of one site."""

    study: str = Field(description="digest of the study")
    round: Annotated[int, Field(ge=0)] = Field(description="number of the round; 0 before the first")
    task: Literal["describe", "train", "evaluate"]
    initial_arrays: bool = Field(False, description="describe: send the initial shared and site tensors")
    split: Literal["val", "test"] = Field("test", description="evaluate: which cases")


class CaseCounts(Document):
    train: Annotated[int, Field(ge=0)]
    val: Annotated[int, Field(ge=0)]
    test: Annotated[int, Field(ge=0)]


class SiteCard(Document):
    """Who a site is, in answer to `describe`."""

    cases: CaseCounts
    annotation: Annotation
    backbone: str = Field(description="registry name")
    fingerprint: str = Field(description="SHA-256 of the frozen backbone")
    manifest: list[dict[str, Any]]
    parameters: dict[str, int] = Field(description="elements per scope, and of the backbone")
    environment: dict[str, str] = Field(description="python, torch, flwr, device")


class Failure(Document):
    """Why a site cannot answer: a code and a sentence without paths, file names or patients."""

    code: str
    reason: str


class Report(Document):
    """What a site answers. `metrics` are those of the arrays it received, before training."""

    site: Annotated[str, Field(pattern=SITE_ID)]
    round: Annotated[int, Field(ge=0)]
    task: Literal["describe", "train", "evaluate"]
    failure: Failure | None = None
    card: SiteCard | None = None
    cases: Annotated[int, Field(ge=0)] = Field(0, description="cases trained on or evaluated")
    metrics: dict[str, Finite] = Field(default_factory=dict)
    loss: dict[str, Finite] = Field(default_factory=dict, description="mean of each part over the steps")
    seconds: dict[str, Finite] = Field(default_factory=dict, description="by phase")
