"""One file per prompt; the registry maps the names of the study's `[prompts]` tables to them."""

from fedprompt.prompts.base import InjectionPoint, Prompt
from fedprompt.prompts.data_aware import DataAwarePrompt
from fedprompt.prompts.fusion import TriPromptFusion
from fedprompt.prompts.modulation import DecoderModulation
from fedprompt.prompts.sparsity import SparsityPrompt
from fedprompt.prompts.universal import UniversalPrompt

__all__ = [
    "PROMPTS",
    "DataAwarePrompt",
    "DecoderModulation",
    "InjectionPoint",
    "Prompt",
    "SparsityPrompt",
    "TriPromptFusion",
    "UniversalPrompt",
]

PROMPTS: dict[str, type[Prompt]] = {
    "universal": UniversalPrompt,
    "data_aware": DataAwarePrompt,
    "sparsity": SparsityPrompt,
    "fusion": TriPromptFusion,
    "modulation": DecoderModulation,
}
