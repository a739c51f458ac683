"""Local epochs at ViT-B/16 with and without the feature cache."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from backbone_models import (
    BATCH,
    Prompts,
    Row,
    make_study,
    random_network,
)

from fedprompt.data.cache import FeatureCache
from fedprompt.data.federation import read_federation
from fedprompt.data.phantoms import write_phantoms
from fedprompt.training import Session, Workspace

CACHED: dict[str, Prompts] = {
    "generated": {"generated": {}},
    "universal + data-aware + fusion": {"universal": {}, "data-aware": {}, "fusion": {}},
    "tokens in the last 4 blocks": {"tokens": {"blocks": 4}},
    "the same, all patches in each step": {"tokens": {"blocks": 4, "keep": 1.0}},
}


class Switched(FeatureCache):
    """Computes every feature anew while it is off."""

    on = True

    def get(self, key, compute):
        return super().get(key, compute) if self.on else compute()


class Unmapped(FeatureCache):
    """Opens and maps the file at every access, as a process does that has just started."""

    def get(self, key, compute):
        self._maps.clear()
        return super().get(key, compute)


def cache_rows(images: int, pairs: int, views: int) -> list[Row]:
    """Local epochs over one site's images: features computed anew, from memory, and from the disk.

    `disk` maps every file again at every access, with no memory for features; `restarted` is the first epoch
    of a process that finds the files of an earlier one, so that it also reads and augments the images.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        random_network("vit").save_pretrained(folder / "vit")
        write_phantoms(folder / "sites", seed=0, size=224, limit=images, task="classification")
        return [
            {"prompts": label, **_epochs(prompts, folder, images, pairs, views)}
            for label, prompts in CACHED.items()
        ]


def _epochs(prompts: Prompts, folder: Path, images: int, pairs: int, views: int) -> Row:
    study = make_study(
        "classification",
        "vit",
        prompts,
        backbone={"name": "vit", "folder": str(folder / "vit")},
        image={"size": 224},
        training={"steps": images // BATCH, "batch-size": BATCH, "views": views},
    )
    site = read_federation(folder / "sites", study)[0]
    kept = folder / "features"
    workspace = Workspace.open(study)

    def opened(cache: FeatureCache) -> Session:
        session = Session(study, site, replace(workspace, cache=cache), simulate=True)
        assert session.counts.train == images, f"--images: expected at most {session.counts.train}"
        return session

    def epoch(session: Session, number: int) -> float:
        initial = session.initial()
        start = time.perf_counter()
        session.train(initial, {}, round=number, peers={})
        return time.perf_counter() - start

    switched = Switched(workspace.cache.limit)
    memory, disk = opened(switched), opened(Unmapped(0, folder=kept))
    first = {"first_memory": epoch(memory, 1), "first_disk": epoch(disk, 1)}
    for session in (memory, disk):
        epoch(session, 2)  # warm
    times = []
    for number in range(3, 3 + pairs):
        switched.on = False
        without = epoch(memory, number)
        switched.on = True
        restarted = epoch(opened(FeatureCache(0, folder=kept)), number)
        times.append((without, epoch(memory, number), epoch(disk, number), restarted))
    columns = dict(zip(("without", "memory", "disk", "restarted"), zip(*times, strict=True), strict=True))
    row: Row = {"images": images, **first, **{name: median(values) for name, values in columns.items()}}
    for name in ("memory", "disk", "restarted"):
        ratios = sorted(a / b for a, b in zip(columns["without"], columns[name], strict=True))
        row[f"{name}_ratio"] = [median(ratios), ratios[0], ratios[-1]]
    files = list(kept.glob("*.safetensors"))
    row["stored_bytes_per_view"] = sum(file.stat().st_size for file in files) // len(files)
    for file in files:
        file.unlink()
    return row


def print_cache(rows: list[Row]) -> None:
    print(f"{rows[0]['images']} images per epoch; first: it fills the cache; ratios against `without`, range")
    print("| prompts | without | first, memory | first, disk | memory | disk | restarted | kB per view |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        sides = [
            f"{row[name] * 1e3:.0f} ms, {ratio[0]:.3g}x ({ratio[1]:.3g} to {ratio[2]:.3g})"
            for name in ("memory", "disk", "restarted")
            for ratio in [row[f"{name}_ratio"]]
        ]
        firsts = f"{row['without']:.2f} s | {row['first_memory']:.2f} s | {row['first_disk']:.2f} s"
        size = row["stored_bytes_per_view"] / 1e3
        print(f"| {row['prompts']} | {firsts} | {' | '.join(sides)} | {size:.0f} |")
