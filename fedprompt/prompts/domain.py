"""Domain prompts (PLDG, IEEE TMI 2024), federated: shared base tokens times personal low-rank factors.

Each site clusters the style of its own images into pseudo-domains. The tokens of domain k are the shared
base tokens times a rank-1 matrix u_k v_kᵀ, and an adapter mixes the domains for an image by its style, also
for one from no known domain. Differences to the reference: the factors start at one, so that every domain
starts at the base tokens (theirs start at a product of 1e-5); mixup mixes the prompts with the images;
factors and adapter never leave the site; the backbone is frozen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprompt.backbones.attention import Tokens
from fedprompt.backbones.base import Features, Geometry
from fedprompt.config import DomainOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt
from fedprompt.prompts.tokens import GATE_RATES, TOKEN_SPREAD, first_block

__all__ = ["DomainPrompt", "style"]

_STYLE_BLOCK = 2  # scanners are told apart best by what early blocks see
_SPREAD = 0.02  # standard deviation of the initial factors around one


def style(state: Features) -> Tensor:
    """Style of images (B, 2 D): mean and deviation over the positions of a hidden state (B, ..., D)."""
    flat = state[0].detach().float().flatten(1, -2)
    return torch.cat([flat.mean(dim=1), flat.std(dim=1)], dim=1)


class DomainPrompt(Prompt):
    """Base tokens (L, P, width), factors u (K, P) and v (K, width), gates (L, heads) and an adapter.

    Style is that of the hidden state in front of block `style_block`. Gates start at zero. A site without
    trained factors (a newcomer) uses the base tokens as they are.
    """

    scope = Scope.SHARED
    scopes = {"u": Scope.PERSONAL, "v": Scope.PERSONAL, "adapter": Scope.PERSONAL}  # noqa: RUF012
    injection = InjectionPoint.TOKENS
    rates = GATE_RATES

    def __init__(self, options: DomainOptions, geometry: Geometry) -> None:
        super().__init__()
        self.domains = options.domains
        self.start = first_block(geometry, options.blocks)
        self.style_block = min(_STYLE_BLOCK, self.start)
        seeing = geometry.blocks - self.start
        self.base = nn.Parameter(torch.zeros(seeing, options.count, geometry.width))
        self.gates = nn.Parameter(torch.zeros(seeing, geometry.heads))
        self.u = nn.Parameter(torch.ones(options.domains, options.count))
        self.v = nn.Parameter(torch.ones(options.domains, geometry.width))
        self.adapter = nn.Sequential(
            nn.Linear(2 * geometry.width, options.adapter),
            nn.GELU(),
            nn.Linear(options.adapter, options.domains),
        )

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.base, std=TOKEN_SPREAD, generator=generator)
        nn.init.zeros_(self.gates)
        for factor in (self.u, self.v):
            nn.init.normal_(factor, mean=1.0, std=_SPREAD, generator=generator)
        first, _, last = self.adapter
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu", generator=generator)  # type: ignore[arg-type]
        nn.init.zeros_(first.bias)  # type: ignore[arg-type]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def mix(self, styles: Tensor) -> Tensor:
        """Logits (B, K) of the domains for images with these styles (B, 2 width)."""
        logits: Tensor = self.adapter(F.layer_norm(styles, styles.shape[1:]))
        return logits

    def forward(self, weights: Tensor) -> Tokens:
        """The tokens by block for images that mix the domains with `weights` (B, K), rows summing to one."""
        factors = torch.einsum("bk,kp,kd->bpd", weights, self.u, self.v)
        return Tokens(
            enter={self.start + i: base * factors for i, base in enumerate(self.base)},
            gates={self.start + i: gate for i, gate in enumerate(self.gates.tanh())},
        )
