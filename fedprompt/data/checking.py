"""Reads every case of a federation once, so that a broken file is named before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fedprompt.config import Site, Study
from fedprompt.data.cases import Case, read_cases
from fedprompt.data.images import UNLABELLED
from fedprompt.data.samples import load_sample
from fedprompt.errors import DataError

__all__ = ["check_cases"]


def check_cases(sites: Sequence[Site], study: Study) -> int:
    """Reads all images and masks of all sites; returns the number of cases.

    Raises:
        DataError: The first case, in the order of sites and tables, that cannot be used in the study, or a
            site whose train masks show no class but the background.
    """
    cases = [(case, site) for site in sites for case in read_cases(site.data)]
    bare = {site.id for site in sites}

    def read(entry: tuple[Case, Site]) -> bool:
        case = entry[0]
        truth = load_sample(*entry, study, simulate=False).truth
        labelled = bool(((truth > 0) & (truth != UNLABELLED)).any())
        if case.split != "train" and not labelled and (truth == UNLABELLED).any():
            raise DataError(
                f"{case.mask}: expected class numbers to evaluate against, got only background and 255, "
                "which is unlabelled"
            )
        return case.split == "train" and labelled

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for (_, site), labelled in zip(cases, pool.map(read, cases), strict=True):
            if labelled:
                bare.discard(site.id)
    finally:
        pool.shutdown(cancel_futures=True)
    for site in sites:
        if site.id in bare:
            classes = f"1 to {len(study.classes) - 1}" if len(study.classes) > 2 else "1"
            raise DataError(
                f"{site.data}: expected a train mask with class {classes}, "
                f"got only background and unlabelled pixels (are masks 0 and 255 instead of class numbers?)"
            )
    return len(cases)
