"""Federated prompt learning on frozen medical foundation backbones.

The library: prompts, backbones, data, local training, privacy and files. It never imports Flower; the
packages ``strategies``, ``client`` and ``server`` build the federation on top of it.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
