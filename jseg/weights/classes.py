"""Classes that heads of published networks have; the file holds only how many."""

from jseg.data import ClassInfo
from jseg.data.layouts import CITYSCAPES, VOC

# In the order of the scene parsing benchmark (CSAILVision/sceneparsing, objectInfo150).
_ADE20K = """
  wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
  person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa,
  shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
  bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand,
  sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
  pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
  book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
  arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight,
  booth, television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator,
  ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
  plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven,
  ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen,
  blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen,
  plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""


def class_info(count: int) -> ClassInfo:
  """VOC's 21 classes, Cityscapes' 19, ADE20K's 150, or class_0, class_1, ..."""
  for known in (VOC, CITYSCAPES):
    if len(known.names) == count:
      return known
  ade20k = tuple(" ".join(name.split()) for name in _ADE20K.split(","))
  return ClassInfo(ade20k if len(ade20k) == count else tuple(f"class_{i}" for i in range(count)))
