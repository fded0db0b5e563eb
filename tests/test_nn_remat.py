"""Rematerialization changes memory, and nothing else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg import config as configs
from jseg import models
from jseg.models import Network
from jseg.nn import Conv, Dropout, Norm, Staged
from jseg.nn.initializers import initialize
from jseg.types import InputError, Outputs


class Small(Network, Staged):
  """Two stages of two units, with all that a stage may hold."""

  @nn.compact
  def __call__(self, image, *, train=False):
    def convolve(net, x):
      return nn.relu(Norm("batch")(net.typed(Conv)(4, (3, 3))(x), train=train))

    def stage(net, x):
      return Dropout(0.5)(net.unit(convolve, net.unit(convolve, x)), train=train)

    x = self.stage(stage, self.stage(stage, image))
    return Outputs(self.typed(Conv)(self.num_classes, (1, 1))(x))


def derive(model, image):
  """(variables, (loss, updated collections), gradient) of a training pass."""
  variables = initialize(model, jax.random.key(0), image.shape[1:])

  def loss(params):
    outputs, updated = model.apply(
      {**variables, "params": params},
      image,
      train=True,
      rngs={"sample": jax.random.key(1)},
      mutable=["batch_stats", "moments"],
    )
    return jnp.square(outputs.logits - 1).sum(), updated

  return variables, *jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


@pytest.mark.parametrize(
  "make",
  [
    lambda remat: Small(3, remat=remat),
    lambda remat: models.create("unet", 3, remat=remat, widths=(2, 4), dropout=0.5),
  ],
  ids=["stages", "unet"],
)
def test_gradients_statistics_and_draws_are_the_same(make):
  image = jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
  plain = derive(make("none"), image)
  found = derive(make("all"), image)
  assert jax.tree.structure(found) == jax.tree.structure(plain)
  for a, b in zip(jax.tree.leaves(found[:2]), jax.tree.leaves(plain[:2]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  # The bias before a batch norm has a gradient of nothing but rounding.
  scale = max(float(abs(a).max()) for a in jax.tree.leaves(plain[2]))
  for a, b in zip(jax.tree.leaves(found[2]), jax.tree.leaves(plain[2]), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.parametrize(
  "name", [name for name in models.names() if models.get(name).task == "semantic"]
)
def test_every_network_computes_again(name):
  # Traced, not compiled.
  image = jnp.ones((1, *((16,) * 3 if models.get(name).ndim == 3 else (32, 32)), 3))

  def stages_and_relus(remat):
    model = models.create(name, 5, remat=remat, **models.get(name).TINY)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def loss(variables):
      return model.apply(variables, image, train=False).logits.sum()

    programs = [e.params.get("call_jaxpr") for e in jax.make_jaxpr(loss)(variables).eqns]
    names = [program.jaxpr.debug_info.func_name for program in programs if program is not None]
    relus = str(jax.make_jaxpr(jax.grad(loss))(variables)).count("name=relu")
    return names.count("computed_again"), relus

  (none, before), (stages, after) = stages_and_relus("none"), stages_and_relus("stages")
  assert none == 0
  assert stages >= 2
  assert after >= before + 2


def test_on_a_cpu_memory_is_saved():
  image = jnp.ones((2, 64, 64, 3))

  def temporaries(remat):
    model = models.create("unet", 3, remat=remat, widths=(16, 32))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def loss(variables):
      return jnp.square(model.apply(variables, image, train=False).logits).sum()

    return jax.jit(jax.grad(loss)).lower(variables).compile().memory_analysis().temp_size_in_bytes

  none = temporaries("none")
  assert temporaries("stages") < 0.75 * none
  assert temporaries("all") < 0.6 * none


def test_a_network_without_stages_is_refused():
  class Plain(Network):
    pass

  with pytest.raises(InputError, match=r"remat: Plain has no stages .* leave it none"):
    models.check_remat(Plain, "stages")
  models.check_remat(Plain, "none")


def test_the_key_reaches_the_network_and_may_change_on_resuming():
  config = configs.default("unet")
  assert configs.make_model(config, 2).remat == "none"
  other = configs.change(config, {"remat": "all"})
  assert configs.make_model(other, 2).remat == "all"
  assert configs.differences(config, other) == []
  with pytest.raises(InputError, match=r"remat: 'some' is unknown; choose from none, stages, all"):
    configs.change(config, {"remat": "some"})


def test_of_a_network_made_in_python_the_key_tells_what_it_does():
  model = Small(3, remat="stages")
  config = configs.record(configs.default(model), model=model)
  assert config.remat == "stages"
  configs.validate(config, model)
  with config.unlocked():
    config.remat = "all"
  with pytest.raises(InputError, match=r"make it with remat='all'"):
    configs.validate(config, model)
