"""One file a rule, registered here under its name in gate.toml."""

from collections.abc import Callable, Iterator

from ..comparison import Case
from ..report import RuleResult
from .accuracy import judge_top1, judge_top5
from .flips import judge_flips
from .floor import judge_floor
from .latency import judge_latency
from .mean_class import judge_mean_class
from .size import judge_size
from .worst_class import judge_worst_class

RULES: dict[str, Callable[[Case], Iterator[RuleResult]]] = {
    "top1": judge_top1,
    "top5": judge_top5,
    "mean_class": judge_mean_class,
    "worst_class": judge_worst_class,
    "flips": judge_flips,
    "floor": judge_floor,
    "size": judge_size,
    "latency": judge_latency,
}
"""In the order they are reported; a rule that is not configured yields nothing."""

__all__ = ["RULES"]
