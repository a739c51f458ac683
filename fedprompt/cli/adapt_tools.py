"""`fedprompt adapt collect`, `merge` and `forget`: source statistics, and what is remembered of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from fedprompt.adaptation.network import Network
    from fedprompt.adaptation.statistics import SourceStatistics
    from fedprompt.cli.stream_progress import StreamProgress

__all__ = ["collect", "forget", "merge"]


def collect(
    data: Annotated[
        list[Path],
        typer.Option(metavar="FOLDER...", help="Folders with cases.csv, or with images, of the source."),
    ],
    prompts: Annotated[
        Path | None, typer.Option(help="Prompt bundle of a study, or its run directory.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="TOML file that describes a network of your own.")
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of the bundle's backbone, where it is elsewhere now.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the cases: train, val or test.")] = "train",
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default statistics.safetensors in the bundle.")
    ] = None,
) -> None:
    """Collect source statistics for a network without BatchNorm.

    A site without the source images needs them to adapt such a network. The file holds means and deviations
    over all images, nothing of a single one.
    """
    if (prompts is None) == (model is None):
        raise ConfigurationError("expected --prompts BUNDLE or --model FILE, got neither or both")
    if model is not None and out is None:
        raise ConfigurationError(
            "--out: expected a file to write, as a model file has no bundle, got nothing"
        )
    if model is not None and backbone is not None:
        raise ConfigurationError("--backbone: expected it with --prompts alone, as a model file has its own")
    if split not in ("train", "val", "test"):
        raise ConfigurationError(f"--split: expected train, val or test, got {split!r}")

    from fedprompt.adaptation.bundle import STATISTICS, bundle_folder, load_bundle
    from fedprompt.adaptation.model_file import load_network
    from fedprompt.adaptation.statistics import collect_statistics
    from fedprompt.cli.stream_progress import StreamProgress

    files = [file for folder in data for file in _source_images(folder, split)]
    if prompts is not None:
        target = out or bundle_folder(prompts) / STATISTICS
        network, _ = load_bundle(prompts, backbone=backbone)
    else:
        assert model is not None  # noqa: S101 - for the type checker
        assert out is not None  # noqa: S101
        target, network = out, load_network(model)
    _check_file(target)
    with StreamProgress("collecting", len(files)) as progress:
        statistics = collect_statistics(network, _inputs(files, network, progress))
    _saved(statistics, target)
    print(f"wrote {target}: statistics of {len(files)} images")


def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Statistics of one network.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
) -> None:
    """Merge source statistics that several sites collected."""
    from fedprompt.adaptation.statistics import SourceStatistics, merged

    _check_file(out)
    first = SourceStatistics.load(files[0])
    loaded = [first, *(SourceStatistics.load(file, first.fingerprint) for file in files[1:])]
    _saved(merged(loaded), out)
    print(f"wrote {out}: merged from {len(files)} files")


def forget(
    state: Annotated[Path, typer.Option(help="Folder of the states.")],
    stream: Annotated[str, typer.Option(help="Name of the stream.")],
) -> None:
    """Delete what is remembered of a stream; the key is not needed."""
    import secrets

    from fedprompt.adaptation.state import StreamState, check_stream_name
    from fedprompt.encryption import SiteKey

    check_stream_name(stream)
    kept = sorted(path.stem for path in state.glob("*.state"))
    if stream not in kept:
        raise ConfigurationError(
            f"{state}: expected a stream of this folder ({', '.join(kept) or 'it has none'}), got {stream!r}"
        )
    with StreamState(state, SiteKey(secrets.token_bytes(32)), stream) as found:
        size = found.path.stat().st_size
        found.delete()
    print(f"deleted {found.path} ({size} bytes); stream {stream} begins anew, in another --out")


def _source_images(folder: Path, split: str) -> list[Path]:
    """The images of a site's split, or of a folder without a table."""
    from fedprompt.adaptation.stream_files import find_images
    from fedprompt.data.cases import TABLE, read_cases

    if not (folder / TABLE).is_file():
        return find_images([folder])
    found = [case.image for case in read_cases(folder) if case.split == split]
    if not found:
        raise DataError(f"{folder / TABLE}: expected cases of split {split}, got none")
    return found


def _inputs(files: list[Path], network: Network, progress: StreamProgress) -> Iterator[Tensor]:
    from fedprompt.adaptation.stream_files import network_input
    from fedprompt.data.images import read_picture

    for file in files:
        yield network_input(read_picture(file), network)
        progress.step()


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ConfigurationError(f"{path}: expected a file to write, got a folder")


def _saved(statistics: SourceStatistics, path: Path) -> None:
    try:
        statistics.save(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from None
