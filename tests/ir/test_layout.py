from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.ir.layout import TensorLayout


@st.composite
def layouts(draw: st.DrawFn) -> TensorLayout:
    slots = 1 << draw(st.integers(5, 9))
    gap = draw(st.sampled_from([1, 1, 2, 3, 4]))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    padded = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    layout = TensorLayout.multiplexed(shape, padded, gap, slots, draw(st.sampled_from([1, 1, 2, 4])))
    if layout.ciphertexts == 1 and layout.slots > layout.period > 1 and draw(st.booleans()):
        return layout.with_step(1 << draw(st.integers(0, layout.period.bit_length() - 2)))
    return layout


@settings(max_examples=200, deadline=None)
@given(layouts(), st.integers(0, 2**31))
def test_unpack_inverts_pack(layout: TensorLayout, seed: int) -> None:
    images = np.random.default_rng(seed).normal(size=(layout.batch, *layout.shape))
    slots = layout.pack(images)
    assert slots.shape == (layout.ciphertexts, layout.slots * layout.batch)
    assert np.array_equal(layout.unpack(slots), images)
    one = replace(layout, batch=1)
    for number, image in enumerate(images):
        assert np.array_equal(slots[:, number :: layout.batch], one.pack(image[None]))


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_addresses_are_distinct_and_content_repeats(layout: TensorLayout) -> None:
    assert len(set(layout.addresses.tolist())) == np.prod(layout.shape)
    assert layout.addresses.max() < layout.ciphertexts * layout.slots
    slots = layout.expand(np.ones(layout.shape)).reshape(-1)
    if layout.ciphertexts == 1:
        assert np.array_equal(slots, np.roll(slots, layout.period * layout.distinct_copies))
    copies = layout.slots // layout.period
    assert slots.sum() == np.prod(layout.shape) * copies


@settings(max_examples=100, deadline=None)
@given(layouts(), st.integers(0, 2**31))
def test_each_copy_is_rotated_by_one_step_more(layout: TensorLayout, seed: int) -> None:
    images = np.random.default_rng(seed).normal(size=(layout.batch, *layout.shape))
    if layout.ciphertexts > 1:
        return
    slots = layout.pack(images)
    assert np.array_equal(slots, np.roll(slots, layout.ciphertext_repeats_after))
    for image in range(layout.batch):
        copies = slots[0, image :: layout.batch].reshape(-1, layout.period)
        for number, copy in enumerate(copies):
            assert np.array_equal(copy, np.roll(copies[0], -number * layout.step))
        assert len(np.unique(copies, axis=0)) <= layout.distinct_copies
        if layout.step:
            plain = layout.with_step(0).pack(images)[0, image :: layout.batch]
            assert np.array_equal(plain[: layout.period], copies[0])


@settings(max_examples=200, deadline=None)
@given(layouts(), st.integers(0, 2**31), st.booleans())
def test_numbers_of_channels_in_one_ciphertext(layout: TensorLayout, seed: int, one: bool) -> None:
    values = np.random.default_rng(seed).normal(size=(1 if one else layout.shape[0], 3))
    columns = [column.reshape(-1, *(1,) * (len(layout.shape) - 1)) for column in values.T]
    expected = np.stack([layout.expand(np.broadcast_to(column, layout.shape)) for column in columns], axis=1)
    for page in range(layout.ciphertexts):
        assert np.array_equal(layout.expand_channels(values, page), expected[page])


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_owners_are_the_elements_of_slots(layout: TensorLayout) -> None:
    numbers = np.arange(np.prod(layout.shape), dtype=np.float64).reshape(layout.shape)
    plain = layout.with_step(0)
    assert layout.owners.shape == (layout.ciphertexts, layout.period)
    assert np.array_equal(layout.owners + 1, plain.expand(numbers + 1.0)[:, : layout.period])


def test_what_layouts_share_can_not_be_changed() -> None:
    layout = TensorLayout.dense((2, 3, 3), 64)
    assert layout.reshaped((18,)).with_step(1).addresses is layout.addresses
    assert layout.with_step(1).owners is layout.owners
    for shared in (layout.addresses, layout.owners):
        with pytest.raises(ValueError, match="read-only"):
            shared[...] = 0


def test_a_reshape_moves_nothing() -> None:
    layout = TensorLayout.multiplexed((4, 3, 2), (8, 8), 2, 256)
    assert np.array_equal(layout.reshaped((24,)).addresses, layout.addresses)


def test_multiplexed_addresses_follow_the_paper() -> None:
    """Channel c, row y, column x of gap k lies at k^2 h w u + k w (k y + (c mod k^2) div k) + k x + c mod k."""
    k, h, w = 2, 4, 4
    layout = TensorLayout.multiplexed((8, h, w), (k * h, k * w), k, 1024)
    c, y, x = np.meshgrid(np.arange(8), np.arange(h), np.arange(w), indexing="ij")
    u = c // (k * k)
    expected = k * k * h * w * u + k * w * (k * y + (c % (k * k)) // k) + k * x + c % k
    assert np.array_equal(layout.addresses, expected.reshape(-1))


@pytest.mark.parametrize(
    "arguments",
    [
        ((5,), (2, 1, 2), (1, 2), 1, 2, 16),  # sizes differ
        ((4,), (1, 2, 2), (2, 1), 1, 4, 16),  # the grid does not fit in its plane
        ((4,), (1, 2, 2), (3, 4), 2, 16, 16),  # a gap without whole cells
        ((8,), (2, 2, 2), (2, 2), 1, 3, 16),  # planes overlap
        ((4,), (1, 2, 2), (2, 2), 1, 4, 24),  # slots not a power of two
    ],
)
def test_layouts_that_cannot_be_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        TensorLayout(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [-2, 3, 16, 32])
def test_steps_that_cannot_be_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match="not a power of two below"):
        TensorLayout.dense((16,), 128).with_step(step)


def test_only_copies_of_one_image_are_shifted() -> None:
    with pytest.raises(ValueError, match="only copies"):
        TensorLayout.dense((65,), 128).with_step(4)
    with pytest.raises(ValueError, match="only copies"):
        TensorLayout.dense((300,), 128).with_step(4)
    assert TensorLayout.dense((16,), 128, batch=2).with_step(4).pack(np.ones((2, 16))).shape == (1, 256)


@pytest.mark.parametrize("batch", [0, 3, -2])
def test_a_batch_that_is_no_power_of_two_is_refused(batch: int) -> None:
    with pytest.raises(ValueError, match="not a power of two"):
        TensorLayout.dense((3, 4, 4), 128, batch=batch)


def test_pack_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="expected images"):
        TensorLayout.dense((3, 4, 4), 128).pack(np.zeros((1, 3, 4, 5)))
