"""Adaptation at an unseen site as one HTML file: source, shared prompts, shared prompts adapted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from fedprompt.report.html import page, picture_address
from fedprompt.report.numerals import DASH, difference, share
from fedprompt.report.pictures import class_colours, mask_panel
from fedprompt.report.spectra import amplitude_profile, course, prompt_at_work

__all__ = ["Content", "Example", "Line", "Spectrum", "render_adaptation"]


@dataclass(frozen=True)
class Line:
    """One way to segment the images of the stream, in their order.

    Attributes:
        name: What it is called.
        about: What it is, in a few words.
        dice: Mean over the foreground classes, per image.
        seconds: Per image.
        accepted: Whether the adaptation was used, per image; empty without adaptation.
        reasons: Why not, per image.
        losses: Alignment loss before and after the step, per image; empty without adaptation.
    """

    name: str
    about: str
    dice: Sequence[float]
    seconds: Sequence[float]
    accepted: Sequence[bool] = ()
    reasons: Sequence[str] = ()
    losses: Sequence[tuple[float | None, float | None]] = ()

    @property
    def mean(self) -> float:
        """Mean Dice."""
        return float(np.mean(self.dice))

    def changes(self, before: Line) -> np.ndarray:
        """Of Dice from another line to this one, per image."""
        return np.subtract(self.dice, before.dice)


@dataclass(frozen=True, eq=False)
class Example:
    """One image of the stream.

    Attributes:
        case: Name of the image.
        why: Why it is shown.
        image: (H, W, 3) in 0 to 1.
        truth: Class numbers (h, w).
        masks: Class numbers (h, w) by line.
        dice: By line.
        prompted: The image with its prompt; None where it went in as it is.
        gains: Of the prompt's window (3, side, side); None likewise.
    """

    case: str
    why: str
    image: np.ndarray
    truth: np.ndarray
    masks: Mapping[str, np.ndarray]
    dice: Mapping[str, float]
    prompted: np.ndarray | None = None
    gains: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Mean amplitudes (3, F) by frequency: of the images of training, of the stream without and with prompts.

    Attributes:
        radius: Highest frequency of the prompt's window.
    """

    training: np.ndarray
    stream: np.ndarray
    prompted: np.ndarray
    radius: int


@dataclass(frozen=True, eq=False)
class Content:
    """What the page tells.

    Attributes:
        title: Of the page.
        lead: What was done, in a sentence or two.
        note: What else a reader must know; may be empty.
        classes: Names, background first.
        lines: Source, shared prompts, shared prompts and adaptation.
        examples: Images to show.
        spectrum: Over all images.
        facts: By label, where and how.
    """

    title: str
    lead: str
    note: str
    classes: Sequence[str]
    lines: tuple[Line, Line, Line]
    examples: Sequence[Example]
    spectrum: Spectrum
    facts: Mapping[str, str]


def render_adaptation(content: Content) -> str:
    """The page as HTML text. Equal contents give equal text."""
    source, shared, adapted = content.lines
    return page(
        "adaptation.html.j2",
        content=content,
        key_figures=list(_key_figures(content)),
        rows=list(_rows(content)),
        course=Markup(  # noqa: S704 - drawn here
            course(
                "course",
                {line.name: line.dice for line in content.lines},
                adapted.changes(shared).tolist(),
                adapted.accepted,
                adapted.losses,
            )
        ),
        profile=_profile(content.spectrum),
        examples=[(example, _panel(example, content)) for example in content.examples],
        prompts=[
            (example, Markup(_prompt(number, example)))  # noqa: S704 - drawn here
            for number, example in enumerate(content.examples)
            if example.gains is not None
        ],
        tiles=("image", "truth", source.name, shared.name, adapted.name),
        colours=dict(list(class_colours(content.classes).items())[1:]),
        reasons=_counted(adapted.reasons),
    )


def _key_figures(content: Content) -> Iterator[tuple[str, str, str]]:
    """Value, label and what stands beside it."""
    source, shared, adapted = content.lines
    yield f"{adapted.mean:.3f}", "mean Dice, adapted", "of this site's images"
    yield f"{shared.mean:.3f}", "shared prompts", f"{difference(adapted.mean - shared.mean)} by adaptation"
    yield f"{source.mean:.3f}", "source", f"{difference(shared.mean - source.mean)} by the sites' prompts"
    changes = adapted.changes(shared)
    yield difference(float(changes.min())), "worst image", "change of Dice by adaptation"
    yield share(sum(adapted.accepted), len(adapted.accepted)), "adapted", f"of {len(adapted.accepted)} images"


def _rows(content: Content) -> Iterator[dict[str, Any]]:
    before: Line | None = None
    best = max(line.mean for line in content.lines)
    for line in content.lines:
        changes = None if before is None else line.changes(before)
        yield {
            "name": line.name,
            "about": line.about,
            "dice": f"{line.mean:.3f}",
            "best": line.mean == best,
            "change": DASH if changes is None else difference(float(changes.mean())),
            "worst": DASH if changes is None else difference(float(changes.min())),
            "gained": DASH if changes is None else f"{(changes > 0.005).sum()} / {(changes < -0.005).sum()}",
            "accepted": share(sum(line.accepted), len(line.accepted)) if line.accepted else DASH,
            "seconds": f"{1000 * float(np.mean(line.seconds)):.0f} ms",
        }
        before = line


def _profile(spectrum: Spectrum) -> Markup:
    lines = {"unseen site, as it comes": spectrum.stream, "with its prompts": spectrum.prompted}
    drawn = amplitude_profile(
        "profile", spectrum.training, lines, radius=spectrum.radius, reference="images of the study's sites"
    )
    return Markup(drawn)  # noqa: S704 - drawn here


def _panel(example: Example, content: Content) -> str:
    masks = [example.truth, *(example.masks[line.name] for line in content.lines)]
    return picture_address(mask_panel(example.image, masks, content.classes))


def _prompt(number: int, example: Example) -> str:
    assert example.prompted is not None and example.gains is not None  # noqa: S101, PT018 - the caller asks
    return prompt_at_work(f"prompt-{number}", example.image, example.prompted, example.gains)


def _counted(reasons: Sequence[str]) -> list[tuple[str, int]]:
    """Why images were not adapted, the most frequent reason first."""
    found = [reason for reason in reasons if reason]
    return sorted(
        ((reason, found.count(reason)) for reason in set(found)), key=lambda each: (-each[1], each[0])
    )
