"""`jseg check-data`: looks through a data set for mistakes."""

import argparse
import json
import pathlib

from jseg import data
from jseg.config import parse_changes
from jseg.console import CONSOLE
from jseg.outputs import try_file
from jseg.types import InputError

HELP = "look through a folder of images and masks for mistakes"
EXAMPLES = """\
  jseg check-data data/camvid
  jseg check-data data/camvid --sheet overlays.png
  jseg check-data data/camvid --json > report.json
  jseg check-data data/camvid --fix data/camvid_fixed
exit status: 0 if training will take the data, warnings or not; 1 for errors, and with --strict
for warnings too"""

_SHEET = pathlib.Path("contact_sheet.png")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds PATH, --sheet, --json, --max-pixels, --option, --strict and --fix."""
  parser.add_argument("path", type=pathlib.Path, help="root of the data set")
  parser.add_argument(
    "--sheet",
    type=pathlib.Path,
    help=f"picture of overlays to write (default: {_SHEET}, or none with --json)",
  )
  parser.add_argument("--json", action="store_true", help="print the report as JSON, for scripts")
  parser.add_argument(
    "--max-pixels",
    type=int,
    default=data.MAX_PIXELS,
    metavar="N",
    help="pixels of an image up to which it is read; volumes have 2.5 times as many values "
    "(default: %(default)s)",
  )
  parser.add_argument(
    "--option",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="an option of the data set, as data.options has it in training: channels_first=True",
  )
  parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")
  parser.add_argument(
    "--fix",
    type=pathlib.Path,
    metavar="OUT",
    help="write a copy to the new folder OUT, repaired where that is certain, and check it",
  )


def run(arguments: argparse.Namespace) -> None:
  """Prints the report and writes the overlays.

  Raises:
    InputError: the data set has errors, or with --strict warnings; the overlays can't be written.
  """
  with data.pixel_limit(arguments.max_pixels):
    _check(arguments)


def _check(arguments: argparse.Namespace) -> None:
  sheet = arguments.sheet or (None if arguments.json else _SHEET)
  if sheet is not None:
    _refuse_inside(sheet, arguments.path)
    try_file(sheet, "name another --sheet", _PICTURES)
  root, repairs = arguments.path, None
  options = parse_changes(arguments.option, "--option ")
  try:
    if arguments.fix is not None:
      root, repairs = arguments.fix, data.repair_folder(root, arguments.fix)
    report = data.check_folder(root, options)
  except InputError as error:
    if arguments.json:
      problem = {"severity": "error", "file": str(root), "problem": str(error)}
      failed = {"root": str(root), "ok": False, "errors": 1, "warnings": 0}
      print(json.dumps({**failed, "problems": [problem]}, indent=2))
    raise
  if arguments.json:
    fixed = {"fixed": repairs.to_dict()} if repairs else {}
    print(json.dumps({**report.to_dict(), **fixed}, indent=2))
  else:
    for line in repairs.lines() if repairs else ():
      CONSOLE.print(line)
    CONSOLE.print(report.table())
  if sheet is not None and data.contact_sheet(root, sheet, options) and not arguments.json:
    CONSOLE.print(f"overlays: {sheet}")
  if not report.ok:
    raise InputError(f"{root} has {len(report.problems)} problem(s); see above")
  if arguments.strict and report.notes:
    raise InputError(f"{root} has {len(report.notes)} warning(s); see above")


def _refuse_inside(sheet: pathlib.Path, root: pathlib.Path) -> None:
  """Raises InputError if a picture would lie among the images of a data set, or replace one."""
  folder, root = sheet.parent.resolve(), root.resolve()
  if folder != root and root in folder.parents:
    raise InputError(f"{sheet} would lie among the data of {root}; name another --sheet")
