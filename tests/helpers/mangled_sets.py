"""Sets of objects, in COCO's JSON and of volumes, and what can have happened to them."""

import contextlib
import gzip
import json

import nibabel
import numpy as np

from helpers.mangled import CHANGES, SIZE, encode, make_folder, write

JSON = "train/_annotations.coco.json"
VOLUME = (3, 4, 5)  # x, y, z


def make_objects(root, rng):
  """A good folder of cells, whose masks number them."""
  make_folder(root, rng)
  write(root / "classes.json", b'{"classes": ["background", "cell"], "task": "instance"}')


def kinds_of_objects(root, rng):
  content = {"classes": ["background", "cell", "edge"], "task": "instance"}
  write(root / "classes.json", json.dumps(content).encode())
  for path in root.glob("*/masks/*.png"):
    ids = rng.choice([0, 1001, 1002, 2001, 255, 3000], SIZE, p=[0.3, 0.2, 0.2, 0.2, 0.05, 0.05])
    write(path, encode(ids.astype(np.uint16)))


def no_cell(root, rng):
  for path in root.glob(f"{('train', 'val')[rng.integers(2)]}/masks/*"):
    if path.is_file():
      write(path, encode(np.zeros(SIZE, np.uint8)))


# COCO's JSON.


def make_coco(root, rng):
  """A good set of two categories: four images to train on, and two to validate."""
  for split, count in (("train", 4), ("val", 2)):
    rows = []
    for i in range(count):
      write(root / split / f"{i}.png", encode(rng.integers(0, 256, (*SIZE, 3), np.uint8)))
      x, y = rng.integers(0, 3, 2).tolist()
      outline = [x, y, x + 2, y, x + 2, y + 3, x, y + 3]
      row = {"id": i, "image_id": i, "category_id": 1 + i % 2, "segmentation": [outline]}
      rows.append({**row, "bbox": [x, y, 2, 3], "area": 6, "iscrowd": 0})
    images = [
      {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(count)
    ]
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "edge"}]
    content = {"images": images, "annotations": rows, "categories": categories}
    write(root / split / "_annotations.coco.json", json.dumps(content).encode())


@contextlib.contextmanager
def _content(root):
  """What is in the JSON file, to be changed, unless the file is broken already."""
  try:
    content = json.loads((root / JSON).read_bytes())
  except ValueError:
    yield {}
    return
  yield content
  write(root / JSON, json.dumps(content).encode())


def _changing(part, key, *values):
  """A change of one row of the JSON file to one of some values."""

  def change(root, rng):
    with _content(root) as content:
      if rows := content.get(part):
        rows[rng.integers(len(rows))][key] = values[rng.integers(len(values))]

  change.__name__ = f"{part}_{key}"
  return change


def all_crowds(root, rng):
  with _content(root) as content:
    content["annotations"] = [{**row, "iscrowd": 1} for row in content.get("annotations", ())]


def no_annotation(root, rng):
  with _content(root) as content:
    content["annotations"] = []


def cut_json(root, rng):
  write(root / JSON, (root / JSON).read_bytes()[:-30])


def other_categories(root, rng):
  with _content(root) as content:
    content["categories"] = content.get("categories", [])[:1]


def no_image(root, rng):
  (root / "train" / "0.png").unlink(missing_ok=True)


def cut_image(root, rng):
  write(root / "train" / "1.png", b"\x89PNG\r\n\x1a\n")


def hidden_json(root, rng):
  write(root / "train" / "._annotations.coco.json", b"\0\5\x16\7")


COCO_CHANGES = [
  _changing("annotations", "segmentation", [], [[0, 0, 1, 1]], [[9, 9, 8, 8, 9, 8]], None, "x"),
  _changing("annotations", "segmentation", {"size": [7, 5], "counts": [5, 5, 25]}, {"counts": [1]}),
  _changing("annotations", "bbox", None, [0, 0, 0, 0], [99, 99, 1, 1], "x"),
  _changing("annotations", "category_id", 3, "1", 1.0, None, [1]),
  _changing("annotations", "image_id", 77, "1", {"a": 1}),
  _changing("annotations", "iscrowd", 1, "0", None, 7),
  _changing("annotations", "area", 0, -1, 1e300, None),
  _changing("images", "file_name", "gone.png", "../val/0.png", "train\\2.png", 5),
  _changing("images", "height", None, 0, "7", 8),
  _changing("images", "id", 2, "x", None),
  all_crowds,
  no_annotation,
  cut_json,
  other_categories,
  no_image,
  cut_image,
  hidden_json,
]


# Volumes.


def _save(path, array, affine=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def make_volumes(root, rng):
  """A good set of three classes: two volumes to train on, and one to validate."""
  write(root / "classes.json", b'{"classes": ["background", "cell", "edge"]}')
  for split, count in (("train", 2), ("val", 1)):
    for i in range(count):
      _save(root / split / "images" / f"{i}.nii.gz", rng.normal(size=VOLUME).astype(np.float32))
      _save(root / split / "masks" / f"{i}.nii.gz", rng.integers(0, 3, VOLUME, np.uint8))


def _scan(root, rng, kind):
  files = sorted(root.glob(f"train/{kind}/*.nii*"))
  return files[rng.integers(len(files))]


def _mask_of(name, make, affine=None):
  """A change of a mask to another array."""

  def change(root, rng):
    _save(_scan(root, rng, "masks"), make(rng), affine)

  change.__name__ = name
  return change


def cut_scan(root, rng):
  path = _scan(root, rng, ("images", "masks")[rng.integers(2)])
  write(path, path.read_bytes()[: int(rng.integers(1, 200))])


def no_scan(root, rng):
  _scan(root, rng, ("images", "masks")[rng.integers(2)]).unlink()


def empty_axis(root, rng):
  path = _scan(root, rng, ("images", "masks")[rng.integers(2)])
  data = bytearray(gzip.decompress(path.read_bytes()))
  data[42:44] = b"\0\0"
  write(path, gzip.compress(bytes(data)))


def two_channels(root, rng):
  _save(_scan(root, rng, "images"), rng.normal(size=(*VOLUME, 2)).astype(np.float32))


def no_number(root, rng):
  _save(_scan(root, rng, "images"), np.full(VOLUME, np.nan, np.float32))


def constant(root, rng):
  _save(_scan(root, rng, "images"), np.ones(VOLUME, np.float32))


def unpacked(root, rng):
  path = _scan(root, rng, "images")
  data = gzip.decompress(path.read_bytes())
  path.unlink()
  write(path.with_name(f"{path.name[0]}.NII"), data)


def picture(root, rng):
  write(root / "train" / "images" / "preview.png", encode(np.zeros(SIZE, np.uint8)))


def void_everywhere(root, rng):
  for path in root.glob(f"{('train', 'val')[rng.integers(2)]}/masks/*"):
    _save(path, np.full(VOLUME, 255, np.uint8))


VOLUME_CHANGES = [
  _mask_of("other_shape", lambda rng: rng.integers(0, 3, (3, 4, 6), np.uint8)),
  _mask_of("unknown", lambda rng: rng.integers(0, 9, VOLUME, np.uint8)),
  _mask_of("halves", lambda rng: rng.integers(0, 5, VOLUME) / 2),
  _mask_of("whole_floats", lambda rng: rng.integers(0, 3, VOLUME).astype(np.float32)),
  _mask_of("four_axes", lambda rng: rng.integers(0, 3, (*VOLUME, 2), np.uint8)),
  _mask_of("far_away", lambda rng: rng.integers(0, 3, VOLUME, np.uint8), np.diag([1, 1, 3, 1])),
  cut_scan,
  no_scan,
  empty_axis,
  two_channels,
  no_number,
  constant,
  unpacked,
  picture,
  void_everywhere,
]

SETS = {
  "objects": (make_objects, [*CHANGES, *[kinds_of_objects, no_cell] * 5]),
  "coco": (make_coco, COCO_CHANGES),
  "volumes": (make_volumes, VOLUME_CHANGES),
}
"""By kind: what makes a good set, and what can happen to it."""
