"""The sources of data: one file each, and one line each in the table below.

A source is a function that makes a `Source` (`jseg.data.sources.base`) of the folder `root`, where
it has one, and of options: all its other arguments. Beside it, `matches(root)` says whether a
folder is laid out as it expects; generated sets have none.
"""

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from jseg.data.sources.base import Source
from jseg.lookup import lookup
from jseg.types import Arguments, InputError

# The first whose `matches` is true reads a folder of unknown kind.
SOURCES = {
  "shapes": "jseg.data.sources.shapes:shapes_source",
  "multilabel": "jseg.data.sources.multilabel:multilabel_source",
  "scientific": "jseg.data.sources.scientific:scientific_source",
  "folder": "jseg.data.sources.folder:folder_source",
  "volumes": "jseg.data.sources.volumes:volumes_source",
  "labelme": "jseg.data.sources.labelme:labelme_source",
  "yolo": "jseg.data.sources.yolo:yolo_source",
  "coco": "jseg.data.sources.coco:coco_source",
  "voc": "jseg.data.sources.voc:voc_source",
  "cityscapes": "jseg.data.sources.cityscapes:cityscapes_source",
  "oxford_iiit_pet": "jseg.data.sources.pets:oxford_iiit_pet_source",
}


def make_source(
  name: str,
  *,
  root: str | os.PathLike[str] | None = None,
  options: Arguments | None = None,
) -> Source:
  """Makes the source of a name.

  Args:
    name: a name in `SOURCES`, or "package.module:Name" of a function or class that makes one.
    root: folder of the source, where it has one.
    options: the other arguments of the source.

  Raises:
    InputError: the name, the root or the options are wrong, or the source refuses its files.
  """
  make, options = _find(name), dict(options or {})
  parameters = inspect.signature(make).parameters
  known = [key for key in parameters if key != "root"]
  if unknown := sorted(options.keys() - set(known)):
    raise InputError(
      f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
    )
  if "root" not in parameters:
    if root is not None:
      raise InputError(f"data.root: {name} is generated and reads no folder; leave root out")
    return make(**options)
  if root is None and parameters["root"].default is inspect.Parameter.empty:
    raise InputError(
      f"data.root is missing: {name} is read from a folder; give it as --config.data.root=FOLDER"
    )
  return make(root, **options)


def recognize(root: str | os.PathLike[str], options: Arguments | None = None) -> Source:
  """Makes the source of a folder of unknown kind: the first that matches, or else `folder`.

  Args:
    root: the folder.
    options: the other arguments of the source.

  Raises:
    InputError: the source refuses its files, or has no such option.
  """
  path = Path(root).expanduser()
  for name in SOURCES:
    matches: Callable[[Path], bool] | None = getattr(_module(name), "matches", None)
    if matches is not None and matches(path):
      return make_source(name, root=path, options=options)
  return make_source("folder", root=path, options=options)


def _module(name: str) -> ModuleType:
  return importlib.import_module(SOURCES[name].partition(":")[0])


def _find(name: str) -> Callable[..., Source]:
  try:
    return lookup("data set", name, SOURCES)
  except InputError as error:
    raise InputError(
      f"{error}. A TFDS set needs fields, such as "
      '{"image": "image", "label": "segmentation_mask", "values": {0: 0, 1: 1}, '
      '"classes": ["background", "thing"]}'
    ) from error
