"""FCN-8s at once on Pascal VOC (Shelhamer et al. 2017, section 4.3; voc-fcn8s-atonce as released).

  python train.py --config=configs/paper/fcn8s_at_once.py --config.data.root=VOCdevkit \
      --config.init_from=vgg16.safetensors --workdir=runs/fcn8s_at_once

All scores are trained together from a classifier; pool4 and pool3 are scaled down. On the rate and
the weight decay see fcn32s.py. Not run here.
"""

import jseg.config


def get_config():
  """The configuration."""
  config = jseg.config.default("fcn8s", learn_upsampling=False, at_once=True)
  config.steps = 100_000
  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.size = (500, 500)
  config.data.batch_size = 1
  config.data.eval_batch_size = 1
  config.augment.scale = (1.0, 1.0)
  config.augment.flip = 0.0
  config.optim.optimizer = "sgd"
  config.optim.lr = 2e-5
  config.optim.momentum = 0.99
  config.optim.weight_decay = 0.0
  config.optim.schedule = "constant"
  config.optim.bias_lr = 2.0
  config.eval_every = 4000
  config.checkpoint_every = 4000
  return config
