"""`jseg check-data`: looks through a data set for mistakes."""

import argparse
import pathlib

from jseg import data
from jseg.console import CONSOLE
from jseg.outputs import try_file
from jseg.types import InputError

HELP = "look through a folder of images and masks for mistakes"
EXAMPLES = """\
  jseg check-data data/camvid
  jseg check-data data/camvid --sheet overlays.png"""


_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds PATH and --sheet."""
  parser.add_argument("path", type=pathlib.Path, help="root of the data set")
  parser.add_argument(
    "--sheet", type=pathlib.Path, default="contact_sheet.png", help="picture of overlays to write"
  )


def run(arguments: argparse.Namespace) -> None:
  """Prints the report and writes the overlays.

  Raises:
    InputError: the data set has problems, or the overlays can't be written.
  """
  _refuse_inside(arguments.sheet, arguments.path)
  try_file(arguments.sheet, "name another --sheet", _PICTURES)
  report = data.check_folder(arguments.path)
  CONSOLE.print(report.table())
  if data.contact_sheet(arguments.path, arguments.sheet):
    CONSOLE.print(f"overlays: {arguments.sheet}")
  if not report.ok:
    raise InputError(f"{arguments.path} has problems; see above")


def _refuse_inside(sheet: pathlib.Path, root: pathlib.Path) -> None:
  """Raises InputError if a picture would lie among the images of a data set, or replace one."""
  folder, root = sheet.parent.resolve(), root.resolve()
  if folder != root and root in folder.parents:
    raise InputError(f"{sheet} would lie among the data of {root}; name another --sheet")
