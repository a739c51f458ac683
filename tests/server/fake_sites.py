"""Sites without images or torch: a ClientApp whose updates depend on site, round and what it received alone.

Run as a script it conducts a study in a process of its own, for tests that kill it.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedprompt.config import Annotation, Study, study_from_mapping
from fedprompt.contract import CaseCounts, Failure, Order, Report, SiteCard
from fedprompt.manifest import Arrays, Manifest, Scope, TensorSpec
from server.engines.inprocess import run as run_in_process
from server.loop import Outcome, run_study
from server.run_directory import RunDirectory
from strategies.wire import read_order, report_content

FINGERPRINT = "ab" * 32
SHAPES = {
    "prompts.universal.map": ((1, 4, 4), Scope.SHARED),
    "head.weight": ((3, 5), Scope.SHARED),
    "prompts.gate": ((), Scope.SHARED),
    "prompts.data_aware.row": ((1, 4, 4), Scope.SITE),
    "auxiliary_head.weight": ((3, 5), Scope.SITE),
    "auxiliary_head.bias": ((3,), Scope.SITE),
}
Behaviour = Callable[[Order, Report, Arrays, Arrays], tuple[Report, Arrays, Arrays]]


def make_study(strategy: str = "fedavg", **tables: Any) -> Study:
    values = {"name": "fake", "strategy": {"name": strategy}, "rounds": {"count": 4, "deadline": 10.0}}
    return study_from_mapping(values | tables, "test")


def manifest_of(study: Study) -> Manifest:
    everything = Manifest(
        tuple(TensorSpec(n, shape, "float32", scope) for n, (shape, scope) in SHAPES.items())
    )
    name = study.strategy.name
    if name == "fedlppa":
        return everything
    if name == "local":
        return everything.rescoped({Scope.SHARED: Scope.PERSONAL, Scope.SITE: Scope.PERSONAL})
    return everything.rescoped({Scope.SITE: Scope.SHARED})


def initial(manifest: Manifest, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    zero = "prompts.data_aware.row"
    return {
        spec.name: (rng.normal(size=spec.shape) * (spec.name != zero)).astype(np.float32) for spec in manifest
    }


def trained(site: str, round: int, arrays: Arrays, peers: Arrays) -> Arrays:
    """Moves each tensor a third of the way to one of site and round, and a little to its peers."""
    result = {}
    for name, array in arrays.items():
        rng = np.random.default_rng([zlib.crc32(site.encode()), round, zlib.crc32(name.encode())])
        target = rng.normal(size=array.shape).astype(np.float32)
        moved = array + (target - array) / np.float32(3)
        result[name] = np.asarray(moved + np.float32(0.01) * peers.get(name, np.float32(0)), np.float32)
    return result


def make_app(study: Study, sites: list[str], behaviour: Mapping[str, Behaviour] | None = None) -> ClientApp:
    """One fake site per id, in sorted order of partitions. `behaviour` changes what a site answers."""
    app = ClientApp()
    handler = partial(_handle, study, sorted(sites), dict(behaviour or {}))
    app.query()(handler)
    app.train()(handler)
    app.evaluate()(handler)
    return app


def _handle(
    study: Study, sites: list[str], behaviour: dict[str, Behaviour], message: Message, context: Context
) -> Message:
    order, shared, kept, peers = read_order(message.content)
    index = int(context.node_config["partition-id"])
    site, manifest = sites[index], manifest_of(study)
    answer = Report(site=site, round=order.round, task=order.task)
    out_shared, out_kept = {}, {}
    if order.study != study.digest():
        answer = answer.model_copy(
            update={"failure": Failure(code="study", reason="not the study of this site")}
        )
    elif order.task == "describe":
        answer = answer.model_copy(update={"card": make_card(manifest, 4 + index)})
        if order.initial_arrays:
            first = initial(manifest, study.seed)
            out_shared = {n: first[n] for n in manifest.select(Scope.SHARED).names()}
            out_kept = {n: first[n] for n in manifest.select(Scope.SITE).names()}
    else:
        level = float(sum(np.abs(array).sum() for array in (shared | kept).values()))
        update = {
            "cases": 4 + index,
            "metrics": {"dice": level / (1 + level)},
            "loss": {"pce": 0.5, "crf": 0.25},
        }
        answer = answer.model_copy(update=update)
        if order.task == "train":
            out_shared = trained(site, order.round, shared, peers)
            out_kept = trained(site, order.round, kept, peers)
    if site in behaviour:
        answer, out_shared, out_kept = behaviour[site](order, answer, out_shared, out_kept)
    return Message(report_content(answer, out_shared, out_kept), reply_to=message)


def make_card(tensors: Manifest, train: int = 4, **changes: Any) -> SiteCard:
    values = {
        "cases": CaseCounts(train=train, val=1, test=2),
        "annotation": Annotation.SCRIBBLE,
        "backbone": "fake",
        "fingerprint": FINGERPRINT,
        "manifest": tensors.to_json(),
        "parameters": {"backbone": 10, "shared": 32, "site": 34, "personal": 0},
        "environment": {"python": "3", "torch": "none", "flwr": "1", "device": "cpu"},
    }
    return SiteCard(**(values | changes))


def simulate(
    folder: Path,
    study: Study,
    sites: list[str],
    behaviour: Mapping[str, Behaviour] | None = None,
    *,
    resume: bool = False,
    workers: int = 2,
    **options: Any,
) -> Outcome:
    """The study over fake sites in this process."""
    make = RunDirectory.resume if resume else RunDirectory.create
    with make(folder, study) as run:
        main = partial(run_study, run=run, sites=len(sites), **options)
        return run_in_process(main, make_app(study, sites, behaviour), len(sites), workers=workers)


if __name__ == "__main__":
    target, name, action = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    study = make_study(name, rounds={"count": 6, "deadline": 10.0})

    def slow(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        import time

        if order.task == "train":
            time.sleep(0.15)  # so that there is a middle in which to be killed
        return report, shared, kept

    simulate(target, study, ["a", "b", "c"], {"b": slow}, resume=action == "resume")
