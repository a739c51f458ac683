"""Reads every case of a federation once, so that a broken file is named before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fedprompt.config import Site, Study
from fedprompt.data.cases import Case, read_cases
from fedprompt.data.images import UNLABELLED
from fedprompt.data.samples import load_sample, split_cases
from fedprompt.errors import DataError

__all__ = ["check_cases"]


def check_cases(sites: Sequence[Site], study: Study) -> int:
    """Reads all images, masks and labels of all sites; returns the number of cases.

    Raises:
        DataError: The first case, in the order of sites and tables, that cannot be used in the study. In
            segmentation also a site whose train masks show no class but the background; in classification,
            where a site may lack classes, a class that no site has cases to train on.
    """
    tables = [(site, read_cases(site.data, study.task)) for site in sites]
    cases = [(case, site) for site, table in tables for case in table]

    def read(entry: tuple[Case, Site]) -> bool:
        return _foreground(*entry, study)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        shown = list(zip(cases, pool.map(read, cases), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    if study.task == "classification":
        _every_class(tables, study)
    else:
        labelled = {site.id for (case, site), found in shown if found and case.split == "train"}
        _no_bare_site(sites, labelled, study)
    return len(cases)


def _foreground(case: Case, site: Site, study: Study) -> bool:
    """Reads a case; whether its mask shows a class other than the background."""
    truth = load_sample(case, site, study, simulate=False).truth
    if truth is None:
        return False
    labelled = bool(((truth > 0) & (truth != UNLABELLED)).any())
    if case.split != "train" and not labelled and (truth == UNLABELLED).any():
        raise DataError(
            f"{case.mask}: expected class numbers to evaluate against, got only background and 255, "
            "which is unlabelled"
        )
    return labelled


def _no_bare_site(sites: Sequence[Site], labelled: set[str], study: Study) -> None:
    for site in sites:
        if site.id not in labelled:
            classes = f"1 to {len(study.classes) - 1}" if len(study.classes) > 2 else "1"
            raise DataError(
                f"{site.data}: expected a train mask with class {classes}, "
                f"got only background and unlabelled pixels (are masks 0 and 255 instead of class numbers?)"
            )


def _every_class(tables: Sequence[tuple[Site, list[Case]]], study: Study) -> None:
    splits = [split_cases(table, study.training.validation, study.seed) for _, table in tables]
    trained = {case.label for split in splits for case in split.train}
    for name in study.classes:
        if name not in trained:
            raise DataError(
                f"class {name!r}: expected train cases at one site or more, got none at "
                f"{', '.join(site.id for site, _ in tables)} once validation cases are taken"
            )
