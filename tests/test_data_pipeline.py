"""Batches: every example in its place, the same for any number of processes, resumable."""

import json

import numpy as np
import pytest

from jseg.data import (
  as_channels,
  eval_batches,
  resize_and_pad,
  train_iterator,
  training_indices,
)
from jseg.types import IGNORE, InputError


def examples(count, height=4, width=6, channels=3):
  """Example i is filled with i."""
  return [
    {
      "image": np.full((height, width, channels), i, np.uint8),
      "label": np.full((height, width), i, np.uint8),
      "name": f"{i}",
    }
    for i in range(count)
  ]


def stream(count, batches, **changes):
  options = {"size": (4, 6), "batch_size": 4, "seed": 0} | changes
  iterator = train_iterator(examples(count), **options)
  return [next(iterator)["label"][:, 0, 0].tolist() for _ in range(batches)]


def test_every_epoch_holds_every_example_in_another_order():
  order = np.concatenate(stream(10, 15)).reshape(6, 10)
  for epoch in order:
    assert sorted(epoch) == list(range(10))
  assert len({tuple(epoch) for epoch in order}) == 6


def test_the_seed_decides_the_order():
  assert stream(10, 5) == stream(10, 5, threads=1)
  first, second = np.concatenate(stream(10, 10)), np.concatenate(stream(10, 10, seed=1))
  assert (first != second).any()
  # Grain shuffles epoch e by seed + e: neighboring seeds must not be shifted copies.
  assert (first[10:20] != second[:10]).any()


@pytest.mark.parametrize("processes", [2, 4])
def test_a_global_batch_is_the_same_for_any_number_of_processes(processes):
  whole = stream(10, 7)
  parts = [stream(10, 7, process_index=p, process_count=processes) for p in range(processes)]
  for i, batch in enumerate(whole):
    shares = [part[i] for part in parts]
    assert all(len(share) == 4 // processes for share in shares)
    np.testing.assert_array_equal(np.concatenate(shares), batch)


def test_the_examples_of_a_batch_are_known_without_reading_it():
  known = [training_indices(10, batch_size=4, seed=7, batch=i) for i in range(9)]
  assert known == stream(10, 9, seed=7)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_examples_than_a_batch(count):
  taken = np.concatenate(stream(count, 3, batch_size=4))
  assert np.bincount(taken).tolist() == [12 // count] * count


def test_state_resumes_exactly():
  def iterator():
    return train_iterator(examples(10), size=(4, 6), batch_size=4, seed=3)

  first = iterator()
  for _ in range(6):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  following = [next(first)["label"].tolist() for _ in range(5)]
  fresh = iterator()
  next(fresh)
  fresh.set_state(state)
  assert [next(fresh)["label"].tolist() for _ in range(5)] == following


def test_small_images_are_padded_and_large_ones_shrunk():
  source = examples(1, 4, 6)
  batch = next(train_iterator(source, size=(5, 8), batch_size=1, seed=0))
  assert batch["size"].tolist() == [[4, 6]]
  assert batch["size"].dtype == np.int32
  assert batch["label"][0, :4, :6].max() == 0
  assert (batch["label"][0, 4:] == IGNORE).all()
  assert (batch["label"][0, :, 6:] == IGNORE).all()
  source = [{"image": np.full((10, 20, 3), 7, np.uint8), "label": np.ones((10, 20), np.uint8)}]
  batch = next(train_iterator(source, size=(8, 8), batch_size=1, seed=0))
  assert batch["size"].tolist() == [[4, 8]]
  assert (batch["image"][0, :4] == 7).all()
  assert (batch["image"][0, 4:] == 0).all()
  assert (batch["label"][0, :4] == 1).all()
  assert (batch["label"][0, 4:] == IGNORE).all()


def test_shrinking_keeps_image_and_label_aligned():
  label = np.zeros((9, 9), np.uint8)
  label[3:6, 3:6] = 1
  image = np.repeat(label[..., None] * 200, 3, -1)
  batch = next(
    train_iterator([{"image": image, "label": label}], size=(3, 3), batch_size=1, seed=0)
  )
  assert batch["label"][0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
  assert (batch["image"][0, ..., 0] == 200 * batch["label"][0]).all()


def test_fit_covers_the_larger_side():
  image = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
  canvas, covered = resize_and_pad(image, (8, 8))
  assert covered == (4, 6)
  np.testing.assert_array_equal(canvas[:4, :6], image)
  canvas, covered = resize_and_pad(np.full((300, 200, 1), 9, np.uint8), (60, 60))
  assert covered == (60, 40)
  assert canvas.shape == (60, 60, 1)
  assert canvas[:, :40].min() == 9
  assert canvas[:, 40:].max() == 0
  assert resize_and_pad(np.ones((1000, 1, 3), np.uint8), (10, 10))[1] == (10, 1)


def test_channels():
  color = np.full((2, 2, 3), (255, 0, 0), np.uint8)
  assert as_channels(color, 1).tolist() == [[[76], [76]]] * 2  # .299 of 255
  gray = np.full((2, 2), 9, np.uint8)
  assert (as_channels(gray, 3) == np.full((2, 2, 3), 9)).all()
  rgba = np.dstack([color, gray])
  np.testing.assert_array_equal(as_channels(rgba, 3), color)
  assert as_channels(rgba, 1).shape == (2, 2, 1)
  with pytest.raises(InputError, match=r"shape \(2, 2, 3\) and type float64 is none"):
    as_channels(color / 255, 3)


def test_gray_networks_get_one_channel():
  source = examples(2, channels=3)
  batch = next(train_iterator(source, size=(4, 6), batch_size=2, seed=0, channels=1))
  assert batch["image"].shape == (2, 4, 6, 1)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("count", "batches"), [(7, 2), (8, 2), (9, 3), (1, 1)])
def test_evaluation_sees_every_example_once(count, batches, processes):
  source = examples(count)
  seen = []
  for p in range(processes):
    walk = eval_batches(
      source, size=(4, 4), label_size=(5, 6), batch_size=4, process_index=p, process_count=processes
    )
    assert len(walk) == batches
    for _ in range(2):  # can be walked again
      taken = list(walk)
      assert len(taken) == batches
    for batch in taken:
      assert batch["image"].shape == (4 // processes, 4, 4, 3)
      for i, index in enumerate(batch["index"]):
        sizes = batch["size"][i].tolist(), batch["label_size"][i].tolist()
        if index < 0:
          assert sizes == ([1, 1], [1, 1])
          assert (batch["label"][i] == IGNORE).all()
        else:
          seen.append(index)
          assert sizes == ([3, 4], [4, 6])
          assert (batch["label"][i, :4] == index).all()
          assert (batch["label"][i, 4:] == IGNORE).all()
          assert (batch["image"][i, :3] == index).all()
  assert sorted(seen) == list(range(count))


def test_impossible_batches():
  with pytest.raises(InputError, match="batch size 6 must be a multiple of the 4 processes"):
    stream(10, 1, batch_size=6, process_count=4)
  with pytest.raises(InputError, match="the training split is empty"):
    stream(0, 1)
  with pytest.raises(InputError, match="channels 4 must be 3"):
    stream(3, 1, channels=4)
