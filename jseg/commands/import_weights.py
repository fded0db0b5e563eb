"""`jseg import-weights`: makes a run of weights that were trained elsewhere."""

import argparse
import pathlib

from jseg import data
from jseg.commands import common
from jseg.console import CONSOLE
from jseg.import_weights import import_run
from jseg.run import Run

HELP = "make a run of weights that were trained elsewhere; nothing in the file is executed"
EXAMPLES = """\
  jseg import-weights torchvision:deeplabv3_resnet50 --out runs/deeplab_v3
  jseg import-weights fcn8s-atonce_from_caffe.pth --set model.at_once=True --out runs/fcn8s
  jseg import-weights hf:timm/resnet50.a1_in1k --model deeplab_v3 --classes my_data/classes.json \
--out runs/start"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.add_argument(
    "source",
    metavar="SRC",
    help="a .safetensors, .pth or .pt file, or published weights: torchvision:NAME, hf:OWNER/NAME",
  )
  parser.add_argument("--model", help="the network, where the file is an ImageNet classifier")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="run directory to make")
  parser.add_argument("--classes", type=pathlib.Path, help="a classes.json with names and colors")
  common.add_set(parser)


def run(arguments: argparse.Namespace) -> None:
  """Imports and prints what became of the weights."""
  classes = data.ClassInfo.load(arguments.classes) if arguments.classes else None
  loaded = import_run(
    arguments.source, arguments.out, arguments.model, classes, common.changes(arguments)
  )
  values = ", ".join(f"{k}={v}" for k, v in loaded.arguments.items())
  some = ", ".join(Run.open(arguments.out).classes.names[:3])
  lines = [
    f"{arguments.source}: {loaded.description}",
    f"{loaded.name}({values}), {loaded.num_classes} classes ({some}, ...): {loaded.report}",
    f"note: {loaded.note}" if loaded.note else "",
    f"written to {arguments.out}",
  ]
  for line in filter(None, lines):
    CONSOLE.print(line, highlight=False)
