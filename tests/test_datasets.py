"""Published data sets, from archives built here and a server on this machine."""

import dataclasses
import importlib
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from helpers.server import Server
from PIL import Image

from jseg import data
from jseg.cli import main
from jseg.datasets import DATASETS, archive_place, find_dataset, get_dataset
from jseg.datasets.base import Archive, by_md5
from jseg.types import InputError

rng = np.random.default_rng(0)


def png(array):
  file = io.BytesIO()
  Image.fromarray(np.asarray(array, np.uint8)).save(file, "PNG")
  return file.getvalue()


def photo(*size):
  return png(rng.integers(0, 256, (*size, 3)))


def camvid():
  files = {"CamVid/train.txt": b"", "README.md": b""}
  for split in ("train", "val", "test"):
    for i in range(2):
      files[f"CamVid/{split}/{split}{i}.png"] = photo(4, 6)
      mask = np.arange(24).reshape(4, 6) % 12
      files[f"CamVid/{split}annot/{split}{i}.png"] = png(mask)
  return files


def isbi2012():
  files = {"data/membrane/train/aug/image_0_1.png": b""}
  for i in range(30):
    files[f"data/membrane/train/image/{i}.png"] = png(np.full((4, 4), i))
    files[f"data/membrane/train/label/{i}.png"] = png([[0, 255], [255, 0]])
  return files


def dsb2018():
  """Six gray images and one in color; masks of two nuclei each, which overlap in a corner."""
  files = {}
  for i in range(7):
    image = rng.integers(0, 256, (256, 320 if i == 6 else 256, 3))
    image = image if i == 6 else np.repeat(image[..., :1], 3, 2)
    alpha = np.full((*image.shape[:2], 1), 255)
    files[f"stage1_train/n{i}/images/n{i}.png"] = png(np.concatenate([image, alpha], 2))
    for k in range(2):
      mask = np.zeros(image.shape[:2])
      mask[k * 3 : k * 3 + 4, :4] = 255
      files[f"stage1_train/n{i}/masks/{k}.png"] = png(mask)
  for k in range(255):  # more than a mask of 8 bits tells apart
    files[f"stage1_train/many/masks/{k:03}.png"] = b""
  return files


def hippocampus3d():
  names = [f"hippocampus_{i:03}.nii.gz" for i in (*range(1, 130), 281)]
  kinds = ("images", "labels")
  files = {f"data/TrainingSet/{k}/{n}": f"{k} {n}".encode() for k in kinds for n in names}
  return files | {"data/TrainingSet/labels/._hippocampus_001.nii.gz": b""}


def penn_fudan():
  files = {"PedMasks/readme.txt": b""}
  for i in range(5):
    files[f"PNGImages/P{i}.png"] = photo(8, 8)
    files[f"PedMasks/P{i}_mask.png"] = png(np.eye(8) * 2 + np.eye(8)[::-1])
  return files


def voc2012():
  ids = [f"2007_{i:06}" for i in range(352)]
  files = {
    "ImageSets/Segmentation/val.txt": "\n".join(ids).encode(),
    "ImageSets/Main/val.txt": b"",
    "Annotations/2007_000000.xml": b"",
    "SegmentationObject/2007_000000.png": b"",
  }
  for image in ids:
    files[f"JPEGImages/{image}.jpg"] = f"image {image}".encode()
    files[f"SegmentationClass/{image}.png"] = f"mask {image}".encode()
  return files


CONTENTS = {
  make.__name__: make for make in (camvid, isbi2012, dsb2018, hippocampus3d, penn_fudan, voc2012)
}
CONTENTS["voc2012_subset"] = voc2012


def pack(name):
  """An archive as the publisher packs it."""
  inside, file = find_dataset(name).inside, io.BytesIO()
  content = {f"{inside}{path}": blob for path, blob in CONTENTS[name]().items()}
  if find_dataset(name).url.endswith(".tar"):
    with tarfile.open(fileobj=file, mode="w") as archive:
      for path, blob in content.items():
        info = tarfile.TarInfo(path)
        info.size = len(blob)
        archive.addfile(info, io.BytesIO(blob))
  else:
    with zipfile.ZipFile(file, "w") as archive:
      archive.writestr(inside, b"")
      for path, blob in content.items():
        archive.writestr(path, blob)
  return file.getvalue()


def change(monkeypatch, name, **values):
  """Changes what is known of a data set."""
  module, _, attribute = DATASETS[name].partition(":")
  changed = dataclasses.replace(find_dataset(name), **values)
  monkeypatch.setattr(importlib.import_module(module), attribute, changed)


@pytest.fixture
def publish(monkeypatch, tmp_path):
  """Publishes an archive on this machine."""
  server = Server()
  monkeypatch.delenv("http_proxy", raising=False)
  monkeypatch.setenv("JSEG_CACHE", str(tmp_path / "cache"))

  def publish(name, blob=None, **values):
    path = find_dataset(name).url.rpartition("/")[2]
    server.files[f"/{path}"] = pack(name) if blob is None else blob
    values = {"url": f"{server.url}/{path}", "sha256": "", "content": "", **values}
    change(monkeypatch, name, **values)
    return tmp_path / "out"

  yield publish
  server.close()


def read(path):
  return np.asarray(Image.open(path))


def names(folder):
  return sorted(path.name.partition(".")[0] for path in folder.iterdir())


@pytest.mark.parametrize("name", DATASETS)
def test_every_one_is_described_and_written(publish, name, tmp_path):
  dataset = find_dataset(name)
  for text in (dataset.title, dataset.license, dataset.cite, dataset.url):
    assert text
  assert 50 <= dataset.megabytes <= 2000
  out = publish(name)
  get_dataset(name, out)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out"]
  assert archive_place(name).is_file()


def test_camvid(publish):
  out = publish("camvid")
  get_dataset("camvid", out)
  assert names(out) == ["classes", "test", "train", "val"]
  mask = read(out / "val/masks/val1.png")
  np.testing.assert_array_equal(mask.ravel(), [*range(11), 255] * 2)
  assert data.ClassInfo.load(out / "classes.json").names[7:9] == ("fence", "car")
  assert not data.check_folder(out).problems


def test_isbi2012(publish):
  out = publish("isbi2012")
  get_dataset("isbi2012", out)
  assert names(out / "train/images") == [f"slice_{i:02}" for i in range(24)]
  assert names(out / "val/masks") == [f"slice_{i}" for i in range(24, 30)]
  assert read(out / "train/images/slice_07.png").tolist() == [[7] * 4] * 4  # 7, not the 7th name
  assert read(out / "val/masks/slice_29.png").tolist() == [[0, 1], [1, 0]]


def test_dsb2018(publish):
  out = publish("dsb2018")
  get_dataset("dsb2018", out)
  gray = by_md5(f"n{i}" for i in range(6))
  assert names(out / "val/images") == [gray[4]]
  assert names(out / "train/images") == sorted([*gray[:4], gray[5], "n6"])
  assert read(out / f"train/images/{gray[0]}.png").shape == (256, 256)
  assert read(out / "train/images/n6.png").shape == (256, 320, 3)
  ids = read(out / f"val/masks/{gray[4]}.png")
  assert ids[:8, 0].tolist() == [1, 1, 1, 2, 2, 2, 2, 0]
  assert data.ClassInfo.load(out / "classes.json").instance


def test_hippocampus3d(publish):
  out = publish("hippocampus3d")
  get_dataset("hippocampus3d", out)
  files = [f"hippocampus_{i:03}.nii.gz" for i in range(1, 130) if i != 10]
  files = by_md5(files)
  assert names(out / "train/images") == sorted(n.partition(".")[0] for n in files[:90])
  assert names(out / "val/masks") == sorted(n.partition(".")[0] for n in files[90:120])
  name = files[100]
  assert (out / "val/masks" / name).read_bytes() == f"labels {name}".encode()


def test_penn_fudan(publish):
  out = publish("penn_fudan")
  get_dataset("penn_fudan", out)
  assert names(out / "val/images") == ["P4"]
  assert np.unique(read(out / "train/masks/P0.png")).tolist() == [0, 1, 2]
  assert not data.check_folder(out).problems


def test_voc2012(publish):
  out = publish("voc2012")
  get_dataset("voc2012", out)
  root = out / "VOCdevkit/VOC2012"
  assert names(root) == ["ImageSets", "JPEGImages", "SegmentationClass", "SegmentationObject"]
  assert len(names(root / "JPEGImages")) == 352
  assert [p.name for p in (root / "ImageSets").iterdir()] == ["Segmentation"]


def test_voc2012_subset(publish):
  out = publish("voc2012_subset")
  get_dataset("voc2012_subset", out)
  ids = by_md5(f"2007_{i:06}" for i in range(352))
  assert names(out / "train/images") == sorted(ids[:250])
  assert names(out / "val/masks") == sorted(ids[250:350])
  assert (out / f"val/masks/{ids[300]}.png").read_bytes() == f"mask {ids[300]}".encode()
  palette = json.loads((out / "classes.json").read_text())["palette"]
  assert palette[15] == [192, 128, 128]  # person, as in VOC's colormap


def test_what_was_published_is_told_from_something_else(publish, tmp_path):
  out = publish("isbi2012", content="0" * 64)
  with pytest.raises(InputError, match="60 files aren't those that were published"):
    get_dataset("isbi2012", out)
  assert [p.name for p in tmp_path.iterdir()] == ["cache"]  # nothing half
  with Archive(archive_place("isbi2012"), find_dataset("isbi2012").inside) as archive:
    for name in archive.names("data/membrane/train/image/", ".png"):
      archive.read(name)
      archive.read(name.replace("image", "label"))
    publish("isbi2012", content=archive.digest())
  get_dataset("isbi2012", out)


@pytest.mark.parametrize("name", ["isbi2012", "voc2012_subset"])
@pytest.mark.parametrize("blob", [b"", b"<html>", None])
def test_a_damaged_archive(publish, tmp_path, name, blob):
  out = publish(name, pack(name)[:3000] if blob is None else blob)
  with pytest.raises(InputError, match=r"can't be read .*; remove it to download it anew"):
    get_dataset(name, out)
  assert not out.exists()


def test_an_archive_that_lacks_a_file(publish, monkeypatch):
  files = isbi2012()
  del files["data/membrane/train/label/5.png"]
  monkeypatch.setitem(CONTENTS, "isbi2012", lambda: files)
  out = publish("isbi2012")
  with pytest.raises(InputError, match=r"label/5\.png"):
    get_dataset("isbi2012", out)


def test_no_folder_is_overwritten(publish):
  out = publish("camvid")
  out.mkdir()
  (out / "mine.txt").write_text("1")
  with pytest.raises(InputError, match="is there already"):
    get_dataset("camvid", out)
  (out / "mine.txt").unlink()
  get_dataset("camvid", out)


def test_no_room(publish, monkeypatch):
  out = publish("camvid", megabytes=1 << 40)
  with pytest.raises(InputError, match="MB left, and CamVid"):
    get_dataset("camvid", out)


def test_unknown_names():
  for name in ("cityscape", "os:path"):
    with pytest.raises(InputError, match=r"choose from camvid, isbi2012"):
      find_dataset(name)


def test_the_command(publish, monkeypatch, tmp_path, capsys):
  main(["get-data"])
  listed = capsys.readouterr().out
  assert all(name in listed for name in DATASETS)
  publish("isbi2012")
  monkeypatch.chdir(tmp_path)
  main(["get-data", "isbi2012"])
  printed = capsys.readouterr()
  assert "license data of a challenge" in printed.err
  assert "jseg train --config=unet_isbi2012 --config.data.root=isbi2012" in printed.out
  assert (tmp_path / "isbi2012/classes.json").is_file()
