"""Recipes by name and by file, and what each says of itself."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import jseg.models
from jseg import cli, recipes
from jseg.install import requirements
from jseg.tasks.inference import PROTOCOLS
from jseg.types import InputError

FILES = recipes.files()
VARIANTS = [
  (name, variant, about) for name in FILES for variant, about in recipes.load(name).about.items()
]


def test_the_quickstart_comes_first_and_the_papers_last():
  names = list(FILES)
  assert names[0] == recipes.QUICKSTART
  first = next(i for i, name in enumerate(names) if name.startswith("paper/"))
  assert all(name.startswith("paper/") for name in names[first:])
  assert not set(names) & set(jseg.models.names()), "`jseg config NAME` could mean either"


@pytest.mark.parametrize("name", FILES)
def test_every_variant_is_described(name):
  names = {}
  exec(FILES[name].read_text(), names)
  assert set(recipes.load(name).about) == set(names.get("VARIANTS", [""]))


@pytest.mark.parametrize(("name", "variant", "about"), VARIANTS)
def test_what_a_recipe_says_of_itself_is_what_it_does(name, variant, about):
  config = recipes.read(f"{name}:{variant}" if variant else name)
  network = jseg.models.get(config.model.name)
  assert bool(about.data) == (config.data.name != "shapes")
  extras = {"instance"} if network.task == "instance" else set()
  assert set(about.extras) == extras | ({"volumes"} if network.ndim == 3 else set())
  for extra in about.extras:
    assert requirements(extra)
  # A measurement has a time, and papers' numbers are not ours.
  assert (about.minutes is None) == (not about.reaches)
  assert not (about.reaches and about.published)
  measured = name.startswith("paper/") and network.task == "semantic"
  assert (about.protocol in PROTOCOLS) == measured
  if about.protocol and network.ndim == 3:
    assert about.protocol != "shrink"
  command = commands(name).get(variant)
  if command is not None:
    assert ("--config.init_from=" in command) == bool(about.weights)
    assert ("--config.data.root=" in command) == bool(about.data)


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("crf_layer")])
def test_a_network_before_a_crf_gives_logits_for_each_pixel_in_training(name):
  variants = [recipes.read(f"{name}:{variant}") for variant in recipes.load(name).about]
  assert any(config.crf.train for config in variants)
  (network,) = {str(config.model): config for config in variants}.values()
  network = jseg.config.change(network, {"crf.train": False})
  model, image = jseg.config.make_model(network, 3), jnp.zeros((1, 33, 33, 3))

  def logits(key):
    outputs, _ = model.init_with_output({"params": key, "dropout": key}, image, train=True)
    return outputs.logits

  assert jax.eval_shape(logits, jax.random.key(0)).shape == (1, 33, 33, 3)


def commands(name):
  """The commands in a recipe's docstring that train it, by variant."""
  text = FILES[name].read_text().partition('"""\n\nimport')[0].replace("\\\n", " ")
  found = re.findall(rf"jseg train --config={name}(?::(\w+))?( .*)", text)
  assert found, f"{name} doesn't say how it is trained"
  return dict(found)


def test_names_and_files(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "camvid").mkdir()  # the data
  assert recipes.find("camvid") == (FILES["camvid"], None)
  assert recipes.find("paper/fcn:fcn8s") == (FILES["paper/fcn"], "fcn8s")
  (tmp_path / "mine.py").write_text("")
  (tmp_path / "a:b.py").write_text("")
  assert recipes.find("mine.py:wide") == (pathlib.Path("mine.py"), "wide")
  assert recipes.find("a:b.py") == (pathlib.Path("a:b.py"), None)
  assert recipes.read("paper/fcn:fcn16s").model.name == "fcn16s"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("camvd", r"no recipe 'camvd', and no such file; did you mean --config=camvid\?"),
    ("pspnet", r"did you mean --config=paper/pspnet\?"),
    ("configs/camvid.py", r"no file configs/camvid.py; did you mean --config=camvid\?"),
    ("resnet_camvid:pspnets", r"'pspnets' is unknown; choose from deeplab_v3, pspnet, "),
    ("camvid:small", r"camvid.py has no variants, and so no 'small'"),
    ("xyzzy", r"`jseg configs` lists recipes"),
  ],
)
def test_names_that_are_none(tmp_path, monkeypatch, text, message):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=message):
    recipes.read(text)


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("def get_config(:", r"mine.py, line 1: invalid syntax"),
    ("import jseg.config\nx = 1 / 0", r"mine.py, line 2: ZeroDivisionError: division by zero"),
    (
      "import jseg.config\ndef get_config():\n  c = jseg.config.default()\n  c.optim.lrr = 1",
      r"mine.py, line 4: AttributeError: .*lrr",
    ),
    ("import jseg.config\ndef get_config():\n  return jseg.config.default('unett')", r"'unett'"),
    ("x = 1", r"mine.py has no function get_config"),
  ],
)
def test_mistakes_in_a_file(tmp_path, source, message):
  path = tmp_path / "mine.py"
  path.write_text(source)
  with pytest.raises(InputError, match=message):
    recipes.read(str(path))


def test_recipes_lie_in_the_package_of_a_wheel(tmp_path, monkeypatch):
  package = tmp_path / "jseg"
  monkeypatch.setattr(recipes, "__file__", str(package / "recipes.py"))
  with pytest.raises(InputError, match="has no recipes; install the library as a whole"):
    recipes.files()
  (package / "configs" / "paper").mkdir(parents=True)
  (package / "configs" / "paper" / "net.py").write_text("")
  assert recipes.files() == {"paper/net": package / "configs" / "paper" / "net.py"}


def test_a_recipe_that_says_nothing_of_itself(tmp_path, monkeypatch):
  (tmp_path / "net.py").write_text('"""A network."""\n')
  monkeypatch.setattr(recipes, "folder", lambda: tmp_path)
  with pytest.raises(InputError, match=r"net.py has no ABOUT"):
    recipes.load("net")


def test_the_list_has_a_line_for_each_variant(capsys):
  cli.main(["configs"])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(VARIANTS)
  (line,) = [line for line in lines if line.startswith("unet3d_hippocampus |")]
  assert (
    "needs the Decathlon's hippocampus, `jseg get-data hippocampus3d`; packages: pip install \"nib"
    in line
  )
  assert line.endswith("| 28 minutes on two CPU cores: Dice .860 anterior, .852 posterior")
  assert any("| 1 minute on two CPU cores: " in line for line in lines)
