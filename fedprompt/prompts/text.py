"""Learnable context before class names: CoOp (IJCV 2022), federated as in PromptFL, personal as in FedPGP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedprompt.config import TextOptions
from fedprompt.errors import ConfigurationError
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedprompt.backbones.clip import CLIP

__all__ = ["TextContext", "fixed_text"]

_TEMPLATE = TextOptions().template


class TextContext(Prompt):
    """The words of a template before the class name, as embeddings (M, D) that train; all classes share them.

    They start at the template's own words, so that the initial model is the zero-shot one; M is therefore
    their number. With a rank r, a site adds a personal part U V (FedPGP) of factors (M, r) and (r, D); V
    starts at zero.

    Args:
        options: Template and rank.
        backbone: Its text tower stays with it, frozen; the prompt only calls it.
        classes: Names in the order of the labels.

    Raises:
        ConfigurationError: The template has no words before the class name, or a text is too long.
    """

    scope = Scope.SHARED
    scopes = {"personal": Scope.PERSONAL}  # noqa: RUF012
    injection = InjectionPoint.TEXT

    def __init__(self, options: TextOptions, backbone: CLIP, classes: Sequence[str]) -> None:
        super().__init__()
        self._backbone = (backbone,)  # within a tuple: its weights are none of this module's tensors
        # Ids instead of buffers, which a manifest would list.
        self._ids, self._ends = backbone.tokenise(_texts(options.template, classes))
        words = _common_words(backbone, options.template, self._ids)
        if words == 0:
            raise ConfigurationError(
                "prompts.text.template: expected words before {}, which the context starts from, "
                f"got {options.template!r}"
            )
        self._template = self._ids[0, 1 : 1 + words]  # the first token is the start of the text
        initial = backbone.embed_words(self._template)
        self.context = nn.Parameter(initial.detach().clone())
        if options.rank:
            self.personal_u = nn.Parameter(torch.zeros(words, options.rank))
            self.personal_v = nn.Parameter(torch.zeros(options.rank, initial.shape[1]))

    def reset(self, generator: torch.Generator) -> None:
        (backbone,) = self._backbone
        with torch.no_grad():
            self.context.copy_(backbone.embed_words(self._template.to(self.context.device)))
        if hasattr(self, "personal_u"):
            # With rows of length one, the product moves as fast as the shared part when V trains.
            nn.init.normal_(self.personal_u, std=self.personal_u.shape[1] ** -0.5, generator=generator)
            nn.init.zeros_(self.personal_v)

    def forward(self) -> Tensor:
        """Text features of all classes (C, E), not normalised."""
        (backbone,) = self._backbone
        device = self.context.device
        words = backbone.embed_words(self._ids.to(device))
        context: Tensor = self.context
        if hasattr(self, "personal_u"):
            context = context + self.personal_u @ self.personal_v
        after = 1 + len(context)
        shared = context.expand(len(words), -1, -1)
        words = torch.cat([words[:, :1], shared, words[:, after:]], dim=1)
        return backbone.text_features(words, self._ends.to(device))


def fixed_text(backbone: CLIP, classes: Sequence[str], template: str = _TEMPLATE) -> Tensor:
    """Text features (C, E) of a template filled with class names, for zero-shot classification.

    Raises:
        ConfigurationError: A text is too long.
    """
    ids, ends = backbone.tokenise(_texts(template, classes))
    device = next(backbone.parameters()).device
    with torch.no_grad():
        return backbone.text_features(backbone.embed_words(ids.to(device)), ends.to(device))


def _texts(template: str, classes: Sequence[str]) -> list[str]:
    return [template.replace("{}", name) for name in classes]


def _common_words(backbone: CLIP, template: str, ids: Tensor) -> int:
    """Number of tokens that all texts have between their start and the class name."""
    (before,), (end,) = backbone.tokenise([template.partition("{}")[0]])
    before = before[:end]
    same = (ids[:, : len(before)] == before[: ids.shape[1]]).all(dim=0)
    return max(0, int(same.cumprod(dim=0).sum()) - 1)
