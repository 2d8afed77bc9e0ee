"""What Caffe itself computes, recorded for tests/test_caffe.py. Only to record it anew is Caffe needed:

    git clone https://github.com/BVLC/caffe && cd caffe && git checkout 9b891540183ddc834a02b2bd81b31afae71b2153
    # build it with CPU_ONLY, as its installation page says, and make the data, as examples/cifar10/readme.md says
    g++ -std=c++14 -DCPU_ONLY -Iinclude -I.build_release/src REPLICATION/tests/caffe/record.cpp -o record \
      -L.build_release/lib -Wl,-rpath,.build_release/lib -lcaffe -lglog -lboost_system
    python REPLICATION/tests/caffe/record.py . ./record

The paths are those of Caffe's Makefile; recorded.npz is from the same sources, compiled by hand on Debian 12. Protobuf
from 3.21 on wants `SetTotalBytesLimit` in util/io.cpp with its first argument alone. There the mean image came from
NumPy, since Caffe's tool for it needs OpenCV.

On CIFAR-10 nets and images are as Caffe's own files have them. ImageNet's nets have one batch of noise for data, and no
dropout. Weights start larger than Caffe's fillers make them, so that a few iterations exercise all of the arithmetic.
Precision is double, so that rounding decides nothing: in single precision one unit of 400,000 on the other side of a
ReLU changes a gradient by a thousandth.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

KEPT = 40
"""Numbers kept of each blob, evenly spread; each depends on all that happened before."""
GAMMA = 0.9
"""The LR decays so much per iteration (lr_policy "exp"), which tells where a solver applies it."""


@dataclass(frozen=True)
class Case:
    """A net, the solver's settings in Caffe's words, the first LR, the iterations, and the images of a test batch."""

    net: str
    solver: str
    lr: float
    steps: int = 5
    tested: int = 100

    def lrs(self) -> list[float]:
        """The LR of each step, from Caffe's settings, which are in single precision."""
        return [float(np.float32(self.lr)) * float(np.float32(GAMMA)) ** t for t in range(self.steps)]


FULL, SIGMOID = "examples/cifar10/cifar10_full_train_test", "examples/cifar10/cifar10_full_sigmoid_train_test"
SGD = 'type: "SGD" momentum: 0.9'
CASES = {
    "cifar10_fixed": Case(FULL, f"{SGD} weight_decay: 0.004", 0.001),
    "cifar10_nesterov_fixed": Case(FULL, 'type: "Nesterov" momentum: 0.9 weight_decay: 0.004', 0.001),
    "cifar10_adam_fixed": Case(
        FULL, 'type: "Adam" momentum: 0.9 momentum2: 0.999 delta: 1e-8 weight_decay: 0.004', 0.001
    ),
    "cifar10_rmsprop_fixed": Case(FULL, 'type: "RMSProp" rms_decay: 0.99 delta: 1e-8 weight_decay: 0.004', 0.0001),
    "cifar10_adagrad_fixed": Case(FULL, 'type: "AdaGrad" delta: 1e-8 weight_decay: 0.004', 0.001),
    "cifar10_adadelta_fixed": Case(FULL, 'type: "AdaDelta" momentum: 0.9 delta: 1e-8 weight_decay: 0.004', 1.0),
    "cifar10_bn_fixed": Case(f"{SIGMOID}_bn", SGD, 0.001, tested=1000),
    "cifar10_sigmoid_fixed": Case(SIGMOID, SGD, 0.001, tested=1000),
    "imagenet_alexnet_fixed": Case("models/bvlc_alexnet/train_val", f"{SGD} weight_decay: 0.0005", 0.001, 3, 2),
    "imagenet_alexnet_fixed model=caffenet": Case(
        "models/bvlc_reference_caffenet/train_val", f"{SGD} weight_decay: 0.0005", 0.001, 3, 2
    ),
    "imagenet_googlenet_fixed": Case("models/bvlc_googlenet/train_val", f"{SGD} weight_decay: 0.0002", 0.001, 3, 2),
}
"""By the overrides of a run."""


def noise(shape: tuple[int, ...], amplitude: float) -> np.ndarray:
    """Numbers within +-amplitude, the same on every machine: the generator is NumPy's and C++'s mt19937."""
    draws = np.random.RandomState(prod(shape)).randint(0, 2**32, shape, np.uint32)
    return (draws / 2.0**31 - 1) * amplitude


def start(shape: tuple[int, ...]) -> np.ndarray:
    """The weights or biases of that shape before the first step."""
    if len(shape) == 1:
        return noise(shape, 0.1)
    return noise(shape, sqrt(3 / prod(shape[1:])) / (8 if len(shape) == 4 and shape[1] == 3 else 1))


def kept(values: np.ndarray) -> np.ndarray:
    """The numbers of a blob that are compared."""
    return values.ravel()[np.linspace(0, values.size - 1, min(values.size, KEPT)).astype(int)]


def without_data(net: str, images: int) -> str:
    """The net with inputs in place of its data layers, and without dropout."""
    head, *layers = re.split(r"^(?=layer \{)", net, flags=re.MULTILINE)
    size = re.search(r"crop_size: (\d+)", net)
    assert size
    shapes = f"shape {{ dim: {images} dim: 3 dim: {size[1]} dim: {size[1]} }} shape {{ dim: {images} }}"
    inputs = f'layer {{ name: "input" type: "Input" top: "data" top: "label" input_param {{ {shapes} }} }}\n'
    kept_layers = [layer for layer in layers if 'type: "Data"' not in layer]
    return head + inputs + re.sub(r"dropout_ratio: [0-9.]+", "dropout_ratio: 0", "".join(kept_layers))


def record(case: Case, caffe: Path, program: Path, folder: Path) -> dict[str, np.ndarray]:
    net = (caffe / f"{case.net}.prototxt").read_text()
    (folder / "net.prototxt").write_text(net if "cifar10" in case.net else without_data(net, case.tested))
    settings = f'lr_policy: "exp" base_lr: {case.lr} gamma: {GAMMA} {case.solver} solver_mode: CPU '
    settings += f'net: "{folder}/net.prototxt" test_iter: 1 test_interval: 1000 test_initialization: false'
    (folder / "solver.prototxt").write_text(settings)
    command = [program, folder / "solver.prototxt", str(case.steps), folder / "end"]
    lines = subprocess.run(command, cwd=caffe, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    sizes = {name: int(size) for name, size in map(str.split, lines)}
    parts = np.split(np.fromfile(folder / "end"), np.cumsum(list(sizes.values()))[:-1])
    return {name: kept(part) for name, part in zip(sizes, parts, strict=True)}


def main() -> None:
    caffe, program = (Path(given).resolve() for given in sys.argv[1:])
    recorded = {}
    with TemporaryDirectory() as folder:
        for name, case in CASES.items():
            blobs = record(case, caffe, program, Path(folder))
            recorded |= {f"{name}/{blob}": values for blob, values in blobs.items()}
            print(name, {blob: float(values[0]) for blob, values in blobs.items() if blob.startswith("test")})
    np.savez_compressed(Path(__file__).with_name("recorded.npz"), **recorded)


if __name__ == "__main__":
    main()
