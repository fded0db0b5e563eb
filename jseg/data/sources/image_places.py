"""Where the images are that a JSON file names."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from jseg.data.files import is_file
from jseg.data.sources.annotated import leads_out, on_a_drive

_SAMPLE = 200  # file names by which the folder of the images is found


@dataclasses.dataclass(frozen=True)
class ImagePlaces:
  """Where the images of a JSON file are.

  Attributes:
    folder: folder from which file names count.
    dropped: number of folders that names begin with and that aren't there.
    roots: folders that no name may lead out of.
  """

  folder: Path
  dropped: int
  roots: tuple[Path, ...]

  @classmethod
  def find(cls, home: Path, path: Path, names: Sequence[str], given: Path | None) -> "ImagePlaces":
    """Finds the folder in which most of the images are; the likeliest one if none is there."""
    name = path.stem.removeprefix("instances_")
    folders = [home / name, home / "images" / name, path.parent, path.parent / "images"]
    folders += [home / "images", home, home / "train", home / "val"]
    folders = [given] if given else list(dict.fromkeys(folders))
    roots = (home, *([given] if given else []))
    choices = [cls(folder, dropped, roots) for dropped in range(4) for folder in folders]
    sample = names[:: max(1, len(names) // _SAMPLE)]
    counts = [sum(is_file(place.path(each)) for each in sample) for place in choices]
    best = choices[int(np.argmax(counts))]
    # Without their folders, names may stand for several images.
    distinct = len({best.path(each) for each in names}) == len(set(names))
    return best if distinct else cls(best.folder, 0, roots)

  def path(self, name: str) -> Path:
    """Path of an image, of whatever form its file name is."""
    parts = plain_name(name).split("/")
    inside = "" not in parts[:1] and ".." not in parts
    return self.folder / "/".join(parts[min(self.dropped, len(parts) - 1) :] if inside else parts)

  def leads_out(self, name: str) -> bool:
    """Whether a file name, of whatever form, means a file outside of the data set."""
    return on_a_drive(plain_name(name)) or leads_out(self.path(name), self.roots)


def plain_name(name: str) -> str:
  """A file name as a path with "/" between folders; of a URL, its last part."""
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) or "/local-files/?d=" in name:
    try:
      url = urlsplit(name)
      path = parse_qs(url.query).get("d", [url.path])[0]
    except ValueError:  # a URL that is none
      path = name
    return unquote(path).replace("\\", "/").rpartition("/")[2]
  return name.replace("\\", "/")
