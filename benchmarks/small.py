"""Networks small enough to learn something in a minute of one core, each on data of its own.

  jseg train --config=benchmarks/small.py:camvid --config.data.root=camvid \
      --workdir=runs/camvid_0

Also `:isbi2012`, `:dsb2018`, `:hippocampus3d`, and `:voc2012_subset`, which starts from ImageNet's
VGG16 (`--config.init_from=`). train_twin.py trains the same in PyTorch: recipes have only what it
knows.
"""

from typing import Any

import jseg.config

_UNET: dict[str, Any] = {"widths": (8, 16, 32, 64)}
_COLORS = dict.fromkeys(("brightness", "contrast", "saturation"), 0.2)

# Sizes are multiples of 8, or of 4 for volumes, since the twins pad nothing.
VARIANTS: dict[str, dict[str, Any]] = {
  "camvid": {
    "model": ("unet", _UNET),
    "data": {"size": (192, 256), "batch_size": 4},
    "augment": {"crop": (96, 128), "scale": (0.75, 1.5), **_COLORS},
    "steps": 200,
  },
  "isbi2012": {
    "model": ("unet", _UNET),
    "data": {"size": (512, 512), "channels": 1, "batch_size": 2, "eval_batch_size": 2},
    "augment": {"crop": (160, 160), "scale": (0.9, 1.1), "flip_vertical": 0.5, "rotation": 180.0},
    "steps": 150,
  },
  "dsb2018": {
    "model": ("unet", _UNET),
    "data": {"size": (320, 320), "batch_size": 4},
    "augment": {"crop": (96, 96), "scale": (0.7, 1.4), "flip_vertical": 0.5, **_COLORS},
    "steps": 150,
  },
  "hippocampus3d": {
    "model": ("unet3d", {"widths": (8, 16, 32)}),
    "data": {"name": "volumes", "size": (48, 64, 48), "channels": 1, "batch_size": 2},
    "augment": {"crop": (32, 40, 32), "scale": (0.9, 1.1), "brightness": 0.2, "contrast": 0.2},
    "steps": 80,
  },
  "voc2012_subset": {
    "model": ("deeplab_v1", {"fc": 256, "dropout": 0.0}),
    "data": {"size": (129, 129), "batch_size": 8},
    "augment": {"crop": (97, 97), "scale": (0.8, 1.25)},
    "steps": 120,
    # All but VGG16 is new.
    "optim": {"lr": 2e-5, "head_lr": 50.0, "warmup_steps": 10},
  },
}


def get_config(variant="camvid"):
  """The configuration for one of the data sets."""
  recipe = jseg.config.variant(VARIANTS, variant)
  name, arguments = recipe["model"]
  config = jseg.config.default(name, **arguments)
  config.steps = config.eval_every = config.checkpoint_every = recipe["steps"]
  config.samples = 0
  config.log_every = 1  # the twin's first loss is compared
  config.optim.optimizer = "adamw"
  config.optim.lr = 4e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 20
  config.data.name = "folder"
  for section in ("data", "augment", "optim"):
    config[section].update(recipe.get(section, {}))
  return config
