"""FCN-16s on Pascal VOC (Long et al. 2015, section 4; shelhamer/fcn.berkeleyvision.org voc-fcn16s).

  python train.py --config=configs/paper/fcn16s.py --config.data.root=VOCdevkit \
      --config.init_from=runs/fcn32s --workdir=runs/fcn16s

Starts from the FCN-32s run. The paper's number: 65.0 mean IoU on seg11valid. Not run here. The
released recipe sums the loss over an image and takes a rate of 1e-12; ours is a mean, so the rate
is multiplied by the pixels of an image, about 2e5. Its weight decay of 5e-4, on that scale, is 0.
"""

import jseg.config


def get_config():
  """The configuration."""
  config = jseg.config.default("fcn16s", learn_upsampling=False)
  config.steps = 100_000
  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.size = (500, 500)
  config.data.batch_size = 1
  config.data.eval_batch_size = 1
  config.augment.scale = (1.0, 1.0)
  config.augment.flip = 0.0
  config.optim.optimizer = "sgd"
  config.optim.lr = 2e-07
  config.optim.momentum = 0.99
  config.optim.weight_decay = 0.0
  config.optim.schedule = "constant"
  config.optim.bias_lr = 2.0
  config.eval_every = 4000
  config.checkpoint_every = 4000
  return config
