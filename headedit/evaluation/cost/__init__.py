"""What edits cost in time, memory and operators, beside the least that is possible and beside their peers."""

from headedit.evaluation.cost.growth import scaling
from headedit.evaluation.cost.measure import Cost, measure_cost
from headedit.evaluation.cost.peers import CONTENDERS
from headedit.evaluation.cost.routing import route_cost
from headedit.evaluation.cost.shapes import SHAPES, Shape

__all__ = ["CONTENDERS", "SHAPES", "Cost", "Shape", "measure_cost", "route_cost", "scaling"]
