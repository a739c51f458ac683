"""What a site does on its own when its images change.

Test-time adaptation of any frozen network, in three lines:

    network = Network(module, classes=("background", "vessel"), mean=(0.5,) * 3, std=(0.25,) * 3)
    adapter = Adapter(network)
    mask = adapter(image).mask
"""

from fedprompt.adaptation.adapter import Adapted, Adapter
from fedprompt.adaptation.bank import DomainBank, Entry, image_styles, predict
from fedprompt.adaptation.methods import METHODS
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.statistics import SourceStatistics, collect_statistics, merged

__all__ = [
    "METHODS",
    "Adapted",
    "Adapter",
    "DomainBank",
    "Entry",
    "Network",
    "SourceStatistics",
    "collect_statistics",
    "image_styles",
    "merged",
    "predict",
]
