"""Results for people: console, plots, overlays, sample pictures."""

from jseg.report.objects import draw_objects, same_colors, save_instance_map
from jseg.report.overlay import ALPHA, PNG, VOID_COLOR, colorize, legend, overlay, patches
from jseg.report.plots import save_calibration_plot, save_confusion_plot, save_curves
from jseg.report.png import save_png
from jseg.report.samples import save_previews, save_samples, terminal_pictures

__all__ = [
  "ALPHA",
  "PNG",
  "VOID_COLOR",
  "colorize",
  "draw_objects",
  "legend",
  "overlay",
  "patches",
  "same_colors",
  "save_calibration_plot",
  "save_confusion_plot",
  "save_curves",
  "save_instance_map",
  "save_png",
  "save_previews",
  "save_samples",
  "terminal_pictures",
]
