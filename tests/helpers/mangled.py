"""Folders of images and masks, and everything that can have happened to them."""

import io
import json
import unicodedata

import numpy as np
from PIL import Image

SIZE = (7, 5)  # height, width


def write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def encode(array, kind="PNG", mode=None, **options):
  image = array if isinstance(array, Image.Image) else Image.fromarray(array, mode)
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def indexed(labels, colors, bits=8):
  """An indexed PNG; colors[i] is what index i shows."""
  image = Image.fromarray(labels.astype(np.uint8), "P")
  image.putpalette(np.asarray(colors, np.uint8).ravel().tolist())
  return encode(image, bits=bits)


def exif(orientation):
  tags = Image.Exif()
  tags[0x0112] = orientation
  return tags


def make_folder(root, rng, size=SIZE):
  """A good folder of three classes: four pairs to train on, and two to validate."""
  content = {"classes": ["background", "cell", "edge"]}
  write(root / "classes.json", json.dumps(content).encode())
  for split, count in (("train", 4), ("val", 2)):
    for i in range(count):
      image = rng.integers(0, 256, (*size, 3), np.uint8)
      write(root / split / "images" / f"{split}_{i}.png", encode(image))
      mask = rng.integers(0, 3, size, np.uint8)
      write(root / split / "masks" / f"{split}_{i}.png", encode(mask))


def mangle(root, rng):
  """Does one random thing to the folder and returns its name."""
  change = CHANGES[rng.integers(len(CHANGES))]
  change(root, rng)
  return change.__name__


def _pick(root, rng, kind="masks"):
  files = sorted(path for path in root.glob(f"*/{kind}/**/*") if path.is_file())
  return files[rng.integers(len(files))] if files else root / "train" / kind / "none.png"


def _labels(rng):
  return rng.integers(0, 3, SIZE, np.uint8)


def nothing(root, rng):
  """Leaves it as it is."""


def cut(root, rng):
  path = _pick(root, rng, ("images", "masks")[rng.integers(2)])
  write(path, path.read_bytes()[:40] if path.exists() else b"")


def emptied(root, rng):
  write(_pick(root, rng, "images"), b"")


def lone(root, rng):
  _pick(root, rng, ("images", "masks")[rng.integers(2)]).unlink(missing_ok=True)


def low_depth(root, rng):
  write(_pick(root, rng), indexed(_labels(rng), [[0] * 3, [85] * 3, [170] * 3], bits=2))


def gray_pgm(root, rng):
  path = _pick(root, rng)
  body = b"P5 5 7 2\n" + _labels(rng).tobytes()
  path.unlink(missing_ok=True)
  write(path.with_suffix(".pgm"), body)


def palette_of_its_own(root, rng):
  write(_pick(root, rng), indexed(_labels(rng), rng.integers(0, 256, (3, 3))))


def colors_named(root, rng):
  content = {"classes": ["background", "cell", "edge"], "palette": rng.integers(0, 256, (3, 3))}
  content["palette"] = content["palette"].tolist()
  write(root / "classes.json", json.dumps(content).encode())
  order = rng.permutation(3)
  for path in sorted(root.glob("*/masks/*.png")):
    if rng.random() < 0.8 and path.is_file():
      write(path, indexed(_labels(rng), np.array(content["palette"])[order]))


def color_mask(root, rng):
  write(_pick(root, rng), encode(np.repeat(_labels(rng)[..., None], 3, -1)))


def sixteen_bits(root, rng):
  kind = ("images", "masks")[rng.integers(2)]
  write(_pick(root, rng, kind), encode(_labels(rng).astype(np.uint16)))


def floats(root, rng):
  values = _labels(rng) + (0.25 if rng.random() < 0.5 else 1e-6)
  path = _pick(root, rng)
  path.unlink(missing_ok=True)
  write(path.with_suffix(".tif"), encode(values.astype(np.float32), "TIFF"))


def zero_is_white(root, rng):
  path = _pick(root, rng)
  path.unlink(missing_ok=True)
  write(path.with_suffix(".TIFF"), encode(_labels(rng), "TIFF", tiffinfo={262: 0}))


def lossy(root, rng):
  write(_pick(root, rng), encode(_labels(rng), ("JPEG", "WEBP", "AVIF")[rng.integers(3)]))


def turned(root, rng):
  image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
  write(_pick(root, rng, "images"), encode(image, exif=exif(int(rng.integers(2, 9)))))


def mask_turned(root, rng):
  write(_pick(root, rng), encode(_labels(rng), exif=exif(int(rng.integers(2, 9)))))


def other_size(root, rng):
  write(_pick(root, rng), encode(_labels(rng)[1:]))


def unknown_value(root, rng):
  write(_pick(root, rng), encode(_labels(rng) + 5))


def void(root, rng):
  for path in root.glob(f"{('train', 'val')[rng.integers(2)]}/masks/*"):
    if path.is_file():
      write(path, encode(np.full(SIZE, 255, np.uint8)))


def one_class(root, rng):
  for path in root.glob("train/masks/*"):
    if path.is_file():
      write(path, encode(np.full(SIZE, 1, np.uint8)))


def binary(root, rng):
  write(root / "classes.json", b'{"classes": ["background", "cell"]}')
  for path in root.glob("*/masks/*"):
    if path.is_file():
      write(path, encode(_labels(rng) % 2 * np.uint8((1, 255)[rng.integers(2)])))


def objects(root, rng):
  write(root / "classes.json", b'{"classes": ["background", "cell"], "task": "instance"}')
  if rng.random() < 0.3:
    for path in root.glob("train/masks/*"):
      if path.is_file():
        write(path, encode(np.zeros(SIZE, np.uint8)))


def link(root, rng):
  path = _pick(root, rng, "images")
  path.unlink(missing_ok=True)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.symlink_to(root / "gone.png")


def loop(root, rng):
  (root / "train" / "images").mkdir(parents=True, exist_ok=True)
  place = root / "train" / "images" / f"again_{rng.integers(1000)}"
  place.symlink_to(root / "train" / "images")


def sub_folder(root, rng):
  for kind in ("images", "masks"):
    for path in list((root / "train" / kind).glob("*_0.*")):
      write(path.parent / "cam 1" / path.name, path.read_bytes() if path.is_file() else b"")
      path.unlink()


def one_sub_folder(root, rng):
  path = _pick(root, rng, "images")
  if path.is_file():
    write(path.parent / "deeper" / path.name, path.read_bytes())
    path.unlink()


def folder_like_a_file(root, rng):
  (root / "train" / "images" / "x.png").mkdir(parents=True, exist_ok=True)


def hidden(root, rng):
  path = _pick(root, rng, "images")
  write(path.with_name(f"._{path.name}"), b"\0\5\x16\7resource")
  write(path.with_name(".DS_Store"), b"")


def foreign(root, rng):
  write(root / "train" / "masks" / "notes.txt", b"none")
  write(root / "train" / "images" / "train_0.xcf", b"gimp")


def upper_case(root, rng):
  path = _pick(root, rng)
  if path.is_file():
    path.rename(path.with_name(path.stem + path.suffix.upper()))


def decomposed(root, rng):
  name = unicodedata.normalize("NFC", "zelle_ü")
  for kind, form in (("images", "NFD"), ("masks", "NFC")):
    path = root / "train" / kind / f"{unicodedata.normalize(form, name)}.png"
    data = encode(rng.integers(0, 3, SIZE, np.uint8))
    write(path, data)


def twice(root, rng):
  path = _pick(root, rng, "images")
  write(path.with_suffix(".bmp"), encode(np.zeros((*SIZE, 3), np.uint8), "BMP"))


def stray_split(root, rng):
  write(root / "valid" / "images" / "a.png", encode(_labels(rng)))


def stray_images(root, rng):
  write(root / "images" / "a.png", encode(_labels(rng)))


def empty_split(root, rng):
  for kind in ("images", "masks"):
    (root / "test" / kind).mkdir(parents=True, exist_ok=True)


def marked_json(root, rng):
  path = root / "classes.json"
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().removeprefix(b"\xef\xbb\xbf"))


def utf16_json(root, rng):
  path = root / "classes.json"
  path.write_bytes(b'{"classes": ["a", "b", "c"]}'.decode().encode("utf-16"))


def latin_json(root, rng):
  (root / "classes.json").write_bytes('{"classes": ["a", "b", "Fläche"]}'.encode("latin-1"))


def animated(root, rng):
  frames = [Image.fromarray(_labels(rng)) for _ in range(2)]
  write(_pick(root, rng, "images"), encode(frames[0], save_all=True, append_images=frames[1:]))


def bands(root, rng):
  path = _pick(root, rng, "images")
  path.unlink(missing_ok=True)
  image = Image.fromarray(rng.integers(0, 256, (*SIZE, 4), np.uint8), "RGBX")
  write(path.with_suffix(".tif"), encode(image, "TIFF"))


CHANGES = [
  value
  for name, value in list(globals().items())
  if callable(value) and getattr(value, "__module__", "") == __name__
  if not name.startswith("_")
  and name not in ("write", "encode", "indexed", "exif", "make_folder", "mangle")
]
