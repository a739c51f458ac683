"""Images per second of local prompt training, with and without the feature cache, in one run.

    python benchmarks/training.py

Both sides take the same steps on the same phantoms in turn; a ratio is that of a neighbouring pair.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fedprompt.config import Study
from fedprompt.data.cache import FeatureCache
from fedprompt.data.federation import read_federation
from fedprompt.data.phantoms import write_phantoms
from fedprompt.training import Session, Workspace


class NoCache(FeatureCache):
    """Computes every feature anew."""

    def get(self, _key, compute):
        return compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = Study()
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder), seed=0)
        site = read_federation(Path(folder), study)[0]
        cached = Workspace.open(study)
        bare = Workspace(cached.backbone, cached.fingerprint, NoCache(0), cached.precision)
        sessions = {
            name: Session(study, site, workspace, simulate=True)
            for name, workspace in (("cached", cached), ("bare", bare))
        }
        images = study.training.steps * study.training.batch_size

        def rate(name: str, round: int) -> float:
            session = sessions[name]
            start = time.perf_counter()
            session.train(session.initial(), {}, round=round, peers={})
            return images / (time.perf_counter() - start)

        for name in sessions:
            for round in range(1, 4):
                rate(name, round)  # fills the cache: every view has been seen
        pairs = [(rate("cached", 4 + i), rate("bare", 4 + i)) for i in range(options.pairs)]
    with_cache, without = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(f"threads                 {options.threads}")
    print(f"with the feature cache  {with_cache:8.1f} images/s (median of {options.pairs})")
    print(f"without                 {without:8.1f} images/s")
    print(f"ratio                   {statistics.median(ratios):8.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
