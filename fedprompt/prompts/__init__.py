"""One file per prompt; `PROMPTS` maps the names of the study's `[prompts]` tables to them."""

from __future__ import annotations

from fedprompt.backbones.base import Backbone
from fedprompt.config import Annotation, Study
from fedprompt.prompts.base import InjectionPoint, Prompt
from fedprompt.prompts.class_prompts import ClassPrompts
from fedprompt.prompts.data_aware import DataAwarePrompt
from fedprompt.prompts.domain import DomainPrompt
from fedprompt.prompts.fusion import TriPromptFusion
from fedprompt.prompts.generated import GeneratedPrompt
from fedprompt.prompts.modulation import DecoderModulation
from fedprompt.prompts.sparsity import SparsityPrompt
from fedprompt.prompts.text import TextContext
from fedprompt.prompts.tokens import VisualTokens
from fedprompt.prompts.universal import UniversalPrompt

__all__ = [
    "PROMPTS",
    "ClassPrompts",
    "DataAwarePrompt",
    "DecoderModulation",
    "DomainPrompt",
    "GeneratedPrompt",
    "InjectionPoint",
    "Prompt",
    "SparsityPrompt",
    "TextContext",
    "TriPromptFusion",
    "UniversalPrompt",
    "VisualTokens",
    "build_prompts",
]

PROMPTS: dict[str, type[Prompt]] = {
    "universal": UniversalPrompt,
    "data_aware": DataAwarePrompt,
    "sparsity": SparsityPrompt,
    "fusion": TriPromptFusion,
    "modulation": DecoderModulation,
    "generated": GeneratedPrompt,
    "tokens": VisualTokens,
    "domain": DomainPrompt,
    "text": TextContext,
    "class_prompts": ClassPrompts,
}


def build_prompts(study: Study, annotation: Annotation, backbone: Backbone) -> dict[str, Prompt]:
    """The prompts of a study for a backbone, untrained, by name; `annotation` is for the sparsity prompt."""
    settings, geometry = study.prompts, backbone.geometry
    prompts: dict[str, Prompt] = {}
    if settings.universal:
        prompts["universal"] = UniversalPrompt(settings.universal)
    if settings.data_aware:
        prompts["data_aware"] = DataAwarePrompt(settings.data_aware)
    if settings.sparsity:
        prompts["sparsity"] = SparsityPrompt(settings.sparsity, annotation)
    if settings.fusion:
        maps = [prompts[name] for name in ("universal", "data_aware", "sparsity") if name in prompts]
        prompts["fusion"] = TriPromptFusion(
            settings.fusion,
            feature_channels=geometry.channels[-1],
            prompt_channels=sum(prompt.channels for prompt in maps),  # type: ignore[misc]
        )
    if settings.modulation:
        prompts["modulation"] = DecoderModulation(
            settings.modulation, decoder_channels=geometry.decoder_channels
        )
    if settings.generated:
        channels = geometry.channels[-1] if study.task == "segmentation" else geometry.pooled
        prompts["generated"] = GeneratedPrompt(settings.generated, channels=channels)
    if settings.tokens:
        prompts["tokens"] = VisualTokens(settings.tokens, geometry)
    if settings.domain:
        prompts["domain"] = DomainPrompt(settings.domain, geometry)
    if settings.text:
        prompts["text"] = TextContext(settings.text, backbone, study.classes)  # type: ignore[arg-type]
    if settings.class_prompts:
        prompts["class_prompts"] = ClassPrompts(
            settings.class_prompts, classes=len(study.classes) - 1, width=geometry.channels[-1]
        )
    return prompts
