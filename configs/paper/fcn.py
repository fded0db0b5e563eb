"""FCN on Pascal VOC (Long et al. 2015, section 4; shelhamer/fcn.berkeleyvision.org voc-fcn*).

In stages, each from the one before (the paper's numbers: 63.6, 65.0 and 65.5 mean IoU on
seg11valid), or FCN-8s at once (Shelhamer et al. 2017, section 4.3). Not run here.

  jseg train --config=paper/fcn:fcn32s --config.data.root=VOCdevkit \
      --config.init_from=torchvision:vgg16 --workdir=runs/fcn32s
  jseg train --config=paper/fcn:fcn16s --config.data.root=VOCdevkit \
      --config.init_from=runs/fcn32s --workdir=runs/fcn16s
  jseg train --config=paper/fcn:fcn8s --config.data.root=VOCdevkit \
      --config.init_from=runs/fcn16s --workdir=runs/fcn8s
  jseg train --config=paper/fcn:fcn8s_at_once --config.data.root=VOCdevkit \
      --config.init_from=torchvision:vgg16 --workdir=runs/fcn8s_at_once

The released recipes sum the loss over an image and take rates of 1e-10, 1e-12 and 1e-14, and 1e-10
at once; ours is a mean, so rates are multiplied by the pixels of an image, about 2e5. Their weight
decay of 5e-4, on that scale, is 0.
"""

import jseg.config

VARIANTS = {"fcn32s": 2e-5, "fcn16s": 2e-7, "fcn8s": 2e-9, "fcn8s_at_once": 2e-5}  # their rates
ABOUT = {
  "fcn32s": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="torchvision:vgg16, or another file of ImageNet's",
    published="63.6 mean IoU on seg11valid",
    protocol="shrink",
  ),
  "fcn16s": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="the run of fcn32s",
    published="65.0 mean IoU on seg11valid",
    protocol="shrink",
  ),
  "fcn8s": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="the run of fcn16s",
    published="65.5 mean IoU on seg11valid",
    protocol="shrink",
  ),
  "fcn8s_at_once": jseg.config.About(
    data="Pascal VOC's VOCdevkit, with SegmentationClassAug",
    weights="torchvision:vgg16, or another file of ImageNet's",
    protocol="shrink",
  ),
}


def get_config(variant="fcn32s"):
  """The configuration of a stage, or of "fcn8s_at_once"."""
  lr = jseg.config.variant(VARIANTS, variant)
  at_once = variant.endswith("_at_once")
  model = variant.removesuffix("_at_once")
  config = jseg.config.default(model, learn_upsampling=False, at_once=at_once)
  config.steps = 100_000
  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.size = (500, 500)
  config.data.batch_size = 1
  config.data.eval_batch_size = 1
  config.augment.scale = (1.0, 1.0)
  config.augment.flip = 0.0
  config.optim.optimizer = "sgd"
  config.optim.lr = lr
  config.optim.momentum = 0.99
  config.optim.weight_decay = 0.0
  config.optim.schedule = "constant"
  config.optim.bias_lr = 2.0
  config.eval_every = 4000
  config.checkpoint_every = 4000
  return config
