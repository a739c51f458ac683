"""Prompted models: a frozen backbone, prompts and heads."""

from __future__ import annotations

from fedprompt.backbones.base import Backbone
from fedprompt.config import Annotation, StrategyOptions, Study
from fedprompt.manifest import Manifest, Scope
from fedprompt.models.classifier import PromptedClassifier, Scores
from fedprompt.models.prompted import Prompted, PromptedModel
from fedprompt.models.segmenter import Branches, PromptedSegmenter

__all__ = [
    "Branches",
    "Prompted",
    "PromptedClassifier",
    "PromptedModel",
    "PromptedSegmenter",
    "Scores",
    "build_model",
    "study_manifest",
]


def build_model(backbone: Backbone, study: Study, annotation: Annotation) -> PromptedModel:
    """The model of a study's task on a frozen backbone, at its initial values."""
    if study.task == "classification":
        return PromptedClassifier(backbone, study, annotation)
    return PromptedSegmenter(backbone, study, annotation)


def study_manifest(model: PromptedModel, strategy: StrategyOptions) -> Manifest:
    """The model's manifest with what a strategy makes of the declared scopes.

    fedavg, fedprox, fedadam and full-finetune share all that may leave a site; with local nothing leaves;
    fedlppa keeps the declared scopes, or demotes `site` to `personal`.
    """
    declared = model.manifest()
    if strategy.name == "fedlppa":
        return declared.rescoped({Scope.SITE: Scope(strategy.site_scope)})
    if strategy.name == "local":
        return declared.rescoped({Scope.SITE: Scope.PERSONAL, Scope.SHARED: Scope.PERSONAL})
    return declared.rescoped({Scope.SITE: Scope.SHARED})
