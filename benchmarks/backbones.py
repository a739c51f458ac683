"""What foundation backbones cost: the feature cache at ViT-B/16, parameters and traffic per family, devices.

    python benchmarks/backbones.py cache
    python benchmarks/backbones.py parameters
    python benchmarks/backbones.py device --backbones vit,sam

All weights are random: time, memory and numbers of parameters do not depend on them, and no hub is needed.
Each subcommand prints a table, or with `--json` the same rows as JSON.
"""

from __future__ import annotations

import argparse
import json

import torch
import transformers
from backbone_cache import cache_rows, print_cache
from backbone_device import device_rows, one_device_row, print_device
from backbone_parameters import parameter_rows, print_parameters


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cache", "parameters", "device", "one"])
    parser.add_argument("one", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--images", type=int, default=16, help="cache: images of an epoch, multiple of 8")
    parser.add_argument("--pairs", type=int, default=3, help="cache: repetitions")
    parser.add_argument("--views", type=int, default=1, help="cache: augmented views per image")
    parser.add_argument("--backbones", default="vit", help="device: some of vit,sam")
    parser.add_argument("--batch", type=int, default=8 if torch.cuda.is_available() else 2, help="device")
    parser.add_argument("--repeat", type=int, default=3, help="device: calls per median")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    if options.what == "one":
        print(json.dumps(one_device_row(*options.one, options.batch, options.repeat)))
        return
    if options.what == "cache":
        rows, show = cache_rows(options.images, options.pairs, options.views), print_cache
    elif options.what == "parameters":
        rows, show = parameter_rows(), print_parameters
    else:
        rows, show = device_rows(options.backbones.split(","), options.batch, options.repeat), print_device
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
