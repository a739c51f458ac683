"""Leave one site out: train on all sites but one, read the one that was left out, several seeds.

    python benchmarks/derm/leave_one_out.py --data DERM --out runs/derm --methods domain,head

Every run is a simulation as `fedprompt simulate` does it. The learning rate of `head`, the linear head that
FedAvg trains on the same frozen features, is chosen per run among six by validation cases of the training
sites; the prompts use the one of the study file. `hindsight` is the best of the rates on the left-out site
itself, which nobody could have chosen. The left-out site gets the shared tensors alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedprompt.artifacts import read_arrays, read_json, write_json
from fedprompt.cli.plan import new_plan, resumed_plan
from fedprompt.cli.simulation import simulate_study
from fedprompt.config import Annotation, Site, Study, load_study
from fedprompt.data.cases import read_cases
from fedprompt.models import build_model
from fedprompt.training import Workspace
from fedprompt.training.classification_evaluation import predict_probabilities
from fedprompt.training.classification_metrics import classification_metrics
from fedprompt.training.local import load_arrays
from fedprompt.training.material import Material

HERE = Path(__file__).parent
HEAD_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # the head trains at a tenth of these
PROMPTS = {
    "head": {},
    "domain": {"domain": {"count": 4, "blocks": 4, "domains": 2}},
    "tokens": {"tokens": {"count": 4, "blocks": 4}},
    "generated": {"generated": {}},
}


class Quiet:
    """Shows nothing of a simulation."""

    def phase(self, _name: str, _rounds: int) -> None: ...

    def __call__(self, _event: dict) -> None: ...


def federation(folder: Path, data: Path, sites: list[str]) -> Path:
    """A federation folder that points at some of the sites."""
    for site in sites:
        (folder / site).mkdir(parents=True, exist_ok=True)
        path = json.dumps(str((data / site).resolve()))
        (folder / site / "site.toml").write_text(f'id = "{site}"\ndata = {path}\n')
    return folder


def trained(folder: Path, study: Study, data: Path, cache: Path) -> Path:
    """A finished run of the study in the folder, run now, or to its end, if it is not there."""
    if not (folder / "summary.json").exists():
        begun = (folder / "study.toml").exists()
        plan = resumed_plan(folder, None) if begun else new_plan(folder, study, data, (), "inprocess", cache)
        simulate_study(plan, Quiet())
    return folder


def validation(run: Path) -> float:
    """Mean validation AUROC over the training sites that the last round reports."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [e["mean"]["auroc"] for e in events if e["event"] == "round_finished"][-1]


def left_out(run: Path, study: Study, site: Site, workspace: Workspace) -> dict[str, float]:
    """Metrics over all cases of a site that took no part."""
    model = build_model(workspace.backbone, study, Annotation.FULL)
    load_arrays(model, read_arrays(run / "prompts" / "shared.safetensors")[0])
    cases = [replace(case, split="test") for case in read_cases(site.data, study.task)]
    split = {"train": [], "val": [], "test": cases}
    material = Material(study, site, workspace, split, model, simulate=False)
    probabilities = predict_probabilities(model, material, "test", workspace.precision)
    return classification_metrics(probabilities, material.labels("test"), study.classes)


def run_fold(options: argparse.Namespace, study: Study, method: str, site: str) -> dict[str, object]:
    """Trains without a site, chooses the rate where there is a choice, reads the site."""
    sites = sorted(path.name for path in options.data.iterdir() if (path / "cases.csv").exists())
    others = [other for other in sites if other != site]
    folder = options.out / f"{method}-{site}-{study.seed}"
    data = federation(options.out / "federations" / site, options.data, others)
    prompts = study.changed(prompts=PROMPTS[method])
    rates = HEAD_RATES if method == "head" else (study.training.learning_rate,)
    runs = {}
    for rate in rates:
        chosen = prompts.changed(training={**dict(study.training), "learning_rate": rate})
        runs[rate] = (trained(folder / f"{rate:g}", chosen, data, options.cache), chosen)
    best = max(runs, key=lambda rate: validation(runs[rate][0]))
    run, chosen = runs[best]
    workspace = Workspace.open(chosen, folder=options.cache)
    target = Site(id=site, data=options.data / site)
    read = {rate: left_out(*runs[rate], target, workspace) for rate in rates}
    by_rate = {f"{rate:g}": row["auroc"] for rate, row in read.items()}
    found = {**read[best], "hindsight": max(by_rate.values()), "by_rate": by_rate}
    summary = read_json(run / "summary.json")
    inside = summary["mean"]["auroc"]
    row = {"method": method, "site": site, "seed": study.seed, "rate": best, "validation": validation(run)}
    return {**row, **found, "inside": inside, "shared": summary["parameters"]["shared"]}


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {np.std(values):.4f}"


def print_rates(rows: list[dict]) -> None:
    """AUROC of every rate, mean over sites, for a method that had a choice."""
    for rate in rows[0]["by_rate"] if len(rows[0]["by_rate"]) > 1 else ():
        seeds = sorted({row["seed"] for row in rows})
        means = [statistics.mean(row["by_rate"][rate] for row in rows if row["seed"] == s) for s in seeds]
        print(f"{rows[0]['method']} at rate {rate}: {spread(means)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--study", type=Path, default=HERE / "study.toml")
    parser.add_argument("--methods", default="domain,head")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache = options.out / "features"
    base = load_study(options.study)
    sites = sorted(path.name for path in options.data.iterdir() if (path / "cases.csv").exists())
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for method in options.methods.split(","):
            for site in sites:
                rows.append(run_fold(options, base.changed(seed=seed), method, site))
                print(json.dumps(rows[-1]), flush=True)
    write_json(options.out / f"leave-one-out-{options.methods.replace(',', '-')}.json", rows)
    print(f"| left out, AUROC | {' | '.join(sites)} | mean | hindsight | balanced accuracy | ECE |")
    for method in options.methods.split(","):
        own = [row for row in rows if row["method"] == method]
        cells = [spread([row["auroc"] for row in own if row["site"] == site]) for site in sites]
        for name in ("auroc", "hindsight", "balanced_accuracy", "ece"):
            seeds = sorted({row["seed"] for row in own})
            means = [statistics.mean(row[name] for row in own if row["seed"] == seed) for seed in seeds]
            cells.append(spread(means))
        print(f"| {method} | {' | '.join(cells)} |")
    for method in options.methods.split(","):
        print_rates([row for row in rows if row["method"] == method])


if __name__ == "__main__":
    main()
