"""Layout rules: transposes, reshapes and the shapes they are given."""

from __future__ import annotations

from typing import Final

from ..rule import Rule
from .computed_shape import ComputedShape
from .flattened_gemm import FlattenedGemm
from .flattened_transpose import FlattenedTranspose
from .grid_gather import GridGather
from .kept_axis import KeptAxis
from .no_op import NoOp
from .part_of_shape import PartOfShape
from .reshapes import ReshapeOfReshape
from .split_axis import SplitAxis
from .transposes import TransposeOfTranspose
from .unit_axes import UnitTranspose
from .unsqueezes import UnsqueezePair
from .whole_again import WholeAgain

__all__ = [
    "RULES",
    "ComputedShape",
    "FlattenedGemm",
    "FlattenedTranspose",
    "GridGather",
    "KeptAxis",
    "NoOp",
    "PartOfShape",
    "ReshapeOfReshape",
    "SplitAxis",
    "TransposeOfTranspose",
    "UnitTranspose",
    "UnsqueezePair",
    "WholeAgain",
]

#: In the order to run.
RULES: Final[tuple[Rule, ...]] = (
    NoOp(),
    WholeAgain(),
    PartOfShape(),
    FlattenedGemm(),
    FlattenedTranspose(),
    GridGather(),
    ComputedShape(),
    TransposeOfTranspose(),
    UnsqueezePair(),
    KeptAxis(),
    UnitTranspose(),
    ReshapeOfReshape(),
    SplitAxis(),
)
