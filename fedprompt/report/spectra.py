"""Figures of test-time adaptation: the course over a stream, spectra, and what a prompt does to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from fedprompt.report.figures import COLOURS, INK, _quiet, _style, _svg

__all__ = ["amplitude_profile", "course", "prompt_at_work", "ring_amplitudes"]

CHANNELS = {3: ("red", "green", "blue"), 1: ("grey",)}
SEEN = 8  # highest frequency of a profile
CLOSE = 5  # and of a single image's spectrum
WIDTH = 7  # images over which a line of the course is smoothed
_GOOD, _BAD = COLOURS[2], COLOURS[4]


def ring_amplitudes(image: np.ndarray, highest: int = SEEN) -> np.ndarray:
    """Mean amplitude (channels, highest + 1) of the square ring at each frequency, of one (H, W, channels).

    Frequency f is the ring of all (u, v) with max(|u|, |v|) = f periods per side; 0 is the mean brightness.
    """
    spectrum = np.abs(np.fft.fft2(image.astype(np.float64), axes=(0, 1))) / (image.shape[0] * image.shape[1])
    rows, columns = (np.abs(np.rint(np.fft.fftfreq(side) * side)) for side in image.shape[:2])
    ring = np.maximum(rows[:, None], columns[None, :])
    return np.stack([spectrum[ring == number].mean(axis=0) for number in range(highest + 1)], axis=1)


def course(
    name: str,
    dice: Mapping[str, Sequence[float]],
    change: Sequence[float],
    accepted: Sequence[bool],
    losses: Sequence[tuple[float | None, float | None]],
) -> str:
    """Over the images of a stream: Dice of every row, what adaptation changed, and the alignment loss.

    Args:
        name: Prefix of the ids in the SVG; unique in a page.
        dice: Per row and image; drawn as dots and as a mean over neighbours.
        change: Of Dice by adaptation, per image.
        accepted: Whether the adaptation of an image was used.
        losses: Before and after the step, None where there was none.
    """
    with _style(name):
        figure = Figure(figsize=(10.3, 6), layout="constrained")
        top, middle, low = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1.2, 1.2))
        for axes in (top, middle, low):
            _quiet(axes)
        numbers = np.arange(1, len(change) + 1)
        colours = (COLOURS[7], COLOURS[1], COLOURS[0])
        for (row, values), colour in zip(dice.items(), colours, strict=False):
            top.plot(numbers, values, ls="none", marker="o", ms=2.6, color=colour, alpha=0.45)
            top.plot(numbers, _smoothed(values), color=colour, lw=1.9, label=row)
        top.set_ylabel("Dice")
        used = np.asarray(accepted, dtype=bool)
        bars = np.asarray(change)
        middle.bar(numbers, bars, width=0.75, color=np.where(bars < 0, _BAD, _GOOD).tolist())
        if (~used).any():
            middle.plot(
                numbers[~used],
                np.zeros((~used).sum()),
                ls="none",
                marker="x",
                ms=4,
                color=INK,
                label="not adapted",
            )
        middle.axhline(0, color=INK, lw=0.6)
        middle.set_ylabel("change")
        known = [(n, *pair) for n, pair in zip(numbers.tolist(), losses, strict=True) if None not in pair]
        if known:
            x, before, after = np.array(known, dtype=np.float64).T
            low.vlines(x, np.minimum(before, after), np.maximum(before, after), color=INK, lw=0.6, alpha=0.4)
            low.plot(x, before, ls="none", marker="o", ms=3.2, color=COLOURS[1], label="loss before the step")
            low.plot(x, after, ls="none", marker="s", ms=3, color=COLOURS[0], label="loss after")
        low.set_ylabel("alignment loss")
        low.set_xlabel("image of the stream")
        low.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        low.set_xlim(0, len(change) + 1)
        figure.align_ylabels([top, middle, low])
        figure.legend(loc="outside upper left", ncols=6, handlelength=1.4, columnspacing=1.2)
        return _svg(figure, name, "Course over the stream")


def amplitude_profile(
    name: str, source: np.ndarray, lines: Mapping[str, np.ndarray], *, radius: int, reference: str
) -> str:
    """Amplitudes relative to the source images, by frequency, one panel per channel.

    Args:
        name: Prefix of the ids in the SVG.
        source: Amplitudes (channels, F) of the source images.
        lines: The same of other images, by what they are.
        radius: Highest frequency of the prompt's window, which is shaded.
        reference: What the source images are called.
    """
    channels = CHANNELS.get(len(source), tuple(f"channel {n}" for n in range(len(source))))
    with _style(name):
        figure = Figure(figsize=(10.3, 3), layout="constrained")
        panels = figure.subplots(1, len(source), sharey=True, squeeze=False)[0]
        for number, (axes, channel) in enumerate(zip(panels, channels, strict=True)):
            _quiet(axes)
            axes.axvspan(-0.5, radius + 0.5, color=COLOURS[5], alpha=0.18, lw=0)
            axes.axhline(1, color=INK, lw=1, ls="--", label=reference if number == 0 else "_")
            for (line, values), colour, marker in zip(
                lines.items(), (COLOURS[1], COLOURS[0]), "os", strict=False
            ):
                ratio = values[number] / source[number]
                axes.plot(ratio, color=colour, marker=marker, ms=3.5, lw=1.6, label="_" if number else line)
            axes.set_title(channel, fontsize=10)
            axes.set_xlabel("periods per image side")
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}×")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
            axes.set_xlim(-0.5, source.shape[1] - 0.5)
        panels[0].set_ylabel("amplitude")
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.8, columnspacing=1.4)
        return _svg(figure, name, "Amplitudes relative to those of the source images")


def prompt_at_work(name: str, image: np.ndarray, prompted: np.ndarray, gains: np.ndarray) -> str:
    """One image and its spectrum without and with the prompt, and the prompt's gains.

    Args:
        name: Prefix of the ids in the SVG.
        image: (H, W, 3) in 0 to 1.
        prompted: The same with the prompt.
        gains: Of the window (channels, side, side), the constant part in the centre.
    """
    with _style(name):
        figure = Figure(figsize=(10.3, 2.6), layout="constrained")
        grid = figure.add_gridspec(3, 5, width_ratios=(1, 1, 1, 1, 0.62))
        radius = gains.shape[1] // 2
        spectra = [_centred(each) for each in (image, prompted)]
        low, high = np.percentile(np.stack(spectra), (20, 100))
        for column, (title, picture) in enumerate((("image", image), ("prompted image", prompted))):
            axes = figure.add_subplot(grid[:, column])
            axes.imshow(picture.clip(0, 1), interpolation="antialiased")
            _bare(axes, title)
        for column, (title, spectrum) in enumerate(
            (("log amplitude", spectra[0]), ("with the prompt", spectra[1])), start=2
        ):
            axes = figure.add_subplot(grid[:, column])
            axes.imshow(spectrum, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
            corner = CLOSE - radius - 0.5
            side = 2 * radius + 1
            axes.add_patch(Rectangle((corner, corner), side, side, fill=False, ec="#ffffff", lw=1.1))
            _bare(axes, title)
        channels = CHANNELS.get(len(gains), tuple(str(n) for n in range(len(gains))))
        bound = max(float(np.abs(np.log(gains)).max()), 0.05)
        for row, (channel, window) in enumerate(zip(channels[:3], gains, strict=False)):
            axes = figure.add_subplot(grid[row, 4])
            axes.imshow(np.log(window), cmap="PuOr", vmin=-bound, vmax=bound, interpolation="nearest")
            if len(window) <= 3:
                for (y, x), gain in np.ndenumerate(window):
                    dark = abs(np.log(gain)) > 0.6 * bound
                    ink = "#ffffff" if dark else "#000000"
                    axes.text(x, y, f"{gain:.2f}", ha="center", va="center", size=5, color=ink)
            _bare(axes, "gains" if row == 0 else "")
            axes.set_ylabel(channel, fontsize=8, rotation=0, ha="right", va="center")
        return _svg(figure, name, "An image and its amplitude spectrum without and with the prompt")


def _smoothed(values: Sequence[float]) -> np.ndarray:
    """Mean over `WIDTH` neighbours, fewer at the ends."""
    padded = np.concatenate([[0.0], np.cumsum(values)])
    half = WIDTH // 2
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return np.asarray((padded[last] - padded[first]) / (last - first))


def _centred(image: np.ndarray) -> np.ndarray:
    """Logarithm of the mean amplitude over the channels, frequencies up to `CLOSE`, 0 in the centre."""
    amplitude = np.abs(np.fft.fft2(image.astype(np.float64), axes=(0, 1))).mean(axis=2)
    shifted = np.fft.fftshift(amplitude / amplitude.size)
    row, column = (side // 2 for side in amplitude.shape)
    cut = shifted[row - CLOSE : row + CLOSE + 1, column - CLOSE : column + CLOSE + 1]
    return np.asarray(np.log(np.maximum(cut, 1e-6)))


def _bare(axes: Axes, title: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)
