"""The CIFAR sets: arithmetic, order and blocks."""

import itertools
import pickle
import random
from pathlib import Path

import hydra
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from small_cifar import BASE, CONF, FILES, configured, ready
from torchvision.datasets import CIFAR10, CIFAR100

from cyclical_lr.data.cifar import CifarData, ImageSet
from cyclical_lr.records import ConfigError

# Arithmetic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["pixel", "channel", "none"])
@pytest.mark.parametrize("scale", [1.0, 1 / 255])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_batch_is_the_pixels_minus_the_training_mean_times_the_scale(copy, mean, scale, split):
    folder, declared = copy
    data = ready(**declared, root=folder.parent, mean=mean, scale=scale)
    entries = {
        split: [pickle.loads((folder / file).read_bytes()) for file in files]
        for split, files in FILES["cifar10"].items()
    }
    images = {
        split: np.concatenate([entry["data"] for entry in parts]).reshape(-1, 3, 32, 32).astype(np.float64)
        for split, parts in entries.items()
    }
    centre = {
        "pixel": images["train"].mean(0),
        "channel": images["train"].mean((0, 2, 3))[:, None, None],
        "none": np.zeros(()),
    }[mean]
    indices = torch.tensor([9, 0, 3, 3, 7])

    x, y = getattr(data, split)(indices)

    np.testing.assert_allclose(x.numpy(), (images[split][indices] - centre) * scale, rtol=1e-6, atol=2e-5 * scale)
    assert y.tolist() == [entries[split][0]["labels"][i] for i in indices]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_subtraction_comes_before_the_scale_and_is_exact_in_float32():
    pixels = torch.arange(2 * 3072).remainder(256).to(torch.uint8).view(2, 32, 32, 3)
    mean = torch.linspace(0, 255, 3072).view(32, 32, 3)
    x, _ = ImageSet(pixels, torch.tensor([4, 2]), mean, 0.3)(torch.tensor([1, 0]))
    expected = (pixels.flip(0).numpy().astype(np.float32) - mean.numpy()) * np.float32(0.3)
    np.testing.assert_array_equal(x.permute(0, 2, 3, 1).numpy(), expected)


def test_a_set_moves_with_its_module_and_stays_out_of_checkpoints(sample):
    assert sample.train.state_dict() == {}
    assert {name for name, _ in sample.train.named_buffers()} == {"pixels", "labels", "mean"}
    assert sample.train.pixels.dtype == torch.uint8
    assert len(sample.train) == 2000


# Order ----------------------------------------------------------------------------------------------------------------


def stream(size: int, batch_size: int, shuffle: bool) -> CifarData:
    data = CifarData("cifar10_sample", 10, "", "", "in_order", None, batch_size=batch_size, shuffle=shuffle)
    data.train = ImageSet(
        torch.zeros(size, 1, 1, 3, dtype=torch.uint8), torch.zeros(size, dtype=torch.int64), torch.zeros(3)
    )
    return data


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31), st.integers(0, 20), st.integers(0, 5))
def test_a_shuffled_order_resumes_anywhere_and_each_epoch_is_a_permutation(size, batch_size, seed, start, count):
    data = stream(size, batch_size, shuffle=True)
    whole = data.indices(seed, 0, start + count)
    assert torch.equal(data.indices(seed, start, count), whole[start:])
    assert data.indices(seed, start, count).shape == (count, batch_size)
    for epoch in whole.flatten().split(size)[: whole.numel() // size]:
        assert sorted(epoch.tolist()) == list(range(size))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31), st.integers(0, 30), st.integers(0, 12))
def test_file_order_wraps_around_whatever_the_seed(size, batch_size, seed, start, count):
    expected = list(itertools.islice(itertools.cycle(range(size)), (start + count) * batch_size))[start * batch_size :]
    assert stream(size, batch_size, shuffle=False).indices(seed, start, count).flatten().tolist() == expected


def test_the_shuffled_order_is_these_numbers():
    """A change here changes every shuffled run that is already recorded."""
    data = stream(8, 4, shuffle=True)
    assert data.indices(0, 0, 4).tolist() == [[4, 1, 3, 5], [0, 2, 6, 7], [4, 7, 5, 2], [1, 0, 6, 3]]
    assert data.indices(1, 0, 4).tolist() == [[4, 5, 6, 2], [1, 0, 3, 7], [3, 5, 0, 7], [2, 4, 1, 6]]


def test_seeds_and_epochs_have_orders_of_their_own():
    data = stream(50, 50, shuffle=True)
    orders = {tuple(row.tolist()) for seed in range(20) for row in data.indices(seed, 0, 20)}
    assert len(orders) == 400


def test_no_global_generator_moves(sample):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    shuffled = stream(50, 7, shuffle=True)
    assert len(list(shuffled.train_blocks([0, 1], 0, 20, 20, 3))) == 7
    assert len(list(sample.eval_blocks())) == 4
    hydra.utils.instantiate(OmegaConf.load(CONF / "cifar10_sample.yaml")).setup()
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


# Blocks ---------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 25), st.integers(1, 12))
def test_blocks_end_where_an_evaluation_is_due_and_cover_every_iteration_once(start, iterations, eval_every, block):
    data, seeds = stream(10, 3, shuffle=True), [5, 6]
    loader = data.train_blocks(seeds, start, iterations, eval_every, block)
    covered, position = [], start
    while position < iterations:
        blocks = list(loader)
        due = min(iterations, (position // eval_every + 1) * eval_every)
        assert [b["start"] for b in blocks] == list(range(position, due, block))
        for b in blocks:
            count = b["indices"].shape[1]
            assert count == min(block, due - b["start"])
            expected = torch.stack([data.indices(seed, b["start"], count) for seed in seeds])
            assert torch.equal(b["indices"], expected)
            covered += range(b["start"], b["start"] + count)
        position = due
    assert covered == list(range(start, iterations))
    assert list(loader) == []


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch):
        self.seen += range(batch["start"], batch["start"] + batch["indices"].shape[1])

    def on_validation_start(self):
        self.seen.append("evaluate")

    def validation_step(self, batch):
        self.seen.append(len(batch))

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", [0, 3, 5])
def test_an_epoch_of_lightning_is_the_stretch_between_two_evaluations(sample, tmp_path, start):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        max_epochs=3 if start < 5 else 2, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet
    )
    recorder = Recorder()
    trainer.fit(recorder, sample.train_blocks([0], start, 12, eval_every=5, block=2), sample.eval_blocks())
    evaluation = ["evaluate", 250, 250, 250, 250]
    first = [*range(start, 5), *evaluation] if start < 5 else []
    assert recorder.seen == [*first, *range(5, 10), *evaluation, 10, 11, *evaluation]


@pytest.mark.parametrize("eval_batch_size", [1, 300, 1000, 4096])
def test_an_evaluation_sees_each_image_once(sample, eval_batch_size):
    data = CifarData("cifar10_sample", 10, "", "", "in_order", None, eval_batch_size=eval_batch_size)
    data.train, data.test = sample.train, sample.test
    blocks = list(data.eval_blocks())
    assert max(len(block) for block in blocks) == min(1000, eval_batch_size)
    assert torch.cat(blocks).tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "cifar11"),
        ("checksum", "md5"),
        ("mean", "image"),
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("scale", 0),
        ("root", None),
    ],
)
def test_a_wrong_value_is_named_at_construction(copy, tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf"data\.{key}: expected .*got {value!r}"):
        CifarData(**{**copy[1], "root": tmp_path, key: value})


# The real sets and the sample -----------------------------------------------------------------------------------------


def channel_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the three channels, from exact sums."""
    count = pixels[..., 0].size
    first = pixels.sum(0, dtype=np.int64).sum((0, 1)) / count
    squares = [np.square(part, dtype=np.uint16).sum(0, dtype=np.int64).sum((0, 1)) for part in np.split(pixels, 10)]
    return first, np.sqrt(sum(squares) / count - first**2)


@pytest.mark.slow
def test_the_real_cifar10_has_the_known_statistics_and_order(real_data):
    data = configured("cifar10", real_data)
    mean, std = channel_statistics(data.train.pixels.numpy())
    np.testing.assert_allclose(mean, [125.307, 122.950, 113.865], atol=5e-4)
    np.testing.assert_allclose(std, [62.993, 62.089, 66.705], atol=5e-4)
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    some = data.train.pixels[:, 3, 30].double().mean(0)
    np.testing.assert_allclose(data.train.mean[3, 30].numpy(), some.numpy(), rtol=1e-6)
    official = CIFAR10(real_data, train=False)
    assert np.array_equal(data.test.pixels.numpy(), official.data)
    assert data.test.labels.tolist() == official.targets
    # Caffe's 500 fixed batches: iteration 500 is iteration 0 again.
    assert torch.equal(data.indices(0, 500, 3), data.indices(9, 0, 3))


@pytest.mark.slow
def test_the_real_cifar100_has_the_known_statistics(real_data):
    if not (real_data / "cifar-100-python" / "test").is_file():
        pytest.skip(
            f"needs the real CIFAR-100: no cifar-100-python/ in {real_data}. Get it with "
            f"torchvision.datasets.CIFAR100({str(real_data)!r}, download=True) (a slow host)"
        )
    data = configured("cifar100", real_data, mean="channel")
    mean, std = channel_statistics(data.train.pixels.numpy())
    np.testing.assert_allclose(mean, [129.304, 124.070, 112.434], atol=5e-4)
    np.testing.assert_allclose(std, [68.170, 65.392, 70.418], atol=5e-4)
    np.testing.assert_allclose(data.train.mean[0, 0].numpy(), mean, rtol=1e-6)
    assert data.train.labels.bincount().tolist() == [500] * 100
    assert data.test.labels.bincount().tolist() == [100] * 100


def test_the_sample_has_as_many_images_of_each_class(sample):
    assert sample.train.labels.bincount().tolist() == [200] * 10
    assert sample.test.labels.bincount().tolist() == [100] * 10
    assert sample.train.pixels.shape == (2000, 32, 32, 3)


def test_the_sample_is_small_enough_to_embed():
    folder = Path(CONF).parents[1] / "src" / "cyclical_lr" / "data" / "sample"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 7_000_000


@pytest.mark.slow
def test_the_sample_is_the_first_images_of_each_class_of_the_real_set(sample, real_data):
    for split, ours in (("train", sample.train), ("test", sample.test)):
        official = CIFAR10(real_data, train=split == "train")
        for label in range(10):
            theirs = official.data[np.asarray(official.targets) == label]
            mine = ours.pixels[ours.labels == label].numpy()
            assert np.array_equal(mine, theirs[: len(mine)])


@pytest.mark.parametrize("path", sorted(CONF.glob("cifar*.yaml")), ids=lambda path: path.stem)
def test_a_config_has_every_key_of_the_constructor(path):
    names = CifarData.__init__.__code__.co_varnames[1 : CifarData.__init__.__code__.co_argcount]
    assert set(OmegaConf.load(path)) == {"_target_", *names}
    assert CIFAR100.base_folder == BASE["cifar100"]
