#!/usr/bin/env python
"""What a worker of the ImageNet loader does: read, decode and crop, beside torchvision's decode_jpeg alone.

    python benchmarks/imagenet_input.py ROOT    # a folder that scripts/prepare_imagenet.py filled

One core. All run in one process, in alternation, on the same images: the loader's own function, from files on disk (in
the system's cache) to a batch; torchvision.io.decode_jpeg alone, on the same files already in memory; and what is left
for the training device, mirroring and subtracting the mean, which in training overlaps with the workers.
Printed are images per second, and the ratio chunk by chunk. The batch's memory is reused; "new batch" is without that:
the difference is the price of fresh memory on the machine at hand. "a worker" is a DataLoader's process of its own,
with all that it does for its batches, by the CPU seconds that the system counted for it; their memory is reused too.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torchvision.io import decode_jpeg, read_file

from cyclical_lr.data.imagenet import ImageNetData, Order, Reader
from cyclical_lr.training import provenance

BATCH, CHUNKS = 256, 49  # the first chunk warms up
WORKERS_CHUNKS, FIRST = 12, 4
"""As many of them one worker has, then come the next chunks and the next worker; its first ones fill new memory."""


def decode_alone(files: Iterable[Tensor]) -> None:
    for file in files:
        decode_jpeg(file)


def worker_seconds(data: ImageNetData, orders: Sequence[Order]) -> float:
    """CPU seconds of one DataLoader's worker for these batches, without those of its start, first ones and end."""

    def child(few: Sequence[Order]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        data.workers = 1
        for _ in data._loader("train", few, BATCH):
            pass
        gc.collect()  # the loader, whose worker then ends and is counted
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return (child(orders) - child(orders[:FIRST])) * len(orders) / (len(orders) - FIRST)


def main(root: str) -> None:
    torch.set_num_threads(1)
    classes = json.loads((Path(root) / "index.json").read_text())["classes"]
    data = ImageNetData("benchmark", len(classes), root, crop=227, batch_size=BATCH, workers=0)
    data.setup()
    reader = Reader(data.images["train"], data.crop, decode=True)
    orders = [data.order(0, iteration) for iteration in range(CHUNKS)]
    batch = torch.empty(BATCH, 227, 227, 3, dtype=torch.uint8)

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()  # of this process: a shared machine's other work is not ours
        work()
        return time.process_time() - start

    decoding, reused, fresh, cropping, worked = [], [], [], [], []
    for number, order in enumerate(orders):
        files = [read_file(reader.images.path(sample)) for sample in order["samples"]]
        decoding.append(seconds(partial(decode_alone, files)))
        reused.append(seconds(partial(reader.read, order, batch.numpy())))
        fresh.append(seconds(partial(reader.__getitem__, order)))
        parts = {key: torch.from_numpy(values) for key, values in order.items() if key != "samples"}
        cropping.append(seconds(partial(data.train, batch, torch.zeros(BATCH), **parts)))
        if number and number % WORKERS_CHUNKS == 0:
            since = slice(number + 1 - WORKERS_CHUNKS, number + 1)
            worked.append((sum(decoding[since]), worker_seconds(data, orders[since])))

    print(f"{provenance.device_name(torch.device('cpu'))}, one thread, torch {torch.__version__}")
    print(f"{CHUNKS - 1} chunks of {BATCH} images each way, alternating; CPU seconds")
    arms = {"decode_jpeg alone": decoding, "read, decode, crop": reused, "new batch": fresh, "mirror, mean": cropping}
    for name, times in arms.items():
        ratios = sorted(alone / own for alone, own in list(zip(decoding, times, strict=True))[1:])
        print(
            f"{name:<18} {BATCH / median(times[1:]):7.0f} images/s (median), "
            f"ratio {median(ratios):.3f} (median), {ratios[0]:.3f} to {ratios[-1]:.3f}"
        )
    ratios = sorted(alone / own for alone, own in worked)
    rate = WORKERS_CHUNKS * BATCH / median(own for _, own in worked)
    print(
        f"{'a worker':<18} {rate:7.0f} images/s (median), "
        f"ratio {median(ratios):.3f} (median), {ratios[0]:.3f} to {ratios[-1]:.3f}, of {WORKERS_CHUNKS} chunks each"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "index.json").is_file():
        sys.exit(__doc__)
    main(sys.argv[1])
