#!/usr/bin/env python
"""Prepare ImageNet: warp every image to 256x256 once, and compute the mean image.

    python scripts/prepare_imagenet.py SOURCE DEST [--workers N] [--val-labels FILE]

SOURCE holds train/<wnid>/*.JPEG, and val/<wnid>/*.JPEG or val/*.JPEG. The latter needs --val-labels: lines of a file's
name and its class, either a wnid or a 0-based index in the order of the sorted wnids, as in Caffe's val.txt:

    ILSVRC2012_val_00000001.JPEG n01751748
    ILSVRC2012_val_00000001.JPEG 65

DEST gets train/ and val/ with class folders, mean.npy, index.json, and problems.csv: files that were converted from
something odd (a CMYK JPEG, a PNG named .JPEG) or skipped because they cannot be read. Stop it with Ctrl-C, and start it
again, whenever you like: finished images are kept.

Exit codes: 0 done, perhaps with problems listed; 1 nothing usable; 2 unusable input, or DEST full; 130 stopped.
"""

import argparse
import sys
import time
from pathlib import Path

from cyclical_lr import command_line, processes


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("dest", metavar="DEST", type=Path)
    parser.add_argument("--workers", metavar="N", type=int, help="processes (default: one per core)")
    parser.add_argument("--val-labels", metavar="FILE", type=Path, help="classes of a val/ without class folders")
    args = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files may be no text

    from cyclical_lr.data.prepare import prepare  # imported here: --help stays quick

    started, workers = time.monotonic(), processes.cores() if args.workers is None else args.workers
    done = prepare(args.source, args.dest, workers, args.val_labels)
    seconds = time.monotonic() - started
    actions = [problem.action for problem in done.problems]
    print(f"{done.images['train']} training and {done.images['val']} validation images of {done.classes} classes")
    print(f"  written {done.written}, kept from before {done.kept}, in {seconds:.0f} s ({workers} workers)")
    print(f"  problems: {actions.count('converted')} converted, {actions.count('skipped')} skipped", end="")
    print(f", listed in {args.dest / 'problems.csv'}" if actions else "")
    if done.without_images:
        print(f"  classes without a readable image: {', '.join(done.without_images)}")
    if not done.usable:
        empty = " and ".join(split for split, images in done.images.items() if not images)
        print(f"error: SOURCE={args.source}: no usable image in {empty}; see problems.csv", file=sys.stderr)
        return processes.FAILED
    print(f"  wrote {args.dest / 'mean.npy'}, {args.dest / 'index.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.guarded(main, sys.argv[1:]))
