import jax
import pytest

from jseg import config as configs
from jseg.memory import out_of_memory, savers
from jseg.types import InputError


def fail(config, text):
  with out_of_memory(config):
    raise jax.errors.JaxRuntimeError(text)


def test_out_of_memory_names_the_settings_in_order(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  config = configs.default("unet")
  with pytest.raises(InputError, match=r"^out of memory \(RESOURCE_EXHAUSTED: 8 GiB\)\. ") as error:
    fail(config, "RESOURCE_EXHAUSTED: 8 GiB\nand an allocation table")
  keys = ("accumulate=4", "remat=stages", "dtype=bfloat16", "augment.crop", "data.eval_batch_size")
  places = [str(error.value).index(key) for key in keys]
  assert places == sorted(places)
  changes = {"accumulate": 4, "remat": "all", "dtype": "bfloat16"}
  assert len(savers(configs.change(config, changes))) == 2
  assert "remat=all" in savers(configs.change(config, {**changes, "remat": "stages"}))[0]


def test_other_failures_are_not_taken_for_it():
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    fail(configs.default("unet"), "INTERNAL: something else")
