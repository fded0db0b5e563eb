"""Every key of every configuration is explained, and its choices are those that there are."""

import pytest

import jseg.config
import jseg.models
from jseg import cli, recipes
from jseg.config_help import describe
from jseg.types import InputError

# Keys that hold words of the user's.
FREE = {
  "compilation_cache",
  "data.data_dir",
  "data.eval_split",
  "data.root",
  "data.scaling",
  "data.train_split",
  "inference.output_size",
  "init_from",
}


@pytest.mark.parametrize("name", jseg.models.names())
def test_every_key_of_a_network_is_explained(name):
  config = jseg.config.default(name)
  keys = describe(config)
  assert {key.name: key.value for key in keys} == dict(jseg.config.flatten(config))
  assert [key.name for key in keys if not key.meaning] == []
  assert [key.name for key in keys if key.value != key.default] == []
  for key in keys:
    assert bool(key.choices) == (key.kind == "text" and key.name not in FREE), key
    assert not key.choices or key.value in key.choices, key


@pytest.mark.parametrize("name", jseg.models.names())
def test_what_is_no_choice_of_a_network_is_refused(name):
  for key in describe(jseg.config.default(name)):
    if key.choices and key.section == "model" and key.name != "model.name":
      argument = key.name.removeprefix("model.")
      for choice in key.choices:
        jseg.models.create(name, 2, **{argument: choice})
      with pytest.raises(InputError, match=f"{argument}.*nonsense"):
        jseg.models.create(name, 2, **{argument: "nonsense"})


def test_what_is_no_choice_of_another_key_is_refused():
  config = jseg.config.default("unet")
  with config.unlocked():
    config.crf.train = True
  for key in describe(config):
    if key.choices and key.section != "model" and key.name != "data.name":
      for choice in key.choices:
        jseg.config.change(config, {key.name: choice})
      with pytest.raises(InputError, match=f"{key.name}.*nonsense"):
        jseg.config.change(config, {key.name: "nonsense"})


@pytest.mark.parametrize("name", recipes.files())
def test_every_key_of_a_recipe_is_explained(name):
  config = recipes.read(name)
  keys = describe(config)
  assert [key.name for key in keys if not key.meaning] == []
  default = dict(jseg.config.flatten(jseg.config.default(config.model.name)))
  changed = {key.name for key in keys if key.value != key.default}
  assert changed == {
    name for name, value in jseg.config.flatten(config) if value != default.get(name, value)
  }


def test_meanings_come_from_the_docstrings():
  keys = {key.name: key for key in describe(jseg.config.default("mask_rcnn"))}
  assert keys["model.anchor_ratios"].meaning == "heights of the anchors over their widths"
  assert keys["optim.power"].meaning == 'exponent of "poly"'
  assert keys["loss.box"].meaning == (
    "weight of this loss: smooth L1 of the sampled regions that match an object"
  )
  assert keys["augment.flip"].meaning == "the probability of a left-right flip; 0 is off"
  # Of several lines, joined.
  assert keys["data.name"].meaning.endswith('or your own source as "package.module:Name"')
  assert keys["optim.schedule"].choices == ("poly", "cosine", "constant", "step")
  assert keys["model.proposals"].kind == "list of whole numbers"
  volumes = {key.name: key for key in describe(jseg.config.default("unet3d"))}
  assert volumes["augment.hue"].meaning == "0, as volumes have none"
  assert volumes["augment.blur"].meaning.startswith("the largest standard deviation in voxels")


def test_what_a_network_refuses_is_no_choice():
  config = jseg.config.default("unet", padding="VALID")
  choices = {key.name: key.choices for key in describe(config)}
  assert choices["model.backbone"] == ("",)
  choices = {key.name: key.choices for key in describe(jseg.config.default("pspnet"))}
  assert "alexnet" not in choices["model.backbone"]


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("unet", "optim.lr=0.001  # highest learning rate, reached after the warm-up (number)"),
    (
      "paper/fcn:fcn16s",
      "steps=100000  # length of the training; each step is one batch (whole number; default 1000)",
    ),
    ("jseg.models.unet:UNet", "model.name=jseg.models.unet:UNet  # the network, or your own as"),
  ],
)
def test_the_command_prints_a_line_for_each_key(name, line, capsys):
  cli.main(["config", name])
  lines = capsys.readouterr().out.splitlines()
  assert any(each.startswith(line) for each in lines)
  assert all("=" in each and "  # " in each for each in lines)


def test_the_command_prints_tables_on_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr("jseg.commands.config.CONSOLE._force_terminal", True)
  monkeypatch.setattr("jseg.commands.config.CONSOLE._width", 120)
  cli.main(["config", "camvid"])
  text = capsys.readouterr().out
  assert "highest learning rate, reached after the warm-up" in text
  assert "  meaning" in text


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("unett", "no network or recipe 'unett'; did you mean unet or unet3d"),
    ("camvd", "did you mean --config=camvid"),
    ("nowhere:Net", "there is no module nowhere"),
  ],
)
def test_names_that_are_none(name, message):
  with pytest.raises(SystemExit, match=message):
    cli.main(["config", name])
