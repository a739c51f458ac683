"""What a round costs without any training: in-process engine and Flower's Ray engine, in one run.

    python benchmarks/engine.py overhead --sites 4,100,1000
    python benchmarks/engine.py ray --sites 4 --rounds 20

The sites answer at once with the tensors that they received; 22 k values, as the embedded backbone's prompts.
Every study runs in a process of its own, so that peak memory is that of this study.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedprompt.config import Annotation, Study, study_from_mapping
from fedprompt.contract import CaseCounts, Report, SiteCard
from fedprompt.manifest import Manifest, Scope, TensorSpec
from server.loop import run_study
from server.run_directory import RunDirectory
from strategies.wire import read_order, report_content

MANIFEST = Manifest(
    (
        TensorSpec("prompts.fusion.reduce.weight", (32, 149, 1, 1), "float32", Scope.SHARED),
        TensorSpec("prompts.fusion.mix.weight", (32, 32, 3, 3), "float32", Scope.SHARED),
        TensorSpec("prompts.fusion.project.weight", (144, 55, 1, 1), "float32", Scope.SHARED),
        TensorSpec("prompts.data_aware.row", (1, 8, 8), "float32", Scope.SITE),
        TensorSpec("auxiliary_head.weight", (3, 16, 1, 1), "float32", Scope.SITE),
    )
)


def make_study(rounds: int) -> Study:
    values = {"name": "overhead", "strategy": {"name": "fedlppa"}, "rounds": {"count": rounds, "quorum": 1}}
    return study_from_mapping(values, "benchmark")


def make_app() -> ClientApp:
    """Sites that send back what they got."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        order, shared, kept, _ = read_order(message.content)
        site = f"site-{context.node_config['partition-id']:05d}"
        report = Report(site=site, round=order.round, task=order.task, cases=10, metrics={"dice": 0.5})
        if order.task == "describe":
            card = SiteCard(
                cases=CaseCounts(train=10, val=2, test=2),
                annotation=Annotation.FULL,
                backbone="embedded-unet",
                fingerprint="ab" * 32,
                manifest=MANIFEST.to_json(),
                parameters={"backbone": 847_891, "shared": MANIFEST.select(Scope.SHARED).size()},
                environment={},
            )
            report = report.model_copy(update={"card": card})
            if order.initial_arrays:
                first = {s.name: np.full(s.shape, 0.5, s.dtype) for s in MANIFEST}
                shared = {n: first[n] for n in MANIFEST.select(Scope.SHARED).names()}
                kept = {n: first[n] for n in MANIFEST.select(Scope.SITE).names()}
        return Message(report_content(report, shared, kept), reply_to=message)

    app.query()(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


def one_study(engine: str, sites: int, rounds: int) -> dict[str, float]:
    """Runs a study and gives the median seconds of its rounds after the first, and the peak memory."""
    times: list[float] = []

    def on_event(event: dict[str, object]) -> None:
        if event["event"] == "round_finished":
            times.append(time.perf_counter())

    run_engine = import_module(f"server.engines.{engine}").run
    start, cpu = time.perf_counter(), time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        RunDirectory.create(Path(folder), make_study(rounds)) as run,
    ):
        run_engine(
            lambda grid, stop: run_study(grid, stop, run=run, sites=sites, on_event=on_event),
            make_app(),
            sites,
        )
    gaps = [b - a for a, b in pairwise(times)]
    return {
        "round": median(gaps),
        "total": time.perf_counter() - start,
        "cpu": (time.process_time() - cpu) / (rounds * sites),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measured(engine: str, sites: int, rounds: int) -> dict[str, float]:
    """`one_study` in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "one", engine, str(sites), str(rounds)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["overhead", "ray", "one"])
    parser.add_argument("one", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--sites", default="4")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    if options.what == "one":
        engine, sites, rounds = options.one
        print(json.dumps(one_study(engine, int(sites), int(rounds))))
    elif options.what == "overhead":
        print("sites  ms per site and round  CPU ms  peak GiB")
        for sites in map(int, options.sites.split(",")):
            runs = [measured("inprocess", sites, options.rounds) for _ in range(options.repeat)]
            wall = median(r["round"] / sites for r in runs) * 1e3
            cpu = median(r["cpu"] for r in runs) * 1e3
            print(f"{sites:5d}  {wall:21.2f}  {cpu:6.2f}  {max(r['memory'] for r in runs):8.2f}")
    else:
        sites = int(options.sites)
        print("pair  in-process  ray  ratio  (rounds per minute, after the first round)   start to end: s  s")
        ratios = []
        for pair in range(options.repeat):
            ours, theirs = (measured(e, sites, options.rounds) for e in ("inprocess", "ray"))
            ratios.append(theirs["round"] / ours["round"])
            print(
                f"{pair:4d}  {60 / ours['round']:10.0f}  {60 / theirs['round']:.0f}  {ratios[-1]:5.1f}"
                f"{ours['total']:55.1f}  {theirs['total']:.1f}"
            )
        print(f"median ratio {median(ratios):.1f}")


if __name__ == "__main__":
    main()
