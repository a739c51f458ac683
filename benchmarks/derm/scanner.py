"""A hospital changes its scanner and keeps no old images: what is left of the old performance?

    python benchmarks/derm/scanner.py --data DERM --backbone VIT --sequence vienna-molemax,vienna-modern

Prompts on a frozen ViT are trained on one scanner after the other. With the bank every session leaves an
entry, the next one starts from the mean of the entries, and a test image is answered by the entries that its
style points to. Without it the same prompts go on training. Both see the same batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fedprompt.adaptation import DomainBank, image_styles, predict
from fedprompt.config import Site, Study
from fedprompt.config.reading import study_from_mapping
from fedprompt.data.cache import FeatureKey
from fedprompt.data.cases import Case, read_cases
from fedprompt.data.samples import load_sample, split_cases
from fedprompt.errors import FedpromptError
from fedprompt.manifest import Arrays
from fedprompt.models import build_model
from fedprompt.training import Session, Workspace
from fedprompt.training.classification_metrics import classification_metrics
from fedprompt.training.material import Material

BATCH = 32
SHOWN = ("auroc", "balanced_accuracy")


@dataclass(frozen=True)
class Result:
    """Test metrics of one scanner after one session; `before` is its balanced accuracy right after its own
    session, under that session's prompts alone."""

    seed: int
    session: int
    trained: str
    scanner: str
    cases: int
    bank: dict[str, float]
    alone: dict[str, float]
    before_bank: float
    before_alone: float
    routed: float
    far: float
    entry_bytes: int


class Scanner:
    """One scanner's images as a site of a study: trained by a `Session`, answered with a bank."""

    def __init__(self, study: Study, site: Site, workspace: Workspace, block: int) -> None:
        self._study, self._site, self._workspace, self._block = study, site, workspace, block
        cases = split_cases(read_cases(site.data, study.task), study.training.validation, study.seed)
        self.name = site.id
        self.session = Session(study, site, workspace, simulate=False)
        self._model = build_model(workspace.backbone, study, site.annotation).to(workspace.device)
        self._material = Material(
            study,
            site,
            workspace,
            {"train": cases.train, "val": cases.val, "test": cases.test},
            self._model,
            simulate=False,
        )

    def train(self, arrays: Arrays) -> Arrays:
        """All rounds of a session; the optimiser starts anew with it."""
        optimiser: Arrays = {}
        for number in range(1, self._study.rounds.count + 1):
            trained = self.session.train(arrays, optimiser, round=number, peers={})
            arrays, optimiser = trained.arrays, trained.optimiser
        return arrays

    def styles(self, split: str) -> np.ndarray:
        """Style vectors (N, D) of the cases of a split."""
        return np.concatenate([self._style(case) for case in self._material.cases[split]])

    def with_bank(self, bank: DomainBank) -> dict[str, float]:
        """Metrics of the test cases; the bank alone decides which entries answer."""
        count = len(self._material.cases["test"])
        styles = self.styles("test")
        found = []
        for start in range(0, count, BATCH):
            rows = range(start, min(start + BATCH, count))
            states = [self._material.features("test", row) for row in rows]
            state = tuple(torch.cat(maps) for maps in zip(*states, strict=True))
            with self._workspace.precision.autocast():
                found.append(predict(bank, self._model, state, styles[rows.start : rows.stop]))
        labels = self._material.labels("test")
        return _shown(classification_metrics(np.concatenate(found), labels, self._study.classes))

    def alone(self, arrays: Arrays) -> dict[str, float]:
        """Metrics of the test cases under one set of arrays."""
        return _shown(self.session.evaluate(arrays, split="test"))

    def _style(self, case: Case) -> np.ndarray:
        sample = load_sample(case, self._site, self._study, simulate=False)
        size, precision = self._study.image.size, self._workspace.precision
        key = FeatureKey(
            self._workspace.fingerprint,
            f"style-{self._block}/{str(precision.dtype).removeprefix('torch.')}",
            sample.sha256,
            f"size={size}",
        )

        def compute() -> tuple[torch.Tensor, ...]:
            backbone = self._workspace.backbone
            image = torch.from_numpy(sample.image)[None].to(self._workspace.device)
            with precision.autocast():
                return (torch.from_numpy(image_styles(backbone, backbone.preprocess(image), self._block)),)

        return self._workspace.cache.get(key, compute)[0].cpu().numpy()


def run(scanners: list[Scanner], bank: DomainBank, seed: int) -> Iterator[Result]:
    """One seed: every session in turn, and after each one the test cases of all scanners seen so far."""
    initial = scanners[0].session.initial()
    running = initial
    fresh: dict[str, tuple[float, float]] = {}  # balanced accuracy right after a scanner's own session
    for number, scanner in enumerate(scanners, start=1):
        start = {**initial, **bank.start()}
        trained = scanner.train(start)
        same = all(np.array_equal(start[name], running[name]) for name in start)
        running = trained if same else scanner.train(running)
        bank.add(scanner.name, trained, scanner.styles("train"))
        fresh[scanner.name] = tuple(
            scanner.alone(arrays)["balanced_accuracy"] for arrays in (trained, running)
        )
        for own, seen in enumerate(scanners[:number]):
            styles = seen.styles("test")
            far = bank.far(styles)
            right = (bank.route(styles).argmax(axis=1) == own) & ~far
            with_bank, alone = seen.with_bank(bank), seen.alone(running)
            before_bank, before_alone = fresh[seen.name]
            yield Result(
                seed=seed,
                session=number,
                trained=scanner.name,
                scanner=seen.name,
                cases=len(styles),
                bank=with_bank,
                alone=alone,
                before_bank=before_bank,
                before_alone=before_alone,
                routed=float(right.mean()),
                far=float(far.mean()),
                entry_bytes=bank.entries[own].nbytes,
            )


def table(results: list[Result]) -> str:
    """A Markdown table, mean ± standard deviation over the seeds."""
    head = [
        "after session",
        "scanner",
        "AUROC bank",
        "AUROC without",
        "BA bank",
        "BA without",
        "BA kept bank",
    ]
    head += ["BA kept without", "routed right", "far", "bytes"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    groups: dict[tuple[int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.session, result.scanner), []).append(result)
    for (session, scanner), rows in groups.items():
        cells = [f"{session} ({rows[0].trained})", scanner]
        for name in SHOWN:
            cells += [_spread([r.bank[name] for r in rows]), _spread([r.alone[name] for r in rows])]
        cells.append(_share([(r.bank[SHOWN[1]], r.before_bank) for r in rows]))
        cells.append(_share([(r.alone[SHOWN[1]], r.before_alone) for r in rows]))
        cells += [_spread([r.routed for r in rows]), _spread([r.far for r in rows])]
        lines.append(" | ".join([*cells, f"{rows[0].entry_bytes:,}"]))
    return "\n".join(f"| {line} |" for line in lines)


def study_of(options: argparse.Namespace, seed: int) -> Study:
    """Product defaults but for what the command line says; the classes are the labels of the sequence."""
    values = {
        "name": "scanner",
        "task": "classification",
        "seed": seed,
        "image": {"size": options.size},
        "backbone": {"name": "vit", "folder": options.backbone.resolve()},
        "prompts": {options.prompt: {"blocks": options.blocks}},
        "strategy": {"name": "fedavg"},
        "rounds": {"count": options.rounds},
        "training": {"steps": options.steps, "batch-size": options.batch_size},
    }
    cases = [c for name in options.sequence for c in read_cases(options.data / name, "classification")]
    values["classes"] = sorted({str(case.label) for case in cases})
    return study_from_mapping(values, "scanner benchmark")


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(1)
    start = time.perf_counter()
    results: list[Result] = []
    workspace: Workspace | None = None
    for seed in options.seeds:
        study = study_of(options, seed)
        workspace = workspace or Workspace.open(study, folder=options.feature_cache)
        bank = DomainBank(workspace.fingerprint, block=options.style_block)
        scanners = [
            Scanner(study, Site(id=name, data=options.data / name), workspace, bank.block)
            for name in options.sequence
        ]
        for result in run(scanners, bank, seed):
            results.append(result)
            print(
                f"seed {seed}, session {result.session}, {result.scanner}: balanced accuracy "
                f"{result.bank['balanced_accuracy']:.3f} with the bank, "
                f"{result.alone['balanced_accuracy']:.3f} without",
                file=sys.stderr,
            )
    seconds = time.perf_counter() - start
    if options.json:
        print(json.dumps({"results": [asdict(r) for r in results], "seconds": seconds}))
    else:
        print(table(results), f"\n{options.prompt}, seeds {options.seeds}: {seconds:.0f} s")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per scanner")
    parser.add_argument("--backbone", type=Path, required=True, help="a ViT as transformers saves it")
    parser.add_argument("--sequence", type=names, default=["vienna-molemax", "vienna-modern"])
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--prompt", choices=("tokens", "domain"), default="tokens")
    parser.add_argument("--blocks", type=int, default=4, help="last blocks that the tokens enter")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--style-block", type=int, default=4, help="style is read in front of this block")
    parser.add_argument("--feature-cache", type=Path, help="folder for features, kept over runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args(arguments)


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in SHOWN}


def _share(pairs: list[tuple[float, float]]) -> str:
    """Of what was there before, both as means over the seeds."""
    now, before = (statistics.mean(side) for side in zip(*pairs, strict=True))
    return f"{now / before:.1%}" if before else "-"


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


if __name__ == "__main__":
    try:
        main()
    except FedpromptError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
