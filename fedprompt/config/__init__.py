"""The two files of a federation: a study (owned by its lead) and a site (owned by the hospital)."""

from __future__ import annotations

from fedprompt.config.prompts import (
    ClassPromptOptions,
    DataAwareOptions,
    DomainOptions,
    FusionOptions,
    GeneratedOptions,
    ModulationOptions,
    PromptSettings,
    SparsityOptions,
    TextOptions,
    TokenOptions,
    UniversalOptions,
)
from fedprompt.config.reading import (
    load_site,
    load_study,
    study_from_mapping,
)
from fedprompt.config.site import (
    Site,
)
from fedprompt.config.strategies import (
    FedAdamOptions,
    FedAvgOptions,
    FedLPPAOptions,
    FedProxOptions,
    FullFinetuneOptions,
    LocalOptions,
    StrategyBase,
    StrategyOptions,
)
from fedprompt.config.study import (
    PHANTOM_CLASSES,
    BackboneSettings,
    ImageSettings,
    LossSettings,
    RoundSettings,
    Study,
    StudySite,
    TrainingSettings,
)
from fedprompt.config.tables import (
    SITE_ID,
    Annotation,
    Table,
)

__all__ = [
    "PHANTOM_CLASSES",
    "SITE_ID",
    "Annotation",
    "BackboneSettings",
    "ClassPromptOptions",
    "DataAwareOptions",
    "DomainOptions",
    "FedAdamOptions",
    "FedAvgOptions",
    "FedLPPAOptions",
    "FedProxOptions",
    "FullFinetuneOptions",
    "FusionOptions",
    "GeneratedOptions",
    "ImageSettings",
    "LocalOptions",
    "LossSettings",
    "ModulationOptions",
    "PromptSettings",
    "RoundSettings",
    "Site",
    "SparsityOptions",
    "StrategyBase",
    "StrategyOptions",
    "Study",
    "StudySite",
    "Table",
    "TextOptions",
    "TokenOptions",
    "TrainingSettings",
    "UniversalOptions",
    "load_site",
    "load_study",
    "study_from_mapping",
]
