"""Augmentation: every image its own shift and flip, each outcome as likely as the others, nothing else changed."""

import numpy as np
import pytest
import torch
from scipy import stats

from cyclical_lr.data.augment import crop_flip
from cyclical_lr.training.engine import seed_step

OUTCOMES = [(row, column, flip) for row in range(9) for column in range(9) for flip in (False, True)]


def numbered(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Images [count, 2, H, W] that differ at every pixel and look the same in no mirror; no value is zero."""
    pixels = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    return torch.cat([pixels, -pixels], 1).repeat(count, 1, 1, 1)


def crop_by_hand(image: np.ndarray, row: int, column: int, flip: bool) -> np.ndarray:
    """fb.resnet.torch: mirror, pad by 4 zeros, crop. image is [C, H, W]."""
    image = image[:, :, ::-1] if flip else image
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    return padded[:, row : row + image.shape[1], column : column + image.shape[2]]


def outcomes_of(batch: torch.Tensor) -> list[tuple[int, int, bool]]:
    """Which outcome each image of `crop_flip(numbered(...))` is, read off two pixels of its middle."""
    here, right = batch[:, 0, 16, 16], batch[:, 0, 16, 17]
    rows, columns = (here - 1) // 32, (here - 1) % 32
    flips = right < here
    columns = torch.where(flips, 31 - columns, columns)
    return [
        (int(row) - 12, int(column) - 12, bool(flip)) for row, column, flip in zip(rows, columns, flips, strict=True)
    ]


def test_the_two_recipes_have_the_same_outcomes():
    image = numbered(1)[0].numpy()

    def move(down: int, right: int, flip: bool) -> np.ndarray:
        """Stochastic_Depth: translate by -4 to 4, fill with zeros, then mirror."""
        moved = np.zeros_like(image)
        to = [slice(max(0, by), 32 + min(0, by)) for by in (down, right)]
        origin = [slice(max(0, -by), 32 + min(0, -by)) for by in (down, right)]
        moved[:, to[0], to[1]] = image[:, origin[0], origin[1]]
        return moved[:, :, ::-1] if flip else moved

    cropped = {crop_by_hand(image, *outcome).tobytes() for outcome in OUTCOMES}
    moved = {np.ascontiguousarray(move(r - 4, c - 4, flip)).tobytes() for r, c, flip in OUTCOMES}
    assert cropped == moved
    assert len(cropped) == 162


def test_every_outcome_occurs_and_is_exactly_a_mirrored_and_shifted_image():
    torch.manual_seed(0)
    batch = crop_flip(numbered(2000))
    found = outcomes_of(batch)
    assert set(found) == set(OUTCOMES)
    image = numbered(1)[0].numpy()
    for outcome in OUTCOMES:
        where = found.index(outcome)
        assert np.array_equal(batch[where].numpy(), crop_by_hand(image, *outcome)), outcome


def test_outcomes_are_equally_likely_and_neighbours_in_a_batch_independent():
    torch.manual_seed(1)
    found = [outcome for _ in range(10) for outcome in outcomes_of(crop_flip(numbered(2000)))]
    counts = [found.count(outcome) for outcome in OUTCOMES]
    assert stats.chisquare(counts).pvalue > 1e-3
    assert sum(flip for *_, flip in found) / len(found) == pytest.approx(0.5, abs=4 * 0.5 / len(found) ** 0.5)
    values = np.array(found, dtype=float)
    # Rows, columns and flips of an image and of the next one: 20,000 independent draws correlate by less than 4 / sqrt.
    table = np.corrcoef(np.hstack([values[:-1], values[1:]]).T) - np.eye(6)
    assert np.abs(table).max() < 4 / len(found) ** 0.5


def test_the_mirror_turns_left_and_right_and_never_upside_down():
    torch.manual_seed(2)
    # Rows alike within themselves: nothing that happens along a row can be seen, and a vertical flip would be.
    rows = torch.arange(1.0, 33).view(1, 1, 32, 1).expand(500, 3, 32, 32)
    middle = crop_flip(rows)[:, :, 8:24, 8:24]
    assert (middle.diff(dim=2) == 1).all()
    columns = rows.transpose(2, 3)
    middle = crop_flip(columns)[:, :, 8:24, 8:24]
    steps = middle.diff(dim=3)
    assert ((steps == 1) | (steps == -1)).all()
    assert {-1.0, 1.0} == set(steps.unique().tolist())
    assert (steps.amax((1, 2, 3)) == steps.amin((1, 2, 3))).all()


@pytest.mark.parametrize("shape", [(3, 1, 5, 9), (2, 3, 9, 5), (1, 3, 32, 32), (4, 2, 1, 1)])
def test_images_of_any_size_keep_it(shape):
    images = torch.randn(shape)
    assert crop_flip(images).shape == shape
    still = crop_flip(images, padding=0)
    for image, result in zip(images, still, strict=True):
        assert torch.equal(result, image) or torch.equal(result, image.flip(-1))


def test_the_strides_of_the_input_do_not_matter_and_those_of_the_output_are_channels_last():
    images = torch.randn(6, 3, 32, 32)
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(3)
        results.append(crop_flip(images.contiguous(memory_format=form)))
        assert results[-1].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(*results)


def test_the_input_is_left_alone():
    images = numbered(3)
    crop_flip(images)
    assert torch.equal(images, numbered(3))


def test_what_is_drawn_depends_on_the_seed_and_the_iteration_alone():
    def drawn(seed, iteration):
        seed_step(seed, iteration)
        return crop_flip(numbered(8))

    first = drawn(3, 10)
    torch.rand(7)
    assert torch.equal(drawn(3, 10), first)
    assert not torch.equal(drawn(3, 11), first) and not torch.equal(drawn(4, 10), first)
