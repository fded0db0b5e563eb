"""A user's own code, given as objects in Python: recorded, resumed, evaluated, refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny import tiny_config

import jseg
from jseg.models import Network
from jseg.nn import Conv
from jseg.types import InputError, Outputs


class OneLayer(Network):
  """A single convolution."""

  kernel: int = 3

  @nn.compact
  def __call__(self, image, *, train=False):
    return Outputs(self.typed(Conv)(self.num_classes, (self.kernel, self.kernel))(image))


def first_only(outputs, targets):
  """Cross-entropy of the logits, under a name of its own."""
  return {"mine": jseg.losses.cross_entropy(outputs.logits, targets.label)}


def own_config(data_dir, network):
  few = {"steps": 4, "eval_every": 4, "checkpoint_every": 2, "samples": 1}
  config = tiny_config(data_dir, network, **few)
  config.optim.lr = 0.01
  return config


def test_a_network_in_a_module_is_found_by_its_name(tmp_path, monkeypatch):
  (tmp_path / "my_networks.py").write_text(
    "import flax.linen as nn\n"
    "from jseg.models import Network\n"
    "from jseg.nn import Conv\n"
    "from jseg.types import Outputs\n"
    "class Thin(Network):\n"
    "  width: int = 4\n"
    "  @nn.compact\n"
    "  def __call__(self, image, *, train=False):\n"
    "    x = nn.relu(self.typed(Conv)(self.width, (3, 3))(image))\n"
    "    return Outputs(self.typed(Conv)(self.num_classes, (1, 1))(x))\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  config = own_config(tmp_path, "my_networks:Thin")
  config.model.width = 6
  scores = jseg.train(config, tmp_path / "run")
  result = jseg.evaluate(tmp_path / "run", checkpoint="latest")
  assert result.scores.miou == pytest.approx(scores.miou, abs=1e-4)
  model, variables = jseg.load_model(tmp_path / "run")
  assert type(model).__name__ == "Thin"
  assert variables["params"]["Conv_0"]["kernel"].shape[-1] == 6


def test_objects_given_in_python_are_recorded_and_asked_for(tmp_path):
  network = OneLayer(num_classes=5)
  config = own_config(tmp_path, network)
  logged, evaluated = [], []
  given = {
    "model": network,
    "optimizer": optax.lion(1e-3),
    "losses": first_only,
    "on_log": lambda step, metrics: logged.append((step, metrics["loss"])),
    "on_evaluate": lambda step, metrics: evaluated.append((step, metrics["miou"])),
  }
  scores = jseg.train(config, tmp_path / "run", **given)
  assert [step for step, _ in logged] == [2, 4]
  assert evaluated == [(4, scores.miou)]
  recorded = jseg.Run.open(tmp_path / "run", model=network).config
  assert recorded.model.name.endswith(":OneLayer")
  assert recorded.model.kernel == 3
  assert [each.partition("=")[0] for each in recorded.given] == ["losses", "model", "optimizer"]
  with pytest.raises(InputError, match=r"another configuration \(given: was \('losses="):
    jseg.train(config, tmp_path / "run", model=network)
  result = jseg.evaluate(tmp_path / "run", model=network)
  assert result.scores.miou == pytest.approx(scores.miou, abs=1e-4)
  prediction = jseg.Segmenter.from_run(tmp_path / "run", model=network)(
    np.zeros((20, 30, 3), np.uint8)
  )
  assert prediction.mask.shape == (20, 30)


def test_a_network_that_cannot_be_imported_is_asked_for(tmp_path):
  class Hidden(OneLayer):
    pass

  network = Hidden(num_classes=5)
  jseg.train(own_config(tmp_path, network), tmp_path / "run", model=network)
  with pytest.raises(InputError, match=r"network made in Python, .*Hidden, .*model=\.\.\."):
    jseg.evaluate(tmp_path / "run")
  assert jseg.evaluate(tmp_path / "run", model=network).step == 4


def test_a_data_set_given_in_python_is_asked_for(tmp_path):
  config = own_config(tmp_path, f"{__name__}:OneLayer")
  dataset = jseg.config.load_dataset(config)
  jseg.train(config, tmp_path / "run", dataset=dataset)
  with pytest.raises(InputError, match=r"data set made in Python; give it again"):
    jseg.evaluate(tmp_path / "run")
  assert jseg.evaluate(tmp_path / "run", dataset=dataset).step == 4


def test_a_class_that_is_no_network(tmp_path):
  with pytest.raises(InputError, match=r"'flax.linen:Dense' .*Network"):
    jseg.models.create("flax.linen:Dense", num_classes=3)


def test_dtypes_reach_every_layer():
  model = OneLayer(num_classes=2, dtype=jnp.bfloat16)
  image = jnp.zeros((1, 4, 4, 3))
  variables = model.init(jax.random.key(0), image)
  assert model.apply(variables, image).logits.dtype == jnp.bfloat16
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
