"""Tables of README and docs say what the files of results say (`benchmarks/report.py`)."""

import importlib.util
import json
import re

import pytest
from helpers.pages import ROOT

from jseg import config as configs
from jseg import recipes

SPEC = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(report)


@pytest.mark.parametrize(("path", "name", "content"), report.contents())
def test_pages_say_what_the_results_say(path, name, content):
  text = path.read_text()
  assert report.replace(text, name, content) == text, "python benchmarks/report.py writes it anew"


def record(library, seed, miou, **changes):
  versions = {"jax": "1", "torch": "2", "date": "d"}
  return {
    "library": library,
    "network": "unet",
    "parameters": 1234567,
    "data": {"name": "isbi2012"},
    "setting": {"steps": 300, "data.batch_size": 2},
    "seed": seed,
    "machine": {"cpu": "A", "instructions": ["avx2"], "cores": 1, **versions},
    "scores": {"miou": miou},
    **changes,
  }


def test_a_table_by_hand():
  records = [
    record("pytorch", 1, 0.5),
    record("jseg", 0, 0.5),
    record("pytorch", 0, 0.4),
    record("jseg", 1, 0.54),
    record("jseg", 0, 0.3, setting={"steps": 9, "data.batch_size": 2}),
    record("pytorch", 0, 0.31, setting={"steps": 9, "data.batch_size": 2}),
  ]
  *_, first, second = report.accuracy(records).splitlines()
  cells = [cell.strip() for cell in first.split("|")[1:-1]]
  assert cells == [
    "`isbi2012`",
    "U-Net, 1,234,567 parameters",
    "300 steps of 2",
    ".520 (.500, .540)",
    ".450 (.400, .500)",
    "+.070, within the range of the seeds",
    "warping error .000353, Rand error .0382, pixel error .0611 in the challenge",
  ]
  assert "| 9 steps of 2 | .300 | .310 | -.010 |" in second
  assert "U-Net on `isbi2012` .520 and .450, " in report.accuracy_sentence(records)
  assert report.published("camvid", "unet") == ""


def test_seeds_that_one_side_lacks():
  with pytest.raises(SystemExit, match=r"isbi2012: jseg has the seeds \[0, 1\], PyTorch \[0\]"):
    report.accuracy([record("jseg", 0, 0.5), record("jseg", 1, 0.5), record("pytorch", 0, 0.5)])


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda p: p.stem)
def test_a_result_can_be_repeated(path):
  found = json.loads(path.read_text())
  assert re.fullmatch(r"[0-9a-f]{40}", found["commit"])
  assert not re.search(r"(^|[ =])[/~]", found["command"]), "folders of one machine"
  assert 0 < found["scores"]["miou"] < 1
  assert found["machine"]["cpu"]


@pytest.mark.parametrize(
  "name", ["camvid", "isbi2012", "dsb2018", "hippocampus3d", "voc2012_subset"]
)
def test_small_recipes_can_be_trained(name):
  config = recipes.read(f"{ROOT / 'benchmarks' / 'small.py'}:{name}")
  configs.validate(config)
  # What the twins, which pad nothing, can take.
  for size in (config.data.size, config.augment.crop):
    stride = 2 ** (len(config.model.get("widths", ())) - 1) if "unet" in config.model.name else 1
    assert not any(n % stride for n in size)


def test_what_a_cpu_was_kept_to_is_told():
  found = record("jseg", 0, 0.5)["machine"]
  assert report.cpu(found) == "A (avx2), 1 core"
  assert report.cpu({**found, "cores": 2}, "AVX2") == "A (avx2, both sides kept to AVX2), 2 cores"
