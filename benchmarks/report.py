"""Puts the results of networks.py, keep.py and train_twin.py into the documentation.

python benchmarks/report.py             # after python benchmarks/networks.py --name=...
"""

import json
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
# Where a paper's own number may stand beside ours: its recipe, by data set and network.
PAPERS = {
  ("isbi2012", "unet"): "paper/unet",
  ("voc2012_subset", "deeplab_v1"): "paper/deeplab_v1",
  ("hippocampus3d", "unet3d"): "paper/unet3d",
}
LIBRARIES = ("jseg", "pytorch")

Record = Mapping[str, Any]


def results() -> dict[str, dict[str, Any]]:
  """Records of networks.py by the names of their files."""
  paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
  records = {path.stem: json.loads(path.read_text()) for path in paths}
  return {name: record for name, record in records.items() if "matmul_gflops" in record}


def ratios(record: Record, mode: str) -> list[float]:
  """PyTorch's seconds over ours, network by network."""
  return [modes[mode]["ratio"] for modes in record["networks"].values() if mode in modes]


def cpu(found: Record, isa: str | None = None) -> str:
  """A machine's CPU, what it can or may do, and its cores."""
  kept = f", both sides kept to {isa}" if isa else ""
  cores = f"{found['cores']} core{'s' * (found['cores'] > 1)}"
  return f"{found['cpu']} ({', '.join(found['instructions'])}{kept}), {cores}"


def machine(found: Record, isa: str | None = None) -> str:
  """A machine and its versions."""
  return f"{cpu(found, isa)}, jax {found['jax']}, torch {found['torch']}, {found['date']}"


def describe(record: Record) -> str:
  """The machine and what ran on it, in a sentence."""
  settings = record["settings"]
  return (
    f"{machine(record['machine'], settings.get('isa'))}; {settings['batch']} images of "
    f"{settings['size']} x {settings['size']}, or a volume of {' x '.join(settings['volume'])}. A "
    f"product of 2048 x 2048 reaches {record['matmul_gflops']:.0f} GFLOP/s."
  )


def table(record: Record) -> str:
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
    lines.append(f"- {cpu(record['machine'], record['settings'].get('isa'))}: {', '.join(parts)}")
  how = (
    "Each network, how it was measured, and older CPUs, on which earlier versions were often slower"
  )
  lines += ["", f"{how} than PyTorch: [docs/performance.md](docs/performance.md)."]
  return "\n".join(lines)


def trained() -> list[Record]:
  """Records of keep.py and train_twin.py."""
  return [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("*.json"))]


def settings_of(records: Iterable[Record]) -> list[dict[str, list[Record]]]:
  """The records of one setting after another, by library, each in the order of the seeds."""
  groups: dict[str, dict[str, list[Record]]] = {}
  for record in sorted(records, key=lambda r: (r["data"]["name"], r["network"], r["seed"])):
    key = json.dumps([record[name] for name in ("data", "network", "setting")], sort_keys=True)
    groups.setdefault(key, {each: [] for each in LIBRARIES})[record["library"]].append(record)
  for sides in groups.values():
    ours, theirs = ([record["seed"] for record in sides[each]] for each in LIBRARIES)
    if ours != theirs:
      name = next(record["data"]["name"] for side in sides.values() for record in side)
      raise SystemExit(
        f"{name}: jseg has the seeds {ours}, PyTorch {theirs}; train what is missing"
      )
  return list(groups.values())


def mious(records: Sequence[Record]) -> list[float]:
  """Mean IoU of each record."""
  return [record["scores"]["miou"] for record in records]


def fraction(value: float, sign: str = "") -> str:
  """Three digits behind the point, and nothing before it."""
  return f"{value:{sign}.3f}".replace("0.", ".", 1)


def of_seeds(values: Sequence[float]) -> str:
  """Their mean, and each of several."""
  each = f" ({', '.join(map(fraction, values))})" if len(values) > 1 else ""
  return fraction(statistics.mean(values)) + each


def accuracy(records: Iterable[Record]) -> str:
  """What stands in docs/results.md: who trained what, and the scores of both sides."""
  groups = settings_of(records)
  machines = {machine(r["machine"]) for sides in groups for side in sides.values() for r in side}
  lines = [
    *(f"- {each}" for each in sorted(machines)),
    "",
    "| data | network | trained for | jseg | PyTorch | difference | the paper's own |",
    "|-|-|-|-|-|-|-|",
  ]
  for sides in groups:
    first = sides["jseg"][0]
    scores = {each: mious(side) for each, side in sides.items()}
    means = {each: statistics.mean(values) for each, values in scores.items()}
    range_of_seeds = max(max(values) - min(values) for values in scores.values())
    difference = means["jseg"] - means["pytorch"]
    within = ", within the range of the seeds" if abs(difference) <= range_of_seeds else ""
    setting, data = first["setting"], first["data"]
    cells = [
      f"`{data['name']}`",
      f"{NAMES[first['network']]}, {first['parameters']:,} parameters",
      f"{setting['steps']} steps of {setting['data.batch_size']}",
      *(of_seeds(scores[each]) for each in LIBRARIES),
      f"{fraction(difference, '+')}{within}",
      published(data["name"], first["network"]),
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def published(data: str, network: str) -> str:
  """What the paper's own recipe says of itself; "" where it says nothing of such data."""
  from jseg import recipes

  name = PAPERS.get((data, network))
  return "; ".join(about.published for about in recipes.load(name).about.values()) if name else ""


def accuracy_sentence(records: Iterable[Record]) -> str:
  """What stands in README.md."""
  parts = []
  for sides in settings_of(records):
    ours, theirs = (fraction(statistics.mean(mious(sides[each]))) for each in LIBRARIES)
    first = sides["jseg"][0]
    parts.append(f"{NAMES[first['network']]} on `{first['data']['name']}` {ours} and {theirs}")
  return (
    "Trained for minutes from the same weights on the same batches, validation mIoU of jseg and "
    f"of plain PyTorch: {', '.join(parts)}. How: [docs/results.md](docs/results.md)."
  )


def replace(text: str, name: str, content: str) -> str:
  """Replaces what lies between `<!-- NAME -->` and `<!-- end of NAME -->`."""
  pattern = re.compile(f"(<!-- {name} -->).*?(<!-- end of {name} -->)", re.DOTALL)
  if len(pattern.findall(text)) != 1:
    raise SystemExit(f"no single place for {name}")
  return pattern.sub(lambda match: f"{match[1]}\n{content}\n{match[2]}", text)


def write(path: pathlib.Path, name: str, content: str) -> None:
  """Puts a text into its place in a page."""
  path.write_text(replace(path.read_text(), name, content))


def plot() -> None:
  """Draws the ratios of all results."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot as plt

  records = results()
  figure, axes = plt.subplots(
    len(records),
    1,
    figsize=(9, 4.2 * len(records)),
    sharex=True,
    squeeze=False,
    layout="constrained",
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
    axis.tick_params(labelbottom=True)
    axis.set_title(cpu(record["machine"], record["settings"].get("isa")), fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.margins(x=0.08)
  figure.savefig(PLOT, dpi=120)


def contents() -> list[tuple[pathlib.Path, str, str]]:
  """What is written: the page, the name of the place in it, the text."""
  records = trained()
  return [
    (ROOT / "docs" / "performance.md", "networks", section()),
    (ROOT / "README.md", "speed", sentence()),
    (ROOT / "docs" / "results.md", "accuracy", accuracy(records)),
    (ROOT / "README.md", "accuracy", accuracy_sentence(records)),
  ]


def main() -> None:
  """Writes the documentation."""
  for place in contents():
    write(*place)
  plot()


if __name__ == "__main__":
  main()
