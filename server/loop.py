"""The round loop of a study over a Flower grid. All waits are bounded; results do not depend on timing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from flwr.serverapp import Grid

from fedprompt.contract import Order, Report
from fedprompt.errors import ConfigurationError, FedpromptError
from fedprompt.manifest import Manifest
from server.checkpoints import Checkpoint
from server.orders import Orders
from server.run_directory import RunDirectory, new_event
from server.sites import Admission, Member, Roster
from server.summary import mean_metrics, summarise
from strategies import Update, make_strategy

__all__ = ["OnEvent", "Outcome", "run_study"]

OnEvent = Callable[[dict[str, Any]], None]
Status = Literal["completed", "stopped"]

_MOST_SKIPPED = 3  # rounds in a row without a quorum end the study


@dataclass(frozen=True)
class Outcome:
    """How a study ended.

    Attributes:
        status: "completed", or "stopped" before its last round.
        rounds: Number of the last round that is part of the result.
        reason: Why it stopped.
        summary: Content of `summary.json`.
    """

    status: Status
    rounds: int
    reason: str | None
    summary: dict[str, Any]


def run_study(
    grid: Grid,
    stop: threading.Event,
    *,
    run: RunDirectory,
    sites: int | None = None,
    rounds: int | None = None,
    on_event: OnEvent | None = None,
) -> Outcome:
    """Runs, or goes on with, the study of a run directory and writes all of its files.

    Args:
        grid: Flower's way to the nodes.
        stop: Ends the study in order when set, as Ctrl-C does.
        run: Where the study is and its results go. It goes on from a checkpoint that is there.
        sites: Number of nodes of a closed federation (a simulation): the first round waits for all of them
            and nothing waits for more. None: nodes may come at any time; the first round waits for as many as
            the study names, or for the quorum.
        rounds: Instead of the study's number of rounds; 0 only evaluates the initial tensors.
        on_event: Called with each event after it is written; what it raises ends the study as failed.

    Raises:
        ConfigurationError: Fewer simulated sites than the quorum, or a checkpoint of another study.
        DataError: A damaged checkpoint.
    """
    quorum = run.study.rounds.quorum
    if sites is not None and sites < quorum:
        raise ConfigurationError(
            f"rounds.quorum: expected at most the number of sites, {sites}, got {quorum}"
        )
    coordinator = _Coordinator(grid, stop, run, sites, on_event or (lambda _: None))
    return coordinator.run(run.study.rounds.count if rounds is None else rounds)


class _Stopped(Exception):
    """The study ends before its last round, in order."""


class _Coordinator:
    """State of one run of the server. `_last` is the state after the last round, as it is on disk."""

    def __init__(
        self, grid: Grid, stop: threading.Event, run: RunDirectory, sites: int | None, on_event: OnEvent
    ) -> None:
        self._grid, self._stop, self._run, self._on_event = grid, stop, run, on_event
        self._study, self._digest = run.study, run.study.digest()
        self._deadline, self._quorum = run.study.rounds.deadline, run.study.rounds.quorum
        self._strategy = make_strategy(run.study.strategy)
        self._skipped = 0
        self._expected = max(sites or 0, self._quorum, len(run.study.sites))
        self._last = run.latest_checkpoint()
        if self._last is None:
            self._roster = Roster(run.study)
        else:
            self._roster = Roster(run.study, self._last.fingerprint, self._last.manifest)
            self._expected = max(self._expected, len(self._last.sites))
        self._orders = Orders(grid, stop, self._strategy, self._deadline, self._emit)
        self._admission = Admission(grid, stop, self._roster, self._digest, sites, self._emit)

    @property
    def _round(self) -> int:
        return self._last.round if self._last is not None else 0

    # ---- the course of a study

    def run(self, rounds: int) -> Outcome:
        try:
            status, reason = self._conduct(rounds)
            return self._finish(status, reason)
        except BaseException as error:
            public = str(error) if isinstance(error, FedpromptError) else type(error).__name__
            with contextlib.suppress(Exception):  # the cause is what the caller must see
                self._run.append(
                    new_event("study_finished", status="failed", rounds=self._round, reason=public)
                )
                self._run.write_summary(summarise(self._study, self._run.events()))
            raise

    def _conduct(self, rounds: int) -> tuple[Status, str | None]:
        try:
            self._begin(rounds)
            members = self._gather(self._expected)
            for number in range(self._round + 1, rounds + 1):
                self._train(number)
            if rounds == 0 and self._last is None:
                self._start(members)
            self._evaluate(min(rounds, 1))
        except _Stopped as stopped:
            return "stopped", str(stopped)
        except KeyboardInterrupt:
            return "stopped", "interrupted"
        return "completed", None

    def _begin(self, rounds: int) -> None:
        last = self._last
        if last is None:
            name, strategy, seed = self._study.name, self._study.strategy.name, self._study.seed
            self._emit(
                "study_started", study=name, strategy=strategy, rounds=rounds, seed=seed, sites=self._expected
            )
            return
        self._strategy.restore(last.manifest, last.shared, last.kept, last.strategy, last.strategy_metadata)
        if last.event not in self._run.events():  # killed after the checkpoint, before its event
            self._publish(last.event)
        self._emit("resumed", round=last.round)

    def _finish(self, status: Status, reason: str | None) -> Outcome:
        because = {} if reason is None else {"reason": reason}
        self._emit("study_finished", status=status, rounds=self._round, **because)
        summary = summarise(self._study, self._run.events())
        if self._last is not None:
            self._run.write_bundle(self._last, {"metrics": summary["mean"]})
        self._run.write_summary(summary)
        return Outcome(status, self._round, reason, summary)

    # ---- a round

    def _train(self, number: int) -> None:
        began = time.monotonic()
        members = self._gather(self._quorum)
        if len(members) < self._quorum:
            self._skip(number, f"{len(members)} of at least {self._quorum} sites are there{self._refusals()}")
            return
        if self._last is None and not self._start(members):
            self._skip(number, "no site gave initial tensors")
            return
        self._emit("round_started", round=number, sites=[member.site for member in members])
        accepted = self._collect(members, number)
        updates, reports = [update for update, _ in accepted], [report for _, report in accepted]
        if len(updates) < self._quorum:
            self._skip(number, f"{len(updates)} of at least {self._quorum} sites gave a usable update")
            return
        facts = self._strategy.aggregate(number, updates)
        event = new_event(
            "round_finished",
            round=number,
            sites=len(updates),
            mean=mean_metrics(report.metrics for report in reports),
            loss=mean_metrics({"total": _total(report.loss)} for report in reports)["total"],
            seconds=round(time.monotonic() - began, 3),
            bytes=self._orders.traffic,
            strategy=facts,
        )
        snapshot = self._snapshot(number, event)
        self._run.save_checkpoint(snapshot)
        self._last = snapshot
        self._skipped = 0
        self._publish(event)

    def _collect(self, members: list[Member], number: int) -> list[tuple[Update, Report]]:
        """The updates of a round that count, sorted by site, with their reports."""
        order = Order(study=self._digest, round=number, task="train")
        accepted: dict[str, tuple[Update, Report]] = {}
        for answer in self._orders.ask(members, order, self._manifest):
            site, report = answer.member.site, answer.report
            cases = answer.member.card.cases.train  # not what the report says: no site weighs more at will
            accepted[site] = Update(site, cases, answer.shared, answer.kept), report
            self._emit(
                "site_reported",
                round=number,
                site=site,
                cases=report.cases,
                metrics=report.metrics,
                loss=report.loss,
                seconds=report.seconds,
                bytes={"up": answer.up, "down": answer.down},
            )
        self._check_stop()
        return [accepted[site] for site in sorted(accepted)]

    def _start(self, members: list[Member]) -> bool:
        """Takes the initial tensors from the first member that gives them; False if none does."""
        order = Order(study=self._digest, round=0, task="describe", initial_arrays=True)
        for member in members:
            for answer in self._orders.ask([member], order, self._manifest):
                self._strategy.start(self._manifest, answer.shared, answer.kept)
                self._last = self._snapshot(0, {})
                return True
            self._check_stop()
        return False

    def _evaluate(self, least: int) -> None:
        """One exchange on the test cases of all sites that are online, after round `least` or a later one."""
        began = time.monotonic()
        if self._last is None or self._round < least:
            raise _Stopped(f"no round had enough sites{self._refusals()}")
        order = Order(study=self._digest, round=self._round, task="evaluate", split="test")
        answers = self._orders.ask(self._gather(1), order, None)
        metrics = {answer.member.site: answer.report.metrics for answer in answers}
        self._check_stop()
        if not metrics:
            raise _Stopped("no site answered the evaluation")
        self._emit(
            "evaluated",
            split="test",
            sites=dict(sorted(metrics.items())),
            mean=mean_metrics(metrics[site] for site in sorted(metrics)),
            seconds=round(time.monotonic() - began, 3),
            bytes=self._orders.traffic,
        )

    # ---- helpers

    @property
    def _manifest(self) -> Manifest:
        manifest = self._roster.manifest
        assert manifest is not None, "there is a member, and the first one brought it"  # noqa: S101
        return manifest

    def _gather(self, least: int) -> list[Member]:
        members = self._admission.gather(least, self._deadline)
        self._check_stop()
        return members

    def _snapshot(self, number: int, event: dict[str, Any]) -> Checkpoint:
        arrays, metadata = self._strategy.state()
        return Checkpoint(
            round=number,
            study=self._digest,
            fingerprint=str(self._roster.fingerprint),
            manifest=self._manifest,
            sites=sorted(self._roster.members),
            shared=self._strategy.shared,
            kept=dict(self._strategy.kept),
            strategy=arrays,
            strategy_metadata=metadata,
            event=event,
        )

    def _skip(self, number: int, reason: str) -> None:
        self._emit("round_skipped", round=number, reason=reason)
        self._skipped += 1
        if self._skipped == _MOST_SKIPPED:
            raise _Stopped(f"{_MOST_SKIPPED} rounds in a row were skipped; the last: {reason}")

    def _refusals(self) -> str:
        refused = sorted({f"{failure.code}: {failure.reason}" for failure in self._roster.refused.values()})
        return f" (refused: {'; '.join(refused[:3])})" if refused else ""

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped("interrupted")

    def _emit(self, event: str, **fields: Any) -> None:
        self._publish(new_event(event, **fields))

    def _publish(self, event: dict[str, Any]) -> None:
        self._run.append(event)
        self._on_event(event)


def _total(loss: dict[str, float]) -> float:
    """The loss that was minimised: the part of that name, or the sum of all."""
    return loss["total"] if "total" in loss else sum(loss.values())
