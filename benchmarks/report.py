"""Puts the results of networks.py into the documentation, and a sentence into README.

python benchmarks/report.py             # after python benchmarks/networks.py --name=...
"""

import json
import pathlib
import re
import statistics
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PLOT = ROOT / "docs" / "performance.png"
NAMES = {
  "unet": "U-Net",
  "unet3d": "3D U-Net",
  "segnet": "SegNet",
  "fcn8s": "FCN-8s",
  "deeplab_v1": "DeepLab V1",
  "deeplab_v2": "DeepLab V2 (ResNet-101)",
  "deeplab_v3": "DeepLab V3 (ResNet-50)",
  "fcn_resnet": "FCN (ResNet-50)",
  "pspnet": "PSPNet (ResNet-50)",
  "refinenet": "RefineNet (ResNet-101)",
  "mask_rcnn": "Mask R-CNN (ResNet-50)",
}
MODES = {"train": "training step", "infer": "inference"}


def results() -> dict[str, dict[str, Any]]:
  """Records of networks.py by the names of their files."""
  paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
  records = {path.stem: json.loads(path.read_text()) for path in paths}
  return {name: record for name, record in records.items() if "matmul_gflops" in record}


def ratios(record: Mapping[str, Any], mode: str) -> list[float]:
  """PyTorch's seconds over ours, network by network."""
  return [modes[mode]["ratio"] for modes in record["networks"].values() if mode in modes]


def describe(record: Mapping[str, Any]) -> str:
  """The machine and what ran on it, in a sentence."""
  found, settings = record["machine"], record["settings"]
  return (
    f"{found['cpu']} ({', '.join(found['instructions'])}), {found['cores']} cores, jax "
    f"{found['jax']}, torch {found['torch']}, {found['date']}; {settings['batch']} images of "
    f"{settings['size']} x {settings['size']}, or a volume of {' x '.join(settings['volume'])}. A "
    f"product of 2048 x 2048 reaches {record['matmul_gflops']:.0f} GFLOP/s."
  )


def table(record: Mapping[str, Any]) -> str:
  """A Markdown table of a record."""
  lines = [
    "| | PyTorch | jseg | ratio | of peak | first step, cached | memory: PyTorch, jseg |",
    "|-|-|-|-|-|-|-|",
  ]
  for network, label in NAMES.items():
    for mode, words in MODES.items():
      found = record["networks"].get(network, {}).get(mode)
      if found is None:
        continue
      theirs, ours = found["pytorch"], found["jseg"]
      share = found["operations"] / ours["seconds"] / 1e9 / record["matmul_gflops"]
      gigabytes = [f"{side['peak_bytes'] / 2**30:.2f}" for side in (theirs, ours)]
      cells = [
        f"{label}, {words}",
        f"{theirs['seconds']:.3f} s",
        f"{ours['seconds']:.3f} s",
        f"{found['ratio']:.2f}",
        f"{share:.0%}",
        f"{ours['first_seconds']:.1f} s, {found['cached_first_seconds']:.1f} s",
        f"{gigabytes[0]}, {gigabytes[1]} GiB",
      ]
      lines.append(f"| {' | '.join(cells)} |")
  measured = {words: ratios(record, mode) for mode, words in MODES.items()}
  means = [f"{words} {statistics.geometric_mean(r):.2f}" for words, r in measured.items() if r]
  return "\n".join([*lines, "", f"Geometric mean of the ratios: {', '.join(means)}."])


def section() -> str:
  """What stands in docs/performance.md."""
  parts = [f"{describe(record)}\n\n{table(record)}" for record in results().values()]
  picture = "![seconds of PyTorch over those of jseg, by network](performance.png)"
  return "\n\n".join([*parts, picture])


def sentence() -> str:
  """What stands in README.md."""
  lines = [
    "Speed on a CPU, as plain PyTorch's time over ours, geometric means and ranges:",
    "",
  ]
  for record in results().values():
    parts = [
      f"{words} {statistics.geometric_mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"
      for mode, words in MODES.items()
      if (found := ratios(record, mode))
    ]
    machine = record["machine"]
    lines.append(
      f"- {machine['cpu']}, {', '.join(machine['instructions'])}, {machine['cores']} cores: "
      f"{', '.join(parts)}"
    )
  lines += ["", "Each network and how it was measured: [docs/performance.md](docs/performance.md)."]
  return "\n".join(lines)


def replace(text: str, name: str, content: str) -> str:
  """Replaces what lies between `<!-- NAME -->` and `<!-- end of NAME -->`."""
  pattern = re.compile(f"(<!-- {name} -->).*?(<!-- end of {name} -->)", re.DOTALL)
  if len(pattern.findall(text)) != 1:
    raise SystemExit(f"no single place for {name}")
  return pattern.sub(lambda match: f"{match[1]}\n{content}\n{match[2]}", text)


def plot() -> None:
  """Draws the ratios of all results."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot as plt

  records = results()
  figure, axes = plt.subplots(
    len(records), 1, figsize=(9, 4.2 * len(records)), squeeze=False, layout="constrained"
  )
  for axis, record in zip(axes.ravel(), records.values(), strict=True):
    shown = [name for name in NAMES if name in record["networks"]]
    modes = [(mode, words) for mode, words in MODES.items() if ratios(record, mode)]
    for i, (mode, words) in enumerate(modes):
      at = [place + 0.4 * (i - (len(modes) - 1) / 2) for place in range(len(shown))]
      values = [record["networks"][name].get(mode, {}).get("ratio", 0) for name in shown]
      bars = axis.barh(at, values, 0.38, label=words, color=("#3566a8", "#e08a3c")[i])
      axis.bar_label(bars, fmt="%.2f", label_type="center", fontsize=8, color="white")
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(shown)), [NAMES[name] for name in shown])
    axis.invert_yaxis()
    axis.set_xlabel("PyTorch's seconds over jseg's: right of 1, jseg is faster")
    cpu = record["machine"]
    axis.set_title(f"{cpu['cpu']}, {cpu['cores']} cores", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.margins(x=0.08)
  figure.savefig(PLOT, dpi=120)


def main() -> None:
  """Writes the documentation."""
  for path, name, content in (
    (ROOT / "docs" / "performance.md", "networks", section()),
    (ROOT / "README.md", "speed", sentence()),
  ):
    path.write_text(replace(path.read_text(), name, content))
  plot()


if __name__ == "__main__":
  main()
