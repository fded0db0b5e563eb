"""Your own training loop: jseg's networks, losses and metrics with optax, pmap and Orbax alone.

  python examples/own_loop.py --steps=100 --workdir=runs/own_loop

No trainer, no configuration, no data pipeline: everything that happens is in this file.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import jseg
from jseg.nn.devices import AXIS
from jseg.types import IGNORE


def make_batch(rng: np.random.Generator, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws discs (class 1) on noise (class 0), with a void rim: images, labels."""
  rows, columns = np.mgrid[:size, :size]
  center = rng.uniform(0.25, 0.75, (batch, 2, 1, 1)) * size
  radius = rng.uniform(0.1, 0.25, (batch, 1, 1)) * size
  distance = np.hypot(rows - center[:, 0], columns - center[:, 1]) - radius
  label = np.where(np.abs(distance) < 0.5, IGNORE, distance < 0).astype(np.int32)
  noise = rng.normal(size=(batch, size, size, 3))
  image = 110 + 30 * noise + 40 * (distance < 0)[..., None]
  return image.clip(0, 255).astype(np.uint8), label


def main() -> None:
  """Trains, evaluates, saves and restores."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=100)
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/own_loop"))
  arguments = parser.parse_args()
  size, batch, devices = 48, 8, jax.local_device_count()

  model = jseg.models.create("unet", num_classes=2, widths=(8, 16, 32))
  optimizer = optax.adamw(3e-3)
  variables = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  state = {**variables, "opt_state": optimizer.init(variables["params"])}

  def train_step(state, image, label):
    def loss_fn(params):
      outputs, updated = model.apply(
        {"params": params, "batch_stats": state["batch_stats"]},
        jseg.images.normalize(image),
        train=True,
        mutable=["batch_stats"],
      )
      total, count = jseg.losses.cross_entropy(outputs.logits, label)
      # Sums over all devices first, one division last.
      return total / jax.lax.psum(count, AXIS), updated["batch_stats"]

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
    loss, grads = jax.lax.psum((loss, grads), AXIS)
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "batch_stats": stats, "opt_state": opt_state}, loss

  # The axis is named as jseg's norms know it, so that their statistics are the global batch's.
  train_step = jax.pmap(train_step, axis_name=AXIS, in_axes=(None, 0, 0), out_axes=None)

  rng = np.random.default_rng(0)
  for step in range(1, arguments.steps + 1):
    arrays = (a.reshape(devices, -1, *a.shape[1:]) for a in make_batch(rng, batch, size))
    state, loss = train_step(state, *arrays)
    if step % 20 == 0 or step == arguments.steps:
      print(f"step {step}: loss {float(loss):.4f}")

  path = arguments.workdir.absolute() / "state"
  host = jax.device_get(state)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, host, force=True)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(path, host)

  variables = {name: restored[name] for name in ("params", "batch_stats")}
  image, label = make_batch(np.random.default_rng(1), 16, size)
  outputs = jax.jit(model.apply)(variables, jseg.images.normalize(image))
  counts = jseg.metrics.ConfusionState.empty(2).update(
    jseg.metrics.confusion(jnp.argmax(outputs.logits, -1), label, 2)
  )
  print(f"mIoU {counts.compute().miou:.3f} on new images, from the restored checkpoint")


if __name__ == "__main__":
  main()
