"""Augmentation against independent NumPy and ``colorsys`` implementations in float64."""

import colorsys
from collections.abc import Iterable
from functools import cache, partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from scpl_jax.data.images.augment import (
    AUGMENTATIONS,
    Augment,
    _crop_flip,
    _random_colour,
    _random_crop_flip,
    make_augment,
    normalise,
)
from scpl_jax.data.images.colour import ORDERS, Jitter, colour_jitter, draw_jitter, grayscale

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PADDING = 4
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
GRAY = np.array([0.2989, 0.587, 0.114])
TOLERANCE = 1e-5
# Compiled once for all tests of it: they share the shape of 24 images of 4 x 9.
JITTER = jax.jit(colour_jitter)
CROP = jax.jit(_random_crop_flip)


def raw_images(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def varied_images(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    """Float images in [0, 1] with black, white, gray, pure and tied colours among the random ones."""
    images = raw_images(seed, batch, height, width).astype(np.float64) / 255
    special = np.array(
        [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.2, 0.7, 0.7]]
    )
    images[:, 0, : len(special)] = special[:width]
    return images


def unit(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float64) / 255


def reference_operation(image: np.ndarray, operation: int, factors: np.ndarray, hue: float) -> np.ndarray:
    """One operation on one (H, W, 3) float64 image, each written out on its own."""
    name = OPERATIONS[operation]
    if name == "hue":
        turned = np.empty_like(image)
        for index in np.ndindex(image.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*image[index])
            turned[index] = colorsys.hsv_to_rgb((h + hue) % 1.0, s, v)
        return turned
    factor = factors[operation]
    gray = image @ GRAY
    if name == "brightness":
        other = np.zeros_like(image)
    elif name == "contrast":
        other = np.full_like(image, gray.mean())
    else:
        other = np.stack([gray] * 3, axis=-1)
    return np.clip(factor * image + (1 - factor) * other, 0, 1)


def reference_jitter(image: np.ndarray, factors: np.ndarray, hue: float, order: Iterable[int]) -> np.ndarray:
    for operation in order:
        image = reference_operation(image, operation, factors, hue)
    return image


def jitter_of(factors: np.ndarray, hue: np.ndarray, order: np.ndarray) -> Jitter:
    return Jitter(jnp.asarray(factors, jnp.float32), jnp.asarray(hue, jnp.float32), jnp.asarray(order))


def reference_window(image: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * PADDING, width + 2 * PADDING, 3), image.dtype)
    padded[PADDING : PADDING + height, PADDING : PADDING + width] = image
    window = padded[top : top + height, left : left + width]
    return window[:, ::-1] if flip else window


def find_window(image: np.ndarray, result: np.ndarray) -> tuple[int, int, bool] | None:
    for top in range(2 * PADDING + 1):
        for left in range(2 * PADDING + 1):
            for flip in (False, True):
                if np.array_equal(reference_window(image, top, left, flip), result):
                    return top, left, flip
    return None


# Single operations and their orders


@pytest.mark.numeric
@pytest.mark.parametrize("operation", range(4), ids=OPERATIONS)
def test_one_operation_is_torchvisions(operation: int) -> None:
    images = varied_images(operation, 24, 4, 9)
    strength = np.linspace(-1, 1, 24)
    factors, hue = np.ones((24, 3)), np.zeros(24)
    if OPERATIONS[operation] == "hue":
        hue = 0.5 * strength
    else:
        factors[:, operation] = 1 + strength
    order = np.array([[operation, *(other for other in range(4) if other != operation)]] * 24)
    result = JITTER(jnp.asarray(images, jnp.float32), jitter_of(factors, hue, order))
    expected = [reference_jitter(*case) for case in zip(images, factors, hue, order[:, :1], strict=True)]
    assert_close(result, np.stack(expected), TOLERANCE, scale=1)


@pytest.mark.numeric
@pytest.mark.parametrize("lowest", [0.6, 1.2])
def test_all_orders_of_the_jitter(lowest: float) -> None:
    rng = np.random.default_rng(1)
    order = np.array(list(permutations(range(4))))
    images = varied_images(2, 24, 4, 9)
    factors, hue = rng.uniform(lowest, 1.4, (24, 3)), rng.uniform(-0.1, 0.1, 24)
    result = JITTER(jnp.asarray(images, jnp.float32), jitter_of(factors, hue, order))
    expected = [reference_jitter(*case) for case in zip(images, factors, hue, order, strict=True)]
    assert_close(result, np.stack(expected), TOLERANCE, scale=1)


def test_the_24_orders_give_different_images() -> None:
    # Operations commute as long as nothing is clipped; with factors this large every pair of orders differs.
    image, factors = varied_images(2, 1, 4, 9)[0], np.array([1.3, 1.35, 1.4])
    results = [reference_jitter(image, factors, 0.1, row) for row in permutations(range(4))]
    assert min(np.abs(a - b).max() for i, a in enumerate(results) for b in results[:i]) > 100 * TOLERANCE
    repeated = jnp.asarray(image, jnp.float32)[None].repeat(24, axis=0)
    jitter = jitter_of(np.tile(factors, (24, 1)), np.full(24, 0.1), np.array(list(permutations(range(4)))))
    assert_close(JITTER(repeated, jitter), np.stack(results), TOLERANCE, scale=1)


def test_jitter_of_an_image_does_not_depend_on_the_others() -> None:
    images, others = (jnp.asarray(varied_images(seed, 24, 4, 9), jnp.float32) for seed in (3, 4))
    rng = np.random.default_rng(4)
    jitter = jitter_of(rng.uniform(0.6, 1.4, (24, 3)), rng.uniform(-0.1, 0.1, 24), ORDERS)
    result = JITTER(images, jitter)
    mixed = JITTER(jnp.concatenate([images[:12], others[12:]]), jitter)
    np.testing.assert_array_equal(mixed[:12], result[:12])
    assert not np.array_equal(mixed[12:], result[12:])


def test_jitter_draws_cover_their_ranges_and_all_orders_equally() -> None:
    count = 24_000
    draws = jax.jit(draw_jitter, static_argnums=1)(jax.random.key(5), count)
    factors, hue, order = (np.asarray(field) for field in draws)
    for values, low, high in [*((column, 0.6, 1.4) for column in factors.T), (hue, -0.1, 0.1)]:
        uniform = (values - low) / (high - low)
        assert uniform.min() >= -1e-6
        assert uniform.max() <= 1 + 1e-6
        # Kolmogorov-Smirnov distance to the uniform law; 1.95 / sqrt(n) is its 0.1 % point.
        distance = np.abs(np.sort(uniform) - (np.arange(count) + 0.5) / count).max()
        assert distance < 1.95 / np.sqrt(count)
    columns = np.column_stack([factors, hue])
    assert np.abs(np.corrcoef(columns.T) - np.eye(4)).max() < 4 / np.sqrt(count)
    # Two draws from one key repeat their numbers in memory order, across images.
    assert abs(np.corrcoef(hue, factors.ravel()[:count])[0, 1]) < 4 / np.sqrt(count)
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == len(ORDERS) == 24
    # 49.7 is the 0.1 % point of chi squared with 23 degrees of freedom.
    assert ((counts - count / 24) ** 2 / (count / 24)).sum() < 49.7


def test_draw_jitter_never_has_a_negative_factor() -> None:
    draw = partial(draw_jitter, batch=2000, brightness=1.5, contrast=0.0, saturation=0.2, hue=0.0)
    jitter = jax.jit(draw)(jax.random.key(6))
    assert 0 <= jitter.factors[:, 0].min() < 0.01
    assert jitter.factors[:, 0].max() > 2.45
    np.testing.assert_array_equal(jitter.factors[:, 1], 1)
    np.testing.assert_array_equal(jitter.hue, 0)


@pytest.mark.numeric
def test_grayscale() -> None:
    images = varied_images(7, 2, 5, 9)
    expected = np.repeat((images @ GRAY)[..., None], 3, axis=-1)
    assert_close(grayscale(jnp.asarray(images, jnp.float32)), expected, 1e-6)


def test_probabilities_of_jitter_and_grayscale() -> None:
    count = 4000
    image = varied_images(8, 1, 2, 9)[0].astype(np.float32)
    images = jnp.asarray(image)[None].repeat(count, axis=0)
    result = np.asarray(jax.jit(_random_colour)(jax.random.key(9), images))
    change = np.abs(result - image).max(axis=(1, 2, 3))
    gray = (result == result[..., :1]).all(axis=(1, 2, 3))
    luma = np.abs(result[..., 0] - image @ GRAY).max(axis=(1, 2))
    jittered = np.where(gray, luma > 1e-6, change > 0)
    for happened, probability in [(jittered, 0.8), (gray, 0.2)]:
        # Four standard deviations.
        bound = 4 * np.sqrt(probability * (1 - probability) / count)
        assert abs(happened.mean() - probability) < bound
    assert abs(np.corrcoef(jittered, gray)[0, 1]) < 4 / np.sqrt(count)
    # An image left alone is the image bit for bit: no change is as small as a rounding error.
    assert change[change > 0].min() > 1e-3


# Crop and flip


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    shape=st.sampled_from([(1, 1), (12, 3), (5, 11)]),
)
def test_crop_is_a_window_of_the_padded_image_or_its_mirror(seed: int, shape: tuple[int, int]) -> None:
    images = raw_images(seed, 4, *shape)
    result = CROP(jax.random.key(seed), jnp.asarray(images))
    assert result.dtype == jnp.uint8
    assert result.shape == images.shape
    assert all(find_window(*pair) is not None for pair in zip(images, np.asarray(result), strict=True))


def test_every_window_at_given_offsets() -> None:
    cases = [(t, s, f) for t in range(9) for s in range(9) for f in (False, True)]
    images = raw_images(12, len(cases), 7, 5)
    top, left, flip = (jnp.array(column) for column in zip(*cases, strict=True))
    result = jax.jit(_crop_flip)(jnp.asarray(images), top, left, flip)
    expected = [reference_window(image, *case) for image, case in zip(images, cases, strict=True)]
    np.testing.assert_array_equal(result, np.stack(expected))


def test_offsets_and_flips_are_uniform_and_independent() -> None:
    count = 2000
    # Pixel (i, j) holds i and j, counted from 1: the centre of the result gives the window back.
    rows, columns = np.meshgrid(np.arange(1, 12), np.arange(1, 14), indexing="ij")
    image = np.stack([rows, columns, columns], axis=-1).astype(np.uint8)
    result = np.asarray(CROP(jax.random.key(13), jnp.asarray(image[None].repeat(count, axis=0))))
    top = result[:, 5, 6, 0].astype(int) - 6 + PADDING
    left = result[:, 5, 6, 1].astype(int) - 7 + PADDING
    flip = result[:, 5, 5, 1] > result[:, 5, 6, 1]
    expected = [reference_window(image, *case) for case in zip(top, left, flip, strict=True)]
    np.testing.assert_array_equal(result, np.stack(expected))
    for values in (top, left):
        counts = np.bincount(values, minlength=9)
        assert len(counts) == 9
        # 26.1 is the 0.1 % point of chi squared with 8 degrees of freedom.
        assert ((counts - count / 9) ** 2 / (count / 9)).sum() < 26.1
    assert abs(flip.mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
    assert np.abs(np.corrcoef([top, left, flip]) - np.eye(3)).max() < 4 / np.sqrt(count)


# The whole augmentation


@cache
def compiled(kind: str) -> Augment:
    """The compiled augmentation; the tests of it share the shape of 64 images of 6 x 9."""
    return jax.jit(make_augment(kind, mean=MEAN, std=STD))


@pytest.mark.numeric
def test_none_is_exactly_the_normalisation() -> None:
    images, labels = raw_images(14, 64, 6, 9), jnp.arange(64)
    result, out_labels = compiled("none")(jax.random.key(0), jnp.asarray(images), labels)
    assert_close(result, (unit(images) - MEAN) / STD, 1e-6)
    assert_close(result, normalise(jnp.asarray(images), MEAN, STD), 1e-6)
    np.testing.assert_array_equal(out_labels, labels)


def test_basic_pads_with_black_before_the_normalisation() -> None:
    images = raw_images(15, 64, 6, 9)
    result, _ = compiled("basic")(jax.random.key(1), jnp.asarray(images), jnp.arange(64))
    raw = np.rint((np.asarray(result, np.float64) * STD + MEAN) * 255)
    assert_close(result, (raw / 255 - MEAN) / STD, 1e-6)
    assert all(find_window(*pair) is not None for pair in zip(images, raw.astype(np.uint8), strict=True))


def test_strong_is_basic_views_then_coloured_views() -> None:
    images, labels = raw_images(16, 64, 6, 9), jnp.arange(64)
    result, out_labels = compiled("strong")(jax.random.key(2), jnp.asarray(images), labels)
    assert result.shape == (128, 6, 9, 3)
    np.testing.assert_array_equal(out_labels, np.tile(np.arange(64), 2))
    values = (np.asarray(result, np.float64) * STD + MEAN) * 255
    raw = np.rint(values).astype(np.uint8)
    is_plain = np.abs(values - raw).max(axis=(1, 2, 3)) < 1e-3
    windows = [find_window(*pair) for pair in zip(np.tile(images, (2, 1, 1, 1)), raw, strict=True)]
    assert is_plain[:64].all()
    assert all(window is not None for window in windows[:64])
    # Views left without colour, 0.2 x 0.8 of them, show that the second crop is of the same image, drawn
    # again.
    plain = [i for i in range(64) if is_plain[64 + i]]
    assert 2 <= len(plain) <= 24
    assert all(windows[64 + i] is not None for i in plain)
    assert any(windows[64 + i] != windows[i] for i in plain)
    assert values.min() > -1e-3
    assert values.max() < 255 + 1e-3


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_same_key_same_result_and_jit_is_eager(kind: str) -> None:
    images, labels = jnp.asarray(raw_images(17, 64, 6, 9)), jnp.arange(64)
    first, first_labels = compiled(kind)(jax.random.key(3), images, labels)
    again, _ = compiled(kind)(jax.random.key(3), images, labels)
    other, _ = compiled(kind)(jax.random.key(4), images, labels)
    eager, eager_labels = make_augment(kind, mean=MEAN, std=STD)(jax.random.key(3), images, labels)
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) == (kind == "none")
    assert_close(first, eager, TOLERANCE)
    np.testing.assert_array_equal(first_labels, eager_labels)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 3)])
def test_shapes_and_dtypes(kind: str, shape: tuple[int, int]) -> None:
    images, labels = jnp.asarray(raw_images(18, 3, *shape)), jnp.array([1, 0, 2], jnp.int32)
    augment = make_augment(kind, mean=MEAN, std=STD, dtype=jnp.bfloat16)
    result, out_labels = jax.eval_shape(augment, jax.random.key(0), images, labels)
    batch = 6 if kind == "strong" else 3
    assert (result.shape, result.dtype) == ((batch, *shape, 3), jnp.bfloat16)
    assert (out_labels.shape, out_labels.dtype) == ((batch,), jnp.int32)
    full, _ = jax.eval_shape(make_augment(kind, mean=MEAN, std=STD), jax.random.key(0), images, labels)
    assert full.dtype == jnp.float32


def test_half_precision_is_the_rounded_float32_result() -> None:
    images, labels, key = jnp.asarray(raw_images(19, 64, 6, 9)), jnp.arange(64), jax.random.key(5)
    full = compiled("basic")(key, images, labels)[0]
    half = jax.jit(make_augment("basic", mean=MEAN, std=STD, dtype=jnp.bfloat16))(key, images, labels)[0]
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'medium' is not one of none, basic, strong"):
        make_augment("medium", mean=MEAN, std=STD)
