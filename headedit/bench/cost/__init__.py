"""What edits cost in time, memory and operators, beside the least that is possible and beside their peers."""

from headedit.bench.cost.measure import Cost, measure_cost
from headedit.bench.cost.peers import CONTENDERS
from headedit.bench.cost.routing import route_cost
from headedit.bench.cost.scaling import scaling
from headedit.bench.cost.shapes import SHAPES, Shape

__all__ = ["CONTENDERS", "SHAPES", "Cost", "Shape", "measure_cost", "route_cost", "scaling"]
