"""A small Mask R-CNN on the nuclei of the Data Science Bowl 2018, from random values.

  jseg train --config=mask_rcnn_dsb2018 --config.data.root=dsb2018 \
      --workdir=runs/mask_rcnn_dsb2018

`dsb2018` is a folder data set of objects: classes.json with "task": "instance" and
{train,val}/{images,masks}, where a mask's pixels are ids of nuclei. An image may hold 200 of them,
of 6 to 45 pixels. It trains on crops and evaluates whole images, larger ones shrunk. The same
images as classes, for a U-Net:

  jseg train --config=folder --config.data.root=dsb2018 \
      --config.model.widths="(16,32,64,128)" --config.steps=400 --config.data.size="(320,320)" \
      --config.augment.crop="(128,128)" --workdir=runs/unet_dsb2018
"""

import jseg.config

ABOUT = jseg.config.About(
  data="252 images of nuclei of the Data Science Bowl 2018 as `jseg get-data dsb2018` makes them",
  extras=("instance",),
  minutes=30,
  reaches="validation mask AP .472, AP50 .783, box AP .448",
)


def get_config():
  """The configuration."""
  config = jseg.config.default(
    "mask_rcnn",
    backbone="resnet18",
    width=0.5,
    norm="batch",
    channels=48,
    dense=128,
    mask_convs=2,
    anchor_sizes=(10, 20, 40, 80, 160),
    proposals=(200, 300),
    candidates=(200, 300),
    anchor_samples=128,
    samples=96,
    detections=200,
  )
  config.steps = 500
  config.data.name = "folder"
  config.data.size = (320, 320)
  config.data.batch_size = 8
  config.data.eval_batch_size = 4
  config.data.max_objects = 200
  config.data.mask_size = 28
  config.augment.crop = (128, 128)
  config.augment.scale = (0.7, 1.4)
  config.augment.flip_vertical = 0.5
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.augment.saturation = 0.2
  config.augment.hue = 0.1
  config.optim.optimizer = "adamw"
  config.optim.lr = 2e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 50
  config.optim.clip_norm = 1.0
  config.eval_every = 250
  config.checkpoint_every = 250
  return config
