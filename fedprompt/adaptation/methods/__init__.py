"""One file per method of test-time adaptation; `METHODS` maps names to them."""

from __future__ import annotations

from fedprompt.adaptation.methods.base import Method, Outcome
from fedprompt.adaptation.methods.batch_norm import BatchNormMixing
from fedprompt.adaptation.methods.low_frequency import LowFrequencyPrompting
from fedprompt.adaptation.methods.multi_scale import MultiScalePrompting
from fedprompt.adaptation.methods.reference import ReferencePrompting
from fedprompt.adaptation.methods.tent import Tent
from fedprompt.adaptation.methods.unadapted import Unadapted

__all__ = ["METHODS", "Method", "Outcome"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Unadapted,
        BatchNormMixing,
        ReferencePrompting,
        LowFrequencyPrompting,
        MultiScalePrompting,
        Tent,
    )
}
