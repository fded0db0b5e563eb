"""Class names of published networks' heads; a file of weights tells only their number."""

from jseg.data.class_lists import CITYSCAPES, VOC
from jseg.data.files.classes import ClassInfo

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
# In the order of their ids, of which ten are not in use.
_COCO = """
  person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
  fire hydrant, , stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
  bear, zebra, giraffe, , backpack, umbrella, , , handbag, tie, suitcase, frisbee, skis,
  snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
  tennis racket, bottle, , wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
  orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, ,
  dining table, , , toilet, , tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
  toaster, sink, refrigerator, , book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""


def class_info(count: int) -> ClassInfo:
  """Classes by their number: VOC's, Cityscapes', COCO's, ADE20K's, or class_0, class_1, ..."""
  for known in (VOC, CITYSCAPES):
    if len(known.names) == count:
      return known
  numbers = tuple(f"class_{i}" for i in range(count))
  ade20k = _names(_ADE20K)
  if len(ade20k) == count:
    return ClassInfo(ade20k)
  coco = ("background", *_names(_COCO))
  if len(coco) == count:
    return ClassInfo(tuple(a or b for a, b in zip(coco, numbers, strict=True)))
  return ClassInfo(numbers)


def _names(text: str) -> tuple[str, ...]:
  return tuple(" ".join(name.split()) for name in text.split(","))
