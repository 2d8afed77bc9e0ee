"""Table 4's ways to feed CIFAR: standard deviations, augmentation in training alone, images held out."""

import numpy as np
import pytest
import torch
from small_cifar import configured

from cyclical_lr.data.augment import crop_flip
from cyclical_lr.data.cifar import CifarData
from cyclical_lr.records import ConfigError
from cyclical_lr.training.engine import seed_step

BATCH = torch.tensor([7, 0, 1999, 7])


@pytest.mark.parametrize("std", ["none", "channel", "scalar"])
@pytest.mark.parametrize("mean", ["pixel", "channel"])
def test_a_batch_is_divided_by_the_training_sets_standard_deviation(mean, std):
    data = configured(mean=mean, std=std, scale=0.5)
    pixels = data.train.pixels.numpy().astype(np.float64)
    centre = pixels.mean(0) if mean == "pixel" else pixels.mean((0, 1, 2))
    spread = {"none": 1.0, "channel": pixels.std((0, 1, 2)), "scalar": pixels.std()}[std]
    assert len(np.unique(np.round(spread, 2))) == (3 if std == "channel" else 1)
    for images in (data.train, data.test):
        x, _ = images(BATCH[:2])
        expected = (images.pixels[BATCH[:2]].numpy() - centre) * 0.5 / spread
        np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_dividing_by_nothing_costs_nothing_and_changes_no_bit():
    plain = configured()
    assert {name for name, _ in plain.train.named_buffers()} == {"pixels", "labels", "mean"}
    expected = (plain.train.pixels[BATCH].float() - plain.train.mean).permute(0, 3, 1, 2)
    assert torch.equal(plain.train(BATCH)[0], expected)


def test_a_batch_is_normalised_and_then_augmented():
    plain = configured(mean="channel", std="channel")
    augmented = configured(mean="channel", std="channel", augment="crop_flip")
    seed_step(0, 5)
    x, y = augmented.train(BATCH)
    seed_step(0, 5)
    assert torch.equal(x, crop_flip(plain.train(BATCH)[0]))
    assert torch.equal(y, plain.train(BATCH)[1])
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(x[0], x[3]), "the same image twice is augmented twice"


def test_padding_is_the_mean_colour_and_not_black():
    torch.manual_seed(0)
    data = configured(mean="channel", std="channel", augment="crop_flip")
    x, _ = data.train(torch.arange(200))
    black = -(data.train.mean / data.train.std)[0, 0]
    corners = x[:, :, 0, 0]
    # A corner is padding unless both of its shifts point inwards: 5 of 9 and 5 of 9 ways.
    assert 100 < (corners == 0).all(1).sum() < 180
    assert not torch.isclose(corners, black).all(1).any()


def test_evaluation_is_never_augmented():
    plain, augmented = configured(), configured(augment="crop_flip")
    assert (augmented.train.stochastic, augmented.test.stochastic, plain.train.stochastic) == (True, False, False)
    for split in ("train", "test"):
        ours, theirs = getattr(augmented, split), getattr(plain, split)
        if split == "train":
            assert not torch.equal(ours(BATCH[:2])[0], theirs(BATCH[:2])[0])
        state = torch.get_rng_state()
        assert torch.equal(ours.eval()(BATCH[:2])[0], theirs(BATCH[:2])[0])
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augmented.test.train()(BATCH[:2])[0], plain.test(BATCH[:2])[0])


def test_held_out_images_are_a_fixed_random_choice_that_training_and_its_mean_never_see():
    whole, kept = configured(std="scalar"), configured(std="scalar", holdout=200)
    assert (len(kept.train), len(kept.test)) == (1800, 1000)
    index = {image.numpy().tobytes(): i for i, image in enumerate(whole.train.pixels)}
    chosen = [index[image.numpy().tobytes()] for image in kept.train.pixels]
    assert len(set(chosen)) == 1800
    assert kept.train.labels.tolist() == whole.train.labels[chosen].tolist()
    assert chosen[:5] == [1228, 626, 876, 1772, 465], "a change here changes every run that holds images out"
    # Of each 200 in file order about 20 are left out.
    left_out = np.bincount(np.array(sorted(set(range(2000)) - set(chosen))) // 200, minlength=10)
    assert left_out.min() >= 8 and left_out.max() <= 35
    pixels = kept.train.pixels.numpy()
    np.testing.assert_allclose(kept.train.mean.numpy(), pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(kept.test.mean.numpy(), pixels.mean(0), rtol=1e-6)
    assert kept.train.std[0, 0, 0].item() == pytest.approx(pixels.std(dtype=np.float64), rel=1e-6)
    assert not torch.equal(kept.train.mean, whole.train.mean)
    assert kept.indices(0, 0, 18).max() == 1799 and kept.indices(0, 18, 1).min() == 0


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("std", "pixel", "one of none"), ("augment", "flip", "one of none"), ("holdout", -1, "a number of images")],
)
def test_a_wrong_value_is_named_at_construction(key, value, expected):
    with pytest.raises(ConfigError, match=rf"data\.{key}: expected {expected}.*, got {value!r}"):
        CifarData("cifar10_sample", 10, "", "", "in_order", None, **{key: value})


def test_holding_out_everything_is_refused():
    with pytest.raises(ConfigError, match=r"data\.holdout: expected fewer than the 2000 training images, got 2000"):
        configured(holdout=2000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "mean", "std"),
    [
        ("cifar10", "cifar-10-batches-py", [125.307, 122.950, 113.865], [62.993, 62.089, 66.705]),
        ("cifar100", "cifar-100-python", [129.304, 124.070, 112.434], [68.170, 65.392, 70.418]),
    ],
)
def test_the_real_sets_have_the_known_means_and_standard_deviations(real_data, name, folder, mean, std):
    if not (real_data / folder / ("test" if name == "cifar100" else "test_batch")).is_file():
        pytest.skip(f"needs the real {name}: no {folder}/ in {real_data}; torchvision can download it (a slow host)")
    data = configured(name, real_data, mean="channel", std="channel")
    for images in (data.train, data.test):
        np.testing.assert_allclose(images.mean[0, 0].numpy(), mean, atol=5e-4)
        np.testing.assert_allclose(images.std[31, 31].numpy(), std, atol=5e-4)
