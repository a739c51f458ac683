"""Several ways to adapt, compared on the same labelled images: what a report about them needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedprompt.adaptation.adapter import Adapted, Adapter
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.stream_files import class_numbers, network_input, read_truth
from fedprompt.data.cases import read_cases
from fedprompt.data.images import read_picture
from fedprompt.report.adaptation import Example, Line, Spectrum
from fedprompt.report.spectra import ring_amplitudes
from fedprompt.training.metrics import dice_per_class

__all__ = ["Labelled", "Seen", "examples_of", "labelled_images", "line_of", "spectrum_of", "watched_stream"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """One image with its truth, which no method sees.

    Attributes:
        name: Of its folder and file.
        pixels: (3, H, W) in 0 to 1, as the network sees it.
        truth: Class numbers in the resolution of the file.
    """

    name: str
    pixels: Tensor
    truth: np.ndarray


@dataclass(frozen=True, eq=False)
class Seen:
    """What an adapter made of one image.

    Attributes:
        adapted: Its answer.
        mask: Class numbers in the resolution of the truth.
        dice: Of the mask, mean over the foreground classes.
        prompted: The image (3, H, W) with its prompt; None where it went in as it is.
        gains: Of the prompt's window (3, side, side); None likewise.
    """

    adapted: Adapted
    mask: np.ndarray
    dice: float
    prompted: np.ndarray | None
    gains: np.ndarray | None


def labelled_images(folder: Path, network: Network) -> list[Labelled]:
    """All cases of a site's folder in the order of its table, whatever their split."""
    classes = len(network.classes)
    return [
        Labelled(
            f"{folder.name}/{Path(case.id).stem}",
            network_input(read_picture(case.image), network),
            read_truth(case.mask, classes),
        )
        for case in read_cases(folder)
        if case.mask is not None
    ]


def watched_stream(
    adapter: Adapter, images: Iterable[Labelled], after: Callable[[], None] = lambda: None
) -> list[Seen]:
    """Gives the images to an adapter one after the other; `after` is called behind each."""
    seen = []
    for image in images:
        adapted = adapter(image.pixels)
        mask = class_numbers(adapted.probabilities, *image.truth.shape)
        dice = float(dice_per_class(mask, image.truth, len(adapter.network.classes)).mean())
        prompted, gains = None, None
        if adapted.accepted and adapter.prompt is not None and adapter.prompt.log_gain.any():
            with torch.no_grad():
                device = adapter.prompt.log_gain.device
                prompted = adapter.prompt(image.pixels[None].to(device))[0].cpu().numpy()
                gains = adapter.prompt.window().cpu().numpy()
        seen.append(Seen(adapted, mask, dice, prompted, gains))
        after()
    return seen


def line_of(name: str, about: str, seen: Sequence[Seen], *, adapts: bool) -> Line:
    """A row of the comparison; `adapts`: whether there was anything that could be accepted."""
    told = [each.adapted for each in seen]
    return Line(
        name=name,
        about=about,
        dice=[each.dice for each in seen],
        seconds=[each.seconds for each in told],
        accepted=[each.accepted for each in told] if adapts else (),
        reasons=[each.reason for each in told] if adapts else (),
        losses=[(each.loss_before, each.loss_after) for each in told] if adapts else (),
    )


def examples_of(images: Sequence[Labelled], runs: Mapping[str, Sequence[Seen]]) -> list[Example]:
    """The images for which the last run changed Dice most for the better and worse, and the median one.

    Args:
        images: Of the stream.
        runs: By name; the last one is compared with the one before it.
    """
    *_, before, after = runs.values()
    ranked = sorted(range(len(images)), key=lambda i: (after[i].dice - before[i].dice, images[i].name))
    chosen = {"best change": ranked[-1], "median": ranked[len(ranked) // 2], "worst change": ranked[0]}
    return [
        Example(
            case=images[index].name,
            why=why,
            image=np.moveaxis(images[index].pixels.numpy(), 0, 2),
            truth=images[index].truth,
            masks={name: seen[index].mask for name, seen in runs.items()},
            dice={name: seen[index].dice for name, seen in runs.items()},
            prompted=_pixels_last(after[index].prompted),
            gains=after[index].gains,
        )
        for why, index in chosen.items()
    ]


def spectrum_of(
    training: Iterable[Tensor], images: Sequence[Labelled], seen: Sequence[Seen], radius: int
) -> Spectrum:
    """Mean amplitude spectra, over the logarithms.

    Args:
        training: Images (3, H, W) of the study's sites, at the network's size.
        images: Of the stream.
        seen: What the adapter with prompts made of them.
        radius: Highest frequency of the prompts' window.
    """
    plain = [image.pixels.numpy() for image in images]
    prompted = [
        image if each.prompted is None else each.prompted for image, each in zip(plain, seen, strict=True)
    ]
    return Spectrum(
        training=_mean_amplitudes(image.numpy() for image in training),
        stream=_mean_amplitudes(plain),
        prompted=_mean_amplitudes(prompted),
        radius=radius,
    )


def _mean_amplitudes(images: Iterable[np.ndarray]) -> np.ndarray:
    logarithms = [np.log(ring_amplitudes(np.moveaxis(image, 0, 2)) + 1e-9) for image in images]
    return np.asarray(np.exp(np.mean(logarithms, axis=0)))


def _pixels_last(image: np.ndarray | None) -> np.ndarray | None:
    return None if image is None else np.moveaxis(image, 0, 2)
