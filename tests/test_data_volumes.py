"""Volumes: NIfTI files of every kind, their preparation, and their batches."""

import json
import math
import os
import pathlib
import sys

import nibabel
import numpy as np
import pytest
from helpers.files import printed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import jseg.config
from jseg import data
from jseg.collection import find_inputs
from jseg.data import VolumePreparation
from jseg.data.files.nifti import Volume, read_mask_file
from jseg.data.files.preparation import resample, resample_nnunet
from jseg.data.patches import cut_patch, is_about_foreground
from jseg.data.sources.volumes import volumes_source
from jseg.record import describe_source
from jseg.types import IGNORE, InputError

SIZE = (5, 4, 3)  # x, y, z
GOLDEN = pathlib.Path(__file__).parent / "golden" / "nnunet.npz"


def save(path, array, affine=None, **header):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = nibabel.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else affine)
  for key, value in header.items():
    image.header[key] = value
  nibabel.save(image, path)


def add_pair(folder, name, image=None, mask=None, affine=None):
  rng = np.random.default_rng(len(name))
  image = rng.normal(100, 20, SIZE).astype(np.float32) if image is None else image
  mask = np.zeros(np.shape(image)[:3], np.uint8) if mask is None else mask
  save(folder / "images" / f"{name}.nii.gz", image, affine)
  save(folder / "masks" / f"{name}.nii.gz", mask, affine)


def add_classes(root, **content):
  root.mkdir(parents=True, exist_ok=True)
  (root / "classes.json").write_text(json.dumps({"classes": ["a", "b"], **content}))


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "set"
  add_classes(root)
  for split, names in {"train": ("one", "three"), "val": ("seven",)}.items():
    for name in names:
      add_pair(root / split, name)
  return root


def load_one(root, split="train", index=0):
  return volumes_source(root).splits[split][index].load()


def standard(array):
  return (array - array.mean()) / array.std()


# Reading.


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_orientation_becomes_z_y_x_of_ras(codes, tmp_path):
  """The same scan, stored along any axes, is the same array; and so is its mask."""
  rng = np.random.default_rng(0)
  scan, labels = rng.normal(size=SIZE).astype(np.float32), rng.integers(0, 2, SIZE).astype(np.uint8)
  affine = np.array([[2, 0.1, 0, 5], [0.1, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
  turn = nibabel.orientations.ornt_transform(
    nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
  )
  add_classes(tmp_path)
  for kind, array in (("images", scan), ("masks", labels)):
    turned = nibabel.Nifti1Image(array, affine).as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    path = tmp_path / "train" / kind / "one.nii.gz"
    path.parent.mkdir(parents=True)
    nibabel.save(turned, path)
  example = load_one(tmp_path)
  assert example.size == (3, 4, 5)
  np.testing.assert_allclose(example.image[..., 0], standard(scan).transpose(2, 1, 0), atol=2e-3)
  np.testing.assert_array_equal(example.label, labels.transpose(2, 1, 0))
  image = tmp_path / "train" / "images" / "one.nii.gz"
  np.testing.assert_allclose(data.read_volume(image), example.image, atol=2e-3)
  # A prediction goes back to where the scan came from.
  data.write_mask(tmp_path / "out.nii.gz", example.label, image)
  out, mask = (
    nibabel.load(p) for p in (tmp_path / "out.nii.gz", tmp_path / "train" / "masks" / "one.nii.gz")
  )
  np.testing.assert_array_equal(np.asarray(out.dataobj), np.asarray(mask.dataobj))
  np.testing.assert_allclose(out.affine, mask.affine, atol=1e-6)
  with pytest.raises(InputError, match=r"a mask of 5 wide x 4 high x 2 deep is not for"):
    data.write_mask(tmp_path / "out.nii.gz", example.label[1:], image)


@pytest.mark.parametrize(
  "dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8", ">i2", ">f4"]
)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_label_volume_comes_back_identical(dtype, data, tmp_path_factory):
  """In every type, version and orientation, packed or not."""
  shape = data.draw(arrays.array_shapes(min_dims=3, max_dims=3, max_side=5))
  labels = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 3)))
  kind = data.draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]))
  codes = data.draw(st.sampled_from(["RAS", "LPS", "PIR", "SAL", "AIL"]))
  image = kind(labels.transpose(2, 1, 0).astype(dtype), np.eye(4), dtype=dtype)
  orientations = map(nibabel.orientations.axcodes2ornt, ("RAS", codes))
  path = tmp_path_factory.mktemp("set") / f"x.{data.draw(st.sampled_from(['nii', 'nii.gz']))}"
  nibabel.save(image.as_reoriented(nibabel.orientations.ornt_transform(*orientations)), path)
  np.testing.assert_array_equal(read_mask_file(path).array, labels)


def test_by_hand_x_runs_along_the_last_axis(tmp_path):
  scan = np.zeros(SIZE, np.float32)
  scan[4, 0, 1] = 1  # x 4, y 0, z 1
  save(tmp_path / "a.nii", scan)
  volume = data.read_volume(tmp_path / "a.nii")
  assert volume.shape == (3, 4, 5, 1)
  assert np.unravel_index(volume.argmax(), volume.shape) == (1, 0, 4, 0)
  # One of 60 voxels is 1: its distance from the mean is sqrt(59) standard deviations.
  assert volume.max() == pytest.approx(np.sqrt(59), rel=1e-5)


def test_channels_are_normalized_one_by_one(tmp_path):
  rng = np.random.default_rng(0)
  scan = np.stack([rng.normal(1000, 50, SIZE), rng.normal(-3, 0.1, SIZE), np.full(SIZE, 0.1)], -1)
  save(tmp_path / "a.nii.gz", scan)
  volume = data.read_volume(tmp_path / "a.nii.gz")
  assert volume.shape == (3, 4, 5, 3)
  for c in range(2):
    np.testing.assert_allclose(volume[..., c], standard(scan[..., c]).transpose(2, 1, 0), atol=1e-4)
  assert not volume[..., 2].any()  # constant
  save(tmp_path / "b.nii.gz", scan[:, :, :, None])  # NIfTI's vectors
  np.testing.assert_array_equal(data.read_volume(tmp_path / "b.nii.gz"), volume)


def test_integers_are_scaled(tmp_path):
  array = np.arange(60, dtype=np.int16).reshape(SIZE)
  image = nibabel.Nifti1Image(array, np.eye(4))
  image.header.set_slope_inter(-0.5, 7)
  nibabel.save(image, tmp_path / "a.nii")
  volume = data.read_volume(tmp_path / "a.nii")[..., 0]
  np.testing.assert_allclose(volume, -standard(array).transpose(2, 1, 0), atol=1e-5)


def test_void_and_values(root):
  add_classes(root, ignore_label=9, mask_values=[3, 7])
  mask = np.full(SIZE, 9, np.float32)  # sparse annotation: one slice; floats, as some tools write
  mask[:, :, 1] = 3
  mask[2, 0, 1] = 7
  add_pair(root / "train", "one", mask=mask)
  example = load_one(root)
  assert example.label.dtype == np.uint8
  assert example.label[1, 0].tolist() == [0, 0, 1, 0, 0]
  assert (example.label[[0, 2]] == IGNORE).all()
  assert example.counts[[0, 1, IGNORE]].tolist() == [19, 1, 40]


def test_a_mask_may_have_a_last_axis_of_one(root):
  add_pair(root / "train", "one", mask=np.ones((*SIZE, 1), np.uint8))
  assert load_one(root).label.min() == 1


def shift(amount):
  affine = np.eye(4)
  affine[0, 3] = amount
  return affine


def test_rounded_affines_agree(root):
  save(root / "train" / "masks" / "one.nii.gz", np.zeros(SIZE, np.uint8), shift(0.4))
  load_one(root)


MASK = "train/masks/one.nii.gz"
IMAGE = "train/images/one.nii.gz"


@pytest.mark.parametrize(
  ("file", "content", "kind", "message"),
  [
    (
      MASK,
      (np.zeros((5, 4, 2), np.uint8),),
      "size",
      r"5 wide x 4 high x 2 deep, but its image .*5 w",
    ),
    (MASK, (np.zeros(SIZE, np.uint8), shift(2)), "size", r"places it 2 voxels away from its image"),
    (
      MASK,
      (np.full(SIZE, 2, np.uint8),),
      "values",
      r"value 2 \(60 pixels\) of no class; 2",
    ),
    (MASK, (np.full(SIZE, -1, np.int16),), "values", r"value -1 \(60 pixels\) of no class"),
    (MASK, (np.full(SIZE, 0.5, np.float32),), "values", r"value 0\.5 is no whole number \(60 vox"),
    (MASK, (np.zeros((*SIZE, 2), np.uint8),), "layout", r"shape \(5, 4, 3, 2\)\. A mask has 3"),
    (IMAGE, (np.zeros((5, 4), np.float32),), "layout", r"shape \(5, 4\)\. An image has 3 axes"),
    (IMAGE, (np.full(SIZE, np.nan, np.float32),), "values", r"60 values are infinite or no number"),
    (IMAGE, b"", "unreadable", r"damaged or no NIfTI file"),
    (IMAGE, b"nonsense" * 100, "unreadable", r"damaged or no NIfTI file"),
    (IMAGE, 150, "unreadable", r"damaged or no NIfTI file"),
  ],
)
def test_what_is_wrong_with_a_file_is_named(root, file, content, kind, message):
  path = root / file
  if isinstance(content, tuple):
    save(path, *content)
  else:
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
  with pytest.raises(data.FileError, match=message) as error:
    load_one(root)
  assert (error.value.file, error.value.kind) == (str(path), kind)
  # The check finds the same, and preparation stops at it.
  problems = data.check_folder(root).problems
  assert [(problem.file, problem.kind) for problem in problems] == [(str(path), kind)]
  with pytest.raises(InputError, match=message):
    data.load("volumes", root=root, data_dir=root / "prepared")


def test_nibabel_is_asked_for(root, monkeypatch):
  monkeypatch.setitem(sys.modules, "nibabel", None)
  with pytest.raises(InputError, match=r'pip install "nibabel>='):
    data.load("volumes", root=root)


# The folder.


def test_a_plain_folder_is_split(tmp_path):
  add_classes(tmp_path)
  for i in range(5):
    add_pair(tmp_path, f"scan.{i}")
  source = volumes_source(tmp_path, {"train": 0.6, "test": 0.4})
  assert {split: len(pairs) for split, pairs in source.splits.items()} == {"train": 3, "test": 2}
  names = sorted(pair.name for pairs in source.splits.values() for pair in pairs)
  assert names == [f"scan.{i}" for i in range(5)]


def test_problems_of_the_folder(root):
  (root / "val" / "masks" / "seven.nii.gz").unlink()
  save(root / "train" / "images" / "three.nii", np.zeros(SIZE, np.float32))
  save(root / "train" / "images" / "one.nii.gz", np.ones((*SIZE, 2), np.float32))
  for name in ("five", "fifth"):
    add_pair(root / "train", name)
  found = {(pathlib.Path(p.file).name, p.problem) for p in volumes_source(root).problems}
  assert ("seven.nii.gz", "has no mask of the same name") in found
  assert ("one.nii.gz", "has 2 channels, but most images have 1") in found
  assert any(problem.endswith("three.nii has the same name") for _, problem in found)
  assert len(found) == 3
  with pytest.raises(InputError, match="has no mask of the same name"):
    data.load("volumes", root=root, data_dir=root / "prepared")


def test_volumes_are_not_a_folder_of_images(root):
  with pytest.raises(InputError, match=r'holds volumes: give "volumes" as data\.name'):
    data.load("folder", root=root)
  add_classes(root, task="instance")
  with pytest.raises(InputError, match='"instance" is not for volumes; choose'):
    data.load("volumes", root=root)


def test_the_check_counts_and_shows(root, tmp_path):
  mask = np.zeros(SIZE, np.uint8)
  mask[:, 2:, 1] = 1  # the front half of the middle slice
  add_pair(root / "val", "seven", mask=mask)
  report = data.check_folder(root)
  assert [problem.kind for problem in report.problems] == ["one class"]  # of the training split
  assert report.splits["train"].sizes == {(3, 4, 5): 2}
  assert report.splits["train"].pixels[:2].tolist() == [120, 0]
  assert report.splits["val"].pixels[:2].tolist() == [50, 10]
  text = printed(report)
  assert "sizes (width x height x depth)" in text
  assert "5x4x3 (2)" in text
  assert "5x4x3 (1)" in text
  assert data.contact_sheet(root, tmp_path / "sheet.png")
  sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
  red = sheet[:212, :, 0] - sheet[:212, :, 1] > 50  # class 1 is red: the third tile's upper half
  third = red[8:212, 536:792]
  assert third[:100].mean() > 0.95
  assert third[104:].sum() == red[:, :528].sum() == 0


# Preparation.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Three volumes, of which two have other sizes, with two channels."""
  base = tmp_path_factory.mktemp("prepared")
  root = base / "set"
  add_classes(root)
  rng = np.random.default_rng(0)
  for i, size in enumerate([(5, 4, 3), (3, 6, 2), (5, 4, 3)]):
    add_pair(root / "train", f"{i}", rng.normal(size=(*size, 2)), np.full(size, i % 2, np.uint8))
  mask = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) // 7
  add_pair(root / "val", "v", rng.normal(size=(2, 2, 2, 2)), mask)
  return root, base / "out", data.load("volumes", root=root, data_dir=base / "out")


def test_examples_come_back(prepared):
  root, _, dataset = prepared
  assert dataset.ndim == 3
  assert dataset.splits == {"train": 3, "val": 1}
  assert dataset.max_size("train") == (3, 6, 5)
  assert dataset.max_size("val") == (2, 2, 2)
  assert dataset.pixel_counts("train").tolist() == [120, 36]
  source = dataset.source("train")
  for _ in range(2):  # decoded, then kept
    example = source[1]
    assert example["name"] == "1"
    assert example["image"].dtype == np.float32
    stored = data.read_volume(root / "train" / "images" / "1.nii.gz")
    np.testing.assert_allclose(example["image"], stored, rtol=2**-10, atol=1e-7)
    np.testing.assert_array_equal(example["label"], np.ones((2, 6, 3), np.uint8))
    assert example["label"].dtype == np.uint8


def test_preparation_follows_the_content(prepared, capfd):
  root, out, dataset = prepared
  again = data.load("volumes", root=root, data_dir=out)
  assert again.fingerprint == dataset.fingerprint
  assert capfd.readouterr().err == ""
  path = root / "val" / "masks" / "v.nii.gz"
  save(path, np.ones((2, 2, 2), np.uint8))
  changed = data.load("volumes", root=root, data_dir=out)
  assert changed.fingerprint != dataset.fingerprint
  assert changed.pixel_counts("val").tolist() == [0, 8]


# Batches.


def volumes(count, size=(2, 3, 4), channels=1):
  """Example i is filled with i."""
  return [
    {
      "image": np.full((*size, channels), i + 1, np.float32),
      "label": np.full(size, i, np.uint8),
    }
    for i in range(count)
  ]


def iterator(source, **changes):
  options = {"size": (3, 3, 6), "batch_size": 2, "seed": 0, "channels": 1} | changes
  return data.train_iterator(source, **options)


def test_training_batches_are_padded_at_the_end():
  batch = next(iterator(volumes(5)))
  assert batch["image"].dtype == np.float32
  assert batch["size"].tolist() == [[2, 3, 4]] * 2
  for image, label in zip(batch["image"], batch["label"], strict=True):
    assert (image[:2, :3, :4] == label[0, 0, 0] + 1).all()
    assert (label[:2, :3, :4] == label[0, 0, 0]).all()
    assert image.sum() == 24 * (label[0, 0, 0] + 1)
    assert (label == IGNORE).sum() == 54 - 24
    assert image.shape == (*label.shape, 1) == (3, 3, 6, 1)


def test_training_resumes_exactly():
  first = iterator(volumes(5))
  for _ in range(4):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  following = [next(first)["label"][:, 0, 0, 0].tolist() for _ in range(6)]
  fresh = iterator(volumes(5))
  fresh.set_state(state)
  assert [next(fresh)["label"][:, 0, 0, 0].tolist() for _ in range(6)] == following


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_volume_once(processes):
  seen = []
  for p in range(processes):
    for batch in data.eval_batches(
      volumes(5, channels=2),
      size=(2, 4, 4),
      label_size=(3, 3, 5),
      batch_size=4,
      channels=2,
      process_index=p,
      process_count=processes,
    ):
      assert batch["image"].shape == (4 // processes, 2, 4, 4, 2)
      assert batch["image"].dtype == np.float32
      for i, index in enumerate(batch["index"]):
        sizes = batch["size"][i].tolist(), batch["label_size"][i].tolist()
        if index < 0:
          assert sizes == ([1, 1, 1], [1, 1, 1])
          assert (batch["label"][i] == IGNORE).all()
        else:
          seen.append(index)
          assert sizes == ([2, 3, 4], [2, 3, 4])
          assert (batch["label"][i] == index).sum() == 24
          assert (batch["label"][i, :2, :3, :4] == index).all()
          assert (batch["image"][i, :, :3] == index + 1).all()
  assert sorted(seen) == list(range(5))


def test_volumes_that_do_not_fit():
  too_small = r"data\.size: \(3, 2, 6\) cannot hold a volume of \(2, 3, 4\).* to \(3, 3, 6\) or"
  with pytest.raises(InputError, match=too_small):
    next(iterator(volumes(2), size=(3, 2, 6)))
  with pytest.raises(InputError, match=too_small):
    data.check_canvas((2, 3, 4), (3, 2, 6))
  data.check_canvas((3, 2, 6), (3, 2, 6))
  with pytest.raises(InputError, match=r"data\.size: \(8, 8\) must be three numbers"):
    next(iterator(volumes(2), size=(8, 8)))
  images = [{"image": np.zeros((4, 4, 1), np.uint8), "label": np.zeros((4, 4), np.uint8)}]
  with pytest.raises(InputError, match=r"data\.size: \(8, 8, 8\) must be two numbers"):
    next(iterator(images, size=(8, 8, 8)))
  with pytest.raises(InputError, match=r"data\.channels: 3, but a volume has 2; set .* to 2"):
    next(iterator(volumes(2, channels=2), channels=3))


# Clipped and resampled.


def volume_of(array, spacing=(1, 1, 1)):
  """A volume [d h w c]; spacing is along d, h and w."""
  return Volume(np.asarray(array, np.float32), np.diag([*spacing[::-1], 1.0]))


def test_values_are_clipped_before_they_are_normalized():
  values = np.array([-1000, -160, 0, 240, 3000], np.float32).reshape(1, 1, 5, 1)
  clipped = np.array([-160, -160, 0, 240, 240])
  image = VolumePreparation(window=(40, 400)).image(volume_of(values))
  np.testing.assert_allclose(image.ravel(), standard(clipped), rtol=1e-5)
  # Each channel by its own percentiles: of 0, 1, ..., 100, the 10th and the 90th.
  ramp = np.arange(101.0).reshape(1, 1, 101, 1)
  both = np.concatenate([ramp, 5 - 2 * ramp], -1)
  image = VolumePreparation(percentiles=(10, 90)).image(volume_of(both))
  np.testing.assert_allclose(image[0, 0, :, 0], standard(np.clip(ramp, 10, 90).ravel()), rtol=1e-5)
  np.testing.assert_allclose(image[..., 1], -image[..., 0], atol=1e-5)


def test_resampling_by_hand():
  # Voxels of 2 mm become two of 1 mm: centers lie a quarter of a voxel to both sides.
  row = np.array([0, 4, 8, 4], np.float32).reshape(1, 1, 4)
  assert resample(row, (1, 1, 8), 1).ravel().tolist() == [0, 1, 3, 5, 7, 7, 5, 4]
  assert resample(row, (1, 1, 8), 0).ravel().tolist() == [0, 0, 4, 4, 8, 8, 4, 4]
  assert resample(row, (1, 1, 2), 1).ravel().tolist() == [2, 6]
  assert resample(row, (3, 1, 4), 3).shape == (3, 1, 4)
  with pytest.raises(InputError, match=r"spacing: .* makes 4 wide x 4 high x 4000000000 deep of"):
    VolumePreparation(spacing=(1e-9, 1, 1)).image(volume_of(np.zeros((4, 4, 4, 1))))
  with pytest.raises(InputError, match=r"spacing: .* as a volume reaches, \(4, 4, 4\) millimeters"):
    VolumePreparation(spacing=(1, 1, 8.1)).image(volume_of(np.zeros((4, 4, 4, 1))))
  slice_ = VolumePreparation(spacing=(8.1, 1, 8)).image(volume_of(np.zeros((1, 4, 4, 1))))
  assert slice_.shape == (1, 4, 1, 1)  # a single slice has no length
  preparation = VolumePreparation(spacing=(2.0, 1.0, 0.5))
  assert preparation.size((10, 7, 5), (1.0, 1.0, 1.0)) == (5, 7, 10)
  assert preparation.size((1, 7, 5), (0.1, 1.0, 1.0)) == (1, 7, 10)
  # Cubic splines go through a smooth wave where lines cut its crests.
  wave = np.sin(np.arange(32) * 0.9).reshape(1, 1, 32).astype(np.float32)
  fine = np.sin(((np.arange(64) + 0.5) / 2 - 0.5) * 0.9)
  errors = [
    np.abs(resample(wave, (1, 1, 64), order).ravel() - fine)[8:-8].max() for order in (1, 3)
  ]
  assert errors[1] < errors[0] / 5


def test_nnunet_resamples_the_same():
  golden = np.load(GOLDEN)
  for i in range(len(golden) // 3):
    volume, spacings, found = (golden[f"{name}{i}"] for name in ("volume", "spacings", "found"))
    preparation = VolumePreparation(spacing=spacings[1].tolist(), interpolation="nnunet")
    assert preparation.size(volume.shape, spacings[0]) == found.shape
    ours = resample_nnunet(volume, found.shape, spacings.tolist())
    np.testing.assert_allclose(ours, found, rtol=1e-5, atol=1e-4)  # of up to 100
    given = volume_of(volume[..., None], spacings[0])
    np.testing.assert_allclose(
      preparation.image(given)[..., 0], standard(found), rtol=1e-4, atol=1e-5
    )


def test_thick_slices_by_hand():
  # Of two slices 9 mm apart become six of 3 mm, three of each, whatever lies beside them.
  volume = np.stack([np.zeros((2, 2)), np.full((2, 2), 8.0)]).astype(np.float32)
  finer = resample_nnunet(volume, (6, 2, 2), ((9, 1, 1), (3, 1, 1)))
  assert finer[:, 0, 0].tolist() == [0, 0, 0, 8, 8, 8]
  # Three times isn't more than three: there the change is smooth, and no value beyond the two.
  smooth = resample_nnunet(volume, (6, 2, 2), ((3, 1, 1), (1, 1, 1)))[:, 0, 0]
  assert (np.diff(smooth) >= 0).all()
  assert 0 <= smooth[0] < smooth[2] < 4 < smooth[3] < smooth[5] <= 8


def test_intensities_by_hand(root):
  # Foreground 0, 1, ..., 99 in one scan and 100 in the other: equal parts, whatever the numbers.
  for name, first, count, mask_value in (("one", 0, 100, 1), ("three", 100, 1, 1)):
    values = np.full((5, 4, 6), -1000.0)
    values.ravel()[:count] = first + np.arange(count)
    mask = np.zeros(values.shape, np.uint8)
    mask.ravel()[:count] = mask_value
    mask.ravel()[-1] = 255  # void, which is no foreground
    add_pair(root / "train", name, values, mask)
  (found,) = data.foreground_intensities(root, voxels=10_000)
  # Half of all is 100; the other half runs evenly from 0 to 99.
  expected = (0.99, 100, 0.5 * 49.5 + 0.5 * 100)
  np.testing.assert_allclose(found[:3], expected, atol=0.05)
  spread = np.sqrt(0.5 * (np.arange(100) ** 2).mean() + 0.5 * 100**2 - expected[2] ** 2)
  assert found[3] == pytest.approx(spread, rel=1e-2)
  # What is done with them: clipped, less the mean, over the deviation; the same for every volume.
  numbers = ((0, 100, 50, 25), (-1, 1, 0, 2))
  both = np.array([[-9.0, 5.0], [25.0, -5.0], [300.0, 0.5]]).reshape(1, 1, 3, 2)
  image = VolumePreparation(intensities=numbers).image(volume_of(both))
  np.testing.assert_allclose(image.reshape(3, 2), [[-2, 0.5], [-1, -0.5], [2, 0.25]])
  with pytest.raises(InputError, match=r"are of 1 channel\(s\), and a volume has 2"):
    VolumePreparation(intensities=numbers[:1]).image(volume_of(both))
  with pytest.raises(InputError, match="no split 'dev'; it has"):
    data.foreground_intensities(root, "dev")
  with pytest.raises(InputError, match="no scan of val has a voxel of another class"):
    data.foreground_intensities(root, "val")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
  labels=arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(0, 3)
  ),
  factors=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_masks_come_back_from_a_finer_grid(labels, factors):
  finer = resample(labels, [n * f for n, f in zip(labels.shape, factors, strict=True)], 0)
  np.testing.assert_array_equal(finer, np.kron(labels, np.ones(factors, np.uint8)))
  np.testing.assert_array_equal(resample(finer, labels.shape, 0), labels)


def test_a_set_is_resampled_and_masks_are_written_on_the_grid_of_their_scan(root, tmp_path):
  affine = np.array([[0, 0, 3, 1], [-1, 0, 0, 2], [0, 1.5, 0, 3], [0, 0, 0, 1.0]])  # turned
  scan, labels = np.zeros((2, *SIZE), np.float32)
  scan[2:, 1:, 1:] = labels[2:, 1:, 1:] = 1
  add_pair(root / "train", "one", scan, labels.astype(np.uint8), affine)
  options = {"spacing": (0.75, 1.0, 1.5), "interpolation": "cubic"}
  dataset = data.load("volumes", root=root, data_dir=tmp_path, options=options)
  assert dataset.fingerprint != data.load("volumes", root=root, data_dir=tmp_path).fingerprint
  example = dataset.source("train")[0]
  # The file's x, 5 voxels of 1 mm, is h; y, 4 of 1.5 mm, d; z, 3 of 3 mm, w.
  assert example["image"].shape == (8, 5, 6, 1)
  assert dataset.max_size("train")[1] == 5
  np.testing.assert_allclose(dataset.spacings("train")[0], (0.75, 1, 1.5))
  image = root / "train" / "images" / "one.nii.gz"
  preparation = VolumePreparation(**options)
  np.testing.assert_allclose(data.read_volume(image, preparation), example["image"], atol=2e-3)
  data.write_mask(tmp_path / "out.nii.gz", example["label"], image, preparation)
  out = nibabel.load(tmp_path / "out.nii.gz")
  np.testing.assert_array_equal(np.asarray(out.dataobj), labels)
  np.testing.assert_allclose(out.affine, affine)
  with pytest.raises(InputError, match="6 wide x 5 high x 8 deep is not for"):
    data.write_mask(tmp_path / "out.nii.gz", example["label"], image)


def test_the_same_preparation_is_the_same_set(root):
  def fingerprint(**options):
    return volumes_source(root, **options).fingerprint()

  assert fingerprint(window=(40, 400)) == fingerprint(window=[40.0, 400.0])
  assert fingerprint(interpolation="cubic") == fingerprint()  # of nothing
  different = [{"window": (40, 400)}, {"percentiles": (1, 99)}, {"spacing": (1, 1, 2)}]
  different += [{}, {"spacing": (1, 1, 2), "interpolation": "cubic"}, {"spacing": (1, 2, 1)}]
  different += [{"intensities": ((0, 1, 0, n),)} for n in (1, 2)]
  assert len({fingerprint(**options) for options in different}) == 8


@pytest.mark.parametrize(
  ("options", "match"),
  [
    ({"window": (40, 0)}, r"window: \(40, 0\) must be \(level, width\) with a width above 0"),
    ({"window": 400}, "window: 400 must"),
    ({"window": (40, math.inf)}, "window"),
    ({"percentiles": (99, 1)}, r"percentiles: \(99, 1\) must be \(low, high\) in ascending order"),
    ({"percentiles": (0, 101)}, "percentiles"),
    ({"window": (0, 1), "percentiles": (0, 99)}, "window and percentiles both clip"),
    ({"spacing": (1.0, 1.0)}, r"spacing: \(1.0, 1.0\) must be three numbers above 0, millimeters"),
    ({"spacing": (1, 0, 1)}, "spacing"),
    ({"spacing": ("1", 1, 1)}, "spacing"),
    ({"interpolation": "spline"}, "interpolation: 'spline' is unknown; choose from linear, cubic"),
    ({"intensities": (1, 2, 3, 4)}, r"intensities: \(1, 2, 3, 4\) must be \(low, high, mean, dev"),
    ({"intensities": ((2, 1, 0, 1),)}, "intensities"),
    ({"intensities": ((0, 1, 0, 0),)}, "intensities"),
    ({"intensities": ((0, 1, 0, 1),), "window": (0, 1)}, "window and intensities both clip"),
  ],
)
def test_impossible_preparations(root, options, match):
  with pytest.raises(InputError, match=match):
    data.load("volumes", root=root, options=options)
  config = jseg.config.default("unet3d")
  config.data.name = "volumes"
  with pytest.raises(InputError, match=f"data.options.{match}"):
    jseg.config.change(config, {f"data.options.{key}": value for key, value in options.items()})


# Channels in several files.


def add_channels(folder, name, count=2, **changes):
  scans = np.random.default_rng(0).normal(size=(count, *SIZE)).astype(np.float32)
  for i, scan in enumerate(scans):
    save(folder / "images" / f"{name}_{i:04d}.nii.gz", scan, **changes)
  save(folder / "masks" / f"{name}.nii.gz", np.zeros(SIZE, np.uint8))
  return scans


def test_channels_in_several_files_are_one_image(root):
  for split, name in (("train", "one"), ("train", "three"), ("val", "seven")):
    (root / split / "images" / f"{name}.nii.gz").unlink()
    scans = add_channels(root / split, name)
  source = volumes_source(root)
  assert source.problems == []
  assert [pair.name for pair in source.splits["train"]] == ["one", "three"]
  image = source.splits["val"][0].load().image
  for c, scan in enumerate(scans):
    np.testing.assert_allclose(image[..., c], standard(scan).transpose(2, 1, 0), atol=2e-3)
  first = root / "val" / "images" / "seven_0000.nii.gz"
  np.testing.assert_allclose(data.read_volume(first, join=True), image, atol=2e-3)
  assert data.read_volume(first).shape[-1] == 1
  # Another second channel is another data set.
  before = source.fingerprint()
  save(root / "val" / "images" / "seven_0001.nii.gz", np.ones(SIZE, np.float32))
  assert volumes_source(root).fingerprint() != before
  suffixes = ("_0000.nii", "_0000.nii.gz", ".nii", ".nii.gz")
  found = find_inputs([root / "train" / "images"], suffixes).files
  assert {n: p.name for n, p in found.items()} == {
    "one": "one_0000.nii.gz",
    "three": "three_0000.nii.gz",
  }
  # A prediction is of all channels.
  before = describe_source(first)
  save(root / "val" / "images" / "seven_0001.nii.gz", np.zeros(SIZE, np.float32))
  assert describe_source(first) != before
  # Of a run with one channel they are four volumes.
  assert len(find_inputs([root / "train" / "images"], suffixes[2:]).files) == 4


def test_numbered_scans_are_no_channels(root):
  for i in range(2):
    add_pair(root / "train", f"scan_{i:04d}")
  names = [pair.name for pair in volumes_source(root).splits["train"]]
  assert names == ["one", "scan_0000", "scan_0001", "three"]


def test_channels_that_do_not_belong_together(root):
  (root / "train" / "images" / "one.nii.gz").unlink()
  add_channels(root / "train", "one", 3)
  middle = root / "train" / "images" / "one_0001.nii.gz"
  save(middle, np.zeros((5, 4, 2), np.float32))
  with pytest.raises(data.FileError, match=r"5 wide x 4 high x 2 deep, but the first channel is"):
    load_one(root)
  save(middle, np.zeros(SIZE, np.float32), shift(2))
  with pytest.raises(data.FileError, match="places it 2 voxels away from the first channel"):
    load_one(root)
  middle.unlink()
  (problem, _) = volumes_source(root).problems  # and another number of channels than most
  assert problem.problem == "its image has channels 0, 2, and others are missing"
  with pytest.raises(data.FileError, match="has channels 0, 2, and others are missing"):
    data.read_volume(root / "train" / "images" / "one_0000.nii.gz", join=True)


# Spacing.


def test_the_spacing_of_voxels_is_kept(root, tmp_path):
  affine = np.array([[0, 0, 3, 1], [-0.7, 0, 0, 2], [0, 1.5, 0, 3], [0, 0, 0, 1]])  # turned
  add_pair(root / "train", "one", affine=affine)
  dataset = data.load("volumes", root=root, data_dir=tmp_path)
  # The file's x runs along the body's y, its y along z, and its z along x.
  np.testing.assert_allclose(dataset.spacings("train"), [(1.5, 0.7, 3), (1, 1, 1)])
  assert len(dataset.spacings("train+val")) == 3


def test_sets_prepared_before_spacing_was_kept_are_read(root, tmp_path):
  data.load("volumes", root=root, data_dir=tmp_path)
  (metadata,) = tmp_path.rglob("metadata.json")
  values = json.loads(metadata.read_text())
  del values["spacings"]
  metadata.write_text(json.dumps(values))
  dataset = data.load("volumes", root=root, data_dir=tmp_path)
  assert dataset.source("train")[0]["image"].shape == (3, 4, 5, 1)
  with pytest.raises(InputError, match=r"written before the spacing .* remove that folder"):
    dataset.spacings("train")


def test_a_source_that_tells_no_spacing(tmp_path):
  class Item:
    name = "a"

    def load(self):
      return data.Example.from_arrays(np.zeros((2, 2, 2, 1)), np.zeros((2, 2, 2), np.uint8))

  classes = data.ClassInfo(("a", "b"))
  source = data.ListedSource(classes, {"train": [Item()]}, lambda: "one", ndim=3)
  with pytest.raises(InputError, match="doesn't tell the spacing of the voxels of its split train"):
    data.load(source, data_dir=tmp_path).spacings("train")


# Patches.


def numbered(shape=(6, 9, 20)):
  """A volume whose voxels are their own numbers, with one voxel of class 1 and eight of class 2."""
  image = np.arange(np.prod(shape), dtype=np.float32).reshape(*shape, 1)
  label = np.zeros(shape, np.uint8)
  label[0, 1, 19], label[4:, 6:8, 7:9], label[2] = 1, 2, IGNORE
  return {"image": image, "label": label, "name": "one"}


def patches(count, size=(4, 4, 6), batch_size=2, source=None, **changes):
  batches = iterator(
    source or [numbered()], size=size, batch_size=batch_size, foreground=1 / 3, **changes
  )
  return [next(batches) for _ in range(count)]


def test_patches_are_parts_of_the_volume_and_differ():
  whole, corners = numbered(), set()
  for batch in patches(20):
    for image, label, size in zip(batch["image"], batch["label"], batch["size"], strict=True):
      corner = np.unravel_index(int(image[0, 0, 0, 0]), whole["label"].shape)
      part = tuple(slice(c, c + n) for c, n in zip(corner, (4, 4, 6), strict=True))
      np.testing.assert_array_equal(image, whole["image"][part])
      np.testing.assert_array_equal(label, whole["label"][part])
      assert size.tolist() == [4, 4, 6]
      corners.add(corner)
  assert len(corners) > 15
  # Every corner that keeps a patch inside can be drawn.
  axes = np.array([*corners]).T
  assert axes.min(1).tolist() == [0, 0, 0]
  assert axes.max(1).tolist() == [2, 5, 14]


def test_every_third_patch_lies_about_a_foreground_voxel():
  whole = numbered((60, 40, 40))  # where chance hits nothing
  patch = {"size": (5, 5, 7), "foreground": 1 / 3, "seed": 3}
  drawn = [cut_patch(place, whole, **patch) for place in range(300)]
  about = [is_about_foreground(place, 1 / 3) for place in range(300)]
  assert about == [False, False, True] * 100
  middles = [d["label"][2, 2, 3] for d, chosen in zip(drawn, about, strict=True) if chosen]
  # Classes alike, however rare: class 1 has one voxel, too near to the border for the middle.
  ones = [(d["label"] == 1).any() for d, chosen in zip(drawn, about, strict=True) if chosen]
  assert middles.count(2) + sum(ones) == 100
  assert 30 < sum(ones) < 70
  assert sum((d["label"] % IGNORE > 0).any() for d in drawn) < 110
  assert not any(is_about_foreground(place, 0) for place in range(9))
  assert all(is_about_foreground(place, 1) for place in range(9))


def test_patches_without_foreground_lie_anywhere():
  whole = numbered()
  whole["label"][:] = 0
  corners = {
    cut_patch(i, whole, size=(2, 2, 2), foreground=1.0, seed=0)["image"][0, 0, 0, 0].item()
    for i in range(20)
  }
  assert len(corners) > 10


def test_volumes_smaller_than_a_patch_are_padded_with_void():
  (batch,) = patches(1, size=(4, 12, 24))
  assert batch["size"].tolist() == [[4, 9, 20]] * 2
  assert (batch["label"][:, :, 9:] == IGNORE).all()
  assert (batch["label"][..., 20:] == IGNORE).all()
  assert not batch["image"][:, :, 9:].any()
  assert batch["image"][0, 0, :9, :20].all()


@pytest.mark.parametrize("processes", [2, 4])
def test_patches_are_the_same_for_any_number_of_processes_and_when_resumed(processes):
  source = [numbered(), numbered((7, 8, 30))]
  expected = patches(4, batch_size=4, source=source)
  parts = [
    patches(4, batch_size=4, source=source, process_index=p, process_count=processes)
    for p in range(processes)
  ]
  for i, batch in enumerate(expected):
    for key in batch:
      np.testing.assert_array_equal(np.concatenate([p[i][key] for p in parts]), batch[key])
  options = {"size": (4, 4, 6), "batch_size": 4, "foreground": 1 / 3}
  first, fresh = iterator(source, **options), iterator(source, **options)
  next(first), next(first)
  fresh.set_state(json.loads(json.dumps(first.get_state())))
  np.testing.assert_array_equal(next(fresh)["image"], expected[2]["image"])
  other = patches(1, batch_size=4, source=source, seed=1)
  assert (other[0]["image"] != expected[0]["image"]).any()


def test_half_precision_is_kept_until_a_patch_is_cut(root, tmp_path):
  source = data.load("volumes", root=root, data_dir=tmp_path).source("train", half=True)
  assert source[0]["image"].dtype == np.float16
  (batch,) = patches(1, size=(2, 2, 2), source=source)
  assert batch["image"].dtype == np.float32


# Real data.


def test_hippocampus(tmp_path):
  root = pathlib.Path(os.environ.get("JSEG_DATA_DIR", "nowhere")) / "hippocampus3d"
  if not root.is_dir():
    pytest.skip("JSEG_DATA_DIR has no hippocampus3d")
  dataset = data.load("volumes", root=root, data_dir=tmp_path)
  assert dataset.splits == {"train": 90, "val": 30}
  shares = dataset.pixel_counts("train+val") / dataset.pixel_counts("train+val").sum()
  np.testing.assert_allclose(shares[1:], [0.027, 0.025], atol=0.0015)
  source = dataset.source("val")
  for i in range(len(source)):
    image, label = source[i]["image"], source[i]["label"]
    assert set(np.unique(label)) == {0, 1, 2}
    assert abs(image.mean()) < 1e-3
    assert image.std() == pytest.approx(1, abs=1e-3)
    # In the body's axes, the anterior part lies to the front (h) of the posterior one.
    front, back = (np.argwhere(label == k)[:, 1].mean() for k in (1, 2))
    assert front > back + 5
