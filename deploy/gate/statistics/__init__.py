"""What the verdicts rest on. numpy only; proportions from 0 to 1, differences are candidate minus baseline."""

from .bootstrap import bootstrap_interval
from .mcnemar import mcnemar
from .normal import LARGEST, images_needed, quantile
from .per_class import class_p_values, holm
from .proportion import proportion_images_needed, proportion_interval, unpaired_interval
from .tango import paired_images_needed, paired_interval, paired_score

__all__ = [
    "LARGEST",
    "bootstrap_interval",
    "class_p_values",
    "holm",
    "images_needed",
    "mcnemar",
    "paired_images_needed",
    "paired_interval",
    "paired_score",
    "proportion_images_needed",
    "proportion_interval",
    "quantile",
    "unpaired_interval",
]
