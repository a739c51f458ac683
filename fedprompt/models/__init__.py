"""Prompted models: a frozen backbone, prompts and heads."""

from fedprompt.models.segmenter import Branches, PromptedSegmenter, study_manifest

__all__ = ["Branches", "PromptedSegmenter", "study_manifest"]
