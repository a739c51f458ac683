"""What a site does on its own when its images change."""

from fedprompt.adaptation.bank import DomainBank, Entry, image_styles, predict

__all__ = ["DomainBank", "Entry", "image_styles", "predict"]
