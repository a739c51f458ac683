"""Prompts trained over three phantom hospitals, adapted at a fourth: as its camera was, and after it changed.

    python benchmarks/adaptation/phantoms.py --out FOLDER --seeds 0,1,2

Runs `fedprompt adapt demo` per seed into FOLDER/SEED where that is missing, and streams the unseen hospital's
images through every method. The embedded backbone's BatchNorm layers keep statistics of its own training, so
the prompt is aligned to statistics collected over the three sites.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

from fedprompt.adaptation import Adapter
from fedprompt.adaptation.bundle import load_bundle
from fedprompt.adaptation.comparison import labelled_images, watched_stream
from fedprompt.cli.adapt_demo import Demo, run_demo
from fedprompt.errors import FedpromptError

METHODS = ("none", "batch-norm", "reference", "low-frequency", "multi-scale", "tent")
STREAMS = {"before": "camera as it was", "after": "camera changed"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dice: dict[tuple[str, str], list[list[float]]] = {}
    accepted: dict[tuple[str, str], list[float]] = {}
    for seed in map(int, options.seeds.split(",")):
        folder = options.out / str(seed)
        if not (folder / "summary.json").exists():
            run_demo(folder, Demo(seed=seed))
        network, collected = load_bundle(folder / "study")
        for stream in STREAMS:
            images = [
                image
                for site in sorted((folder / "unseen" / stream).iterdir())
                for image in labelled_images(site, network)
            ]
            for method in METHODS:
                seen = watched_stream(Adapter(network, method, statistics=collected), images)
                dice.setdefault((stream, method), []).append([each.dice for each in seen])
                share = statistics.fmean(each.adapted.accepted for each in seen)
                accepted.setdefault((stream, method), []).append(share)
                print(
                    f"{seed} {stream} {method} {statistics.fmean(dice[stream, method][-1]):.3f}",
                    file=sys.stderr,
                )
    lines = [["stream", *METHODS], ["---"] * (len(METHODS) + 1)]
    for stream, title in STREAMS.items():
        plain = dice[stream, "none"]
        cells = [title, _spread([statistics.fmean(scores) for scores in plain], "")]
        for method in METHODS[1:]:
            changes = [
                [mine - theirs for mine, theirs in zip(*pair, strict=True)]
                for pair in zip(dice[stream, method], plain, strict=True)
            ]
            worst = min(min(change) for change in changes)
            share = statistics.fmean(accepted[stream, method])
            cells.append(
                f"{_spread([statistics.fmean(c) for c in changes], '+')}; worst {worst:+.2f}; {share:.0%}"
            )
        lines.append(cells)
    print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))


def _spread(values: list[float], sign: str) -> str:
    mean = f"{statistics.fmean(values):{sign}.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    try:
        main()
    except FedpromptError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
