r"""Test-time adaptation under real shift: source networks streamed over the images of other hospitals.

    python benchmarks/adaptation/streams.py --data DATA --sources SOURCES --networks unet-kvasir \
        --out results.jsonl

DATA holds the site folders (`polyp/paris`, `fundus/origa`, ...), SOURCES what `sources.py` wrote, as
NETWORK-SITE-SEED. Every stream goes through all images of a site in the order of its `cases.csv`; a stream
whose name ends with `*` holds the source's own test images, where there is no shift. One line per stream and
method goes into --out; runs that have a line already are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from sources import CLASSES, read_split

from fedprompt.adaptation import METHODS, Adapter
from fedprompt.adaptation.methods.reference import ReferencePrompting
from fedprompt.adaptation.model_file import load_network
from fedprompt.errors import FedpromptError

FOLDERS = {
    "kvasir": "polyp-public/kvasir",
    **{site: f"polyp/{site}" for site in ("paris", "padova", "aviano", "oslo")},
    **{site: f"fundus/{site}" for site in ("drishti-gs", "origa")},
}
TARGETS = {
    "kvasir": ("kvasir*", "paris", "padova", "aviano", "oslo"),
    "drishti-gs": ("drishti-gs*", "origa"),
    "origa": ("origa*", "drishti-gs"),
}
REGIONS = {"polyp": ((1,),), "fundus": ((1, 2), (2,))}  # polyp; disc and cup, as VPTTA reports them
SHOWN = ("none", "batch-norm", "reference", "low-frequency")


class PolypReference(ReferencePrompting):
    """The reference with the rate that its code has for polyps."""

    def __init__(self, network, collected) -> None:  # type: ignore[no-untyped-def]
        super().__init__(network, collected, rate=0.01)


def dice(mask: np.ndarray, truth: np.ndarray, task: str) -> float:
    """Mean over the regions of a task; 1 where a region is in neither."""
    found = []
    for labels in REGIONS[task]:
        mine, theirs = np.isin(mask, labels), np.isin(truth, labels)
        total = int(mine.sum() + theirs.sum())
        found.append(1.0 if total == 0 else 2 * int((mine & theirs).sum()) / total)
    return statistics.fmean(found)


def run(options: argparse.Namespace) -> None:
    """Every network, seed, stream and method that has no line yet."""
    done = set()
    if options.out.exists():
        lines = (json.loads(line) for line in options.out.read_text().splitlines())
        done = {(row["network"], row["seed"], row["stream"], row["method"]) for row in lines}
    for name in options.networks:
        site = name.partition("-")[2]
        task = "polyp" if site == "kvasir" else "fundus"
        METHODS["reference"] = PolypReference if task == "polyp" else ReferencePrompting
        for seed in options.seeds:
            network = load_network(options.sources / f"{name}-{seed}" / "model.toml")
            assert len(network.classes) == len(CLASSES[task])
            for stream in TARGETS[site]:
                target = stream.rstrip("*")
                split = "test" if stream.endswith("*") else None
                images, truths = read_split(options.data / FOLDERS[target], split, options.side)
                images, truths = images[: options.limit], truths[: options.limit]
                for method in options.methods:
                    if (name, seed, stream, method) in done:
                        continue
                    adapter = Adapter(network, method)
                    found = [adapter(image.float() / 255) for image in images]
                    scores = [
                        dice(result.mask, truth.numpy(), task)
                        for result, truth in zip(found, truths, strict=True)
                    ]
                    row = {
                        "network": name,
                        "seed": seed,
                        "stream": stream,
                        "method": method,
                        "dice": scores,
                        "accepted": statistics.fmean(result.accepted for result in found),
                        "restarts": sum(result.restarted for result in found),
                        "seconds": statistics.median(result.seconds for result in found),
                    }
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{name} {seed} {stream} {method} {statistics.fmean(scores):.3f}", file=sys.stderr)


def table(path: Path) -> str:
    """Markdown: Dice without adaptation, then the change with each method, over the seeds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    methods = [m for m in METHODS if any(row["method"] == m for row in rows)]
    head = ["network", "stream", "images", "none"]
    head += [f"{method}" for method in methods[1:]]
    lines = [head, ["---"] * len(head)]
    for name, stream in dict.fromkeys((row["network"], row["stream"]) for row in rows):
        chosen = {
            (row["method"], row["seed"]): row
            for row in rows
            if (row["network"], row["stream"]) == (name, stream)
        }
        seeds = sorted({seed for method, seed in chosen if method == "none"})
        plain = {seed: np.array(chosen["none", seed]["dice"]) for seed in seeds}
        cells = [name, stream, str(len(plain[seeds[0]]))]
        cells.append(_spread([float(plain[seed].mean()) for seed in seeds], signed=False))
        for method in methods[1:]:
            if any((method, seed) not in chosen for seed in seeds):
                cells.append("-")
                continue
            changes = [np.array(chosen[method, seed]["dice"]) - plain[seed] for seed in seeds]
            worst = min(float(change.min()) for change in changes)
            accepted = statistics.fmean(chosen[method, seed]["accepted"] for seed in seeds)
            cost = statistics.median(
                chosen[method, seed]["seconds"] / chosen["none", seed]["seconds"] for seed in seeds
            )
            text = _spread([float(change.mean()) for change in changes], signed=True)
            cells.append(f"{text}; worst {worst:+.2f}; {accepted:.0%}; {cost:.1f}x")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _spread(values: list[float], *, signed: bool) -> str:
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def main() -> None:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--networks", type=words, required=True, help="as unet-kvasir,mobilenet-kvasir")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--methods", type=words, default=list(SHOWN))
    parser.add_argument("--limit", type=int, help="first images of a stream; all without it")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options)
    print(table(options.out))


if __name__ == "__main__":
    try:
        main()
    except FedpromptError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
