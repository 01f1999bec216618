"""What edits cost in time, memory and operators, next to the upper bound and to other methods."""

from headedit.bench.cost.measure import Cost, measure_cost
from headedit.bench.cost.peers import METHODS
from headedit.bench.cost.routing import route_cost
from headedit.bench.cost.scaling import scaling_cost
from headedit.bench.cost.shapes import SHAPES, Shape

__all__ = ["METHODS", "SHAPES", "Cost", "Shape", "measure_cost", "route_cost", "scaling_cost"]
