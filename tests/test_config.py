import argparse
import json
import math

import pytest
from helpers.tiny import tiny_config

import jseg.config
from jseg import recipes
from jseg.commands.common import changes
from jseg.data import ClassInfo
from jseg.types import InputError

RECIPES = [
  name if not variant else f"{name}:{variant}"
  for name in recipes.files()
  for variant in ("", *recipes.load(name).about)
]


@pytest.mark.parametrize("name", dict.fromkeys(RECIPES))
def test_shipped_configs_are_valid_and_survive_the_run_directory(name, tmp_path):
  config = recipes.read(name)
  jseg.config.validate(config)
  jseg.config.save(config, tmp_path / "config.json")
  again = jseg.config.load(tmp_path / "config.json")
  assert jseg.config.differences(config, again) == []
  assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("name", jseg.models.names())
def test_every_network_has_a_configuration(name):
  assert jseg.config.default(name).model.name == name


def test_unknown_model_and_knob():
  with pytest.raises(InputError, match=r"'unett'.*unet"):
    jseg.config.default("unett")
  with pytest.raises(InputError, match=r"model.widht; did you mean model.width"):
    jseg.config.default("unet", widht=3)


def test_hyperparameters_of_ones_own_loss(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  own = {"loss.name": "jseg.losses:soft_dice", "loss.options.smooth": 2.0}
  with pytest.raises(
    InputError, match=r"^loss.options.smooth: .*; they are for a loss of your own"
  ):
    jseg.config.change(tiny_config(tmp_path), own)
  own = {"loss.name": "test_config_loss:loss", "loss.options.sharp": 3.0}
  (tmp_path / "test_config_loss.py").write_text(
    "def loss(logits, label, *, sharp=2.0):\n  return sharp * logits.sum(), logits.sum()\n"
  )
  config = jseg.config.change(tiny_config(tmp_path), own)
  jseg.config.save(config, tmp_path / "config.json")
  assert jseg.config.load(tmp_path / "config.json").loss.options.to_dict() == {"sharp": 3.0}
  with pytest.raises(InputError, match=r"^loss.options.dull: .*; there are sharp"):
    jseg.config.change(config, {"loss.options.dull": 3.0})


def test_unknown_keys_are_refused_with_a_suggestion(tmp_path):
  config = tiny_config(tmp_path)
  with pytest.raises(AttributeError, match="learning_rate"):
    config.optim.learning_rate = 1.0
  with config.unlocked():
    config.optim.learning_rate = 1.0
  with pytest.raises(InputError, match=r"unknown config key optim.learning_rate; .*lr"):
    jseg.config.validate(config)


def test_missing_keys_are_refused(tmp_path):
  config = tiny_config(tmp_path)
  with config.unlocked():
    del config.optim.lr
  with pytest.raises(InputError, match=r"optim.lr is missing"):
    jseg.config.validate(config)


@pytest.mark.parametrize(
  ("key", "value", "match"),
  [
    ("optim__lr", 0.0, r"optim.lr: 0.0 must be above 0"),
    ("optim__lr", -0.1, r"optim.lr: -0.1 must be above 0"),
    ("optim__schedule", "exp", r"optim.schedule: 'exp' is unknown; choose from"),
    ("optim__warmup_steps", 12, r"optim.warmup_steps: 12"),
    ("augment__scale", (2.0, 1.0), r"augment.scale"),
    ("augment__flip", 1.5, r"augment.flip"),
    (
      "augment__crop",
      (16,),
      r"augment.crop: \(16,\) must be 2 whole numbers above 0, \(height, width\)",
    ),
    ("data__size", (0, 32), r"data.size: \(0, 32\) must be 2 whole numbers above 0"),
    ("data__channels", 4, r"data.channels: 4 must be 3 .* or 1"),
    ("data__batch_size", 0, r"data.batch_size: 0 must be at least 1"),
    ("steps", 0, r"steps: 0 must be at least 1"),
    ("ema", 1.0, r"ema: 1.0 must be"),
    ("dtype", "half", r"dtype: 'half' is unknown; choose from float32, bfloat16, float16"),
    ("loss__name", "entropy", r"loss.name: 'entropy' is unknown; did you mean cross_entropy"),
    ("loss__balance", "mean", r"loss.balance: 'mean' is unknown; choose none or median"),
    ("loss__class_weights", (1.0, -1.0), r"loss.class_weights: .* at least 0, one per class"),
    ("loss__border_weight", -1.0, r"loss.border_weight: -1.0 must be at least 0"),
    ("optim__head_lr", 0.0, r"optim.head_lr: 0.0 must be above 0"),
    ("precise_bn_batches", -1, r"precise_bn_batches: -1 must be at least 0"),
    ("model__norm", "layer", r"'layer'.*batch"),
    ("model__widths", (4, -8), r"widths"),
  ],
)
def test_impossible_values(tmp_path, key, value, match):
  with pytest.raises(InputError, match=match):
    jseg.config.validate(tiny_config(tmp_path, **{key: value}))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"loss__balance": "median", "loss__class_weights": (1.0, 2.0)}, r"both give weights"),
    ({"loss__name": "dice", "loss__balance": "median"}, r"loss.name: dice takes no weights"),
    ({"loss__name": "lovasz", "loss__border_weight": 1.0}, r"lovasz takes no weights"),
  ],
)
def test_weights_that_contradict(tmp_path, changes, match):
  with pytest.raises(InputError, match=match):
    jseg.config.validate(tiny_config(tmp_path, **changes))


def test_volumes_have_three_sizes_and_any_channels(tmp_path):
  sizes = {"data__size": (8, 8, 8), "data__channels": 4}
  jseg.config.validate(tiny_config(tmp_path, "unet3d", **sizes))
  with pytest.raises(InputError, match=r"data.size: \(8, 8\) must be 3 whole .*\(depth, height"):
    jseg.config.validate(tiny_config(tmp_path, "unet3d", data__size=(8, 8)))
  with pytest.raises(InputError, match=r"the weight map is for images"):
    jseg.config.validate(tiny_config(tmp_path, "unet3d", **sizes, loss__border_weight=1.0))
  assert "patches" not in tiny_config(tmp_path).data


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"data__foreground": -0.1}, r"data.foreground: -0.1 must be a share of the patches, at least"),
    ({"data__foreground": 1.5}, r"data.foreground: 1.5"),
    ({"data__foreground": math.nan}, r"data.foreground: nan"),
    ({"augment__crop": (8, 9, 8)}, r"augment.crop: \(8, 9, 8\) must not exceed the patches"),
  ],
)
def test_impossible_patches(tmp_path, changes, match):
  patches = {"data__size": (8, 8, 8), "data__patches": True}
  jseg.config.validate(tiny_config(tmp_path, "unet3d", **patches, augment__crop=(8, 4, 8)))
  with pytest.raises(InputError, match=match):
    jseg.config.validate(tiny_config(tmp_path, "unet3d", **patches, **changes))


def test_values_of_another_kind(tmp_path):
  config = tiny_config(tmp_path)
  with config.unlocked(), config.ignore_type():
    config.steps = "many"
  with pytest.raises(InputError, match=r"steps: 'many' must be of the kind of its default"):
    jseg.config.validate(config)


def test_differences_leave_out_what_changes_no_parameter(tmp_path):
  old = tiny_config(tmp_path)
  new = tiny_config(tmp_path, optim__lr=0.1, log_every=7)
  assert jseg.config.differences(old, new) == ["optim.lr: was 0.05, is 0.1"]


def test_a_run_that_is_older_than_a_key_has_its_default(tmp_path):
  config = tiny_config(tmp_path)
  raw = config.to_dict()
  del raw["optim"]["freeze"]
  path = tmp_path / "config.json"
  path.write_text(json.dumps(raw))
  assert jseg.config.load(path).to_dict() == config.to_dict()
  for change, match in (
    ({"optim": {"freezer": ()}}, r"unknown config key optim.freezer; did you mean optim.freeze"),
    ({"model": {}}, r"model.name is missing"),
  ):
    path.write_text(json.dumps(raw | change))
    with pytest.raises(InputError, match=match):
      jseg.config.load(path)


def test_a_folder_that_is_no_run(tmp_path):
  with pytest.raises(InputError, match=r"is no run directory: it has no config.json"):
    jseg.config.load(tmp_path / "config.json")
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(InputError, match=r"config.json is damaged \(Expecting property name"):
    jseg.config.load(tmp_path / "config.json")


def test_words_stay_words_in_changes_of_a_run(tmp_path):
  config = tiny_config(tmp_path)
  jseg.config.save(config, tmp_path / "config.json")
  ClassInfo(("background", "cell")).save(tmp_path / "classes.json")
  texts = ["data.root=2012", "optim.lr=0.5", "data.options.size=64"]
  arguments = argparse.Namespace(run_directory=str(tmp_path), set=texts)
  assert changes(arguments) == {"data.root": "2012", "optim.lr": 0.5, "data.options.size": 64}
