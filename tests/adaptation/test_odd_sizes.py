"""A network whose output has another size than its image, and images that are none."""

import numpy as np
import pytest
import torch
from torch import nn

from fedprompt.adaptation import Adapter, Network
from fedprompt.errors import ConfigurationError, DataError


class Rounded(nn.Module):
    """Rounds sides up to multiples of four, as strided networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4, padding=2), nn.BatchNorm2d(4))
        self.up = nn.ConvTranspose2d(4, 2, 4, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        up: torch.Tensor = self.up(self.down(images))
        return up


@pytest.mark.parametrize("method", ["none", "batch-norm", "low-frequency"])
def test_masks_have_the_size_of_the_image(method: str) -> None:
    adapter = Adapter(Network(Rounded().eval(), ("background", "disc")), method)
    image = torch.rand(3, 30, 41, generator=torch.Generator().manual_seed(0))
    found = adapter(image)
    assert found.mask.shape == (30, 41)
    assert found.probabilities.shape == (2, 30, 41)


@pytest.mark.parametrize("image", [None, "scan", np.array([None]), np.zeros((3, 8, 8), complex)])
def test_what_is_no_image_is_refused(image: object) -> None:
    adapter = Adapter(Network(Rounded().eval(), ("background", "disc")))
    with pytest.raises(DataError, match="expected an array or a tensor of real numbers"):
        adapter(image)  # type: ignore[arg-type]


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected a torch module, got int"):
        Network(3, ("background", "disc"))  # type: ignore[arg-type]
