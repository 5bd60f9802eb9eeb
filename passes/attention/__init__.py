"""Attention: recognised once into the canonical op, lowered to the best node of each target."""

from __future__ import annotations

from ..rule import Rule
from .bias_in_part import BiasInPart
from .early_repeat import EarlyRepeat
from .einsum import EinsumProduct
from .fused_matmul import FusedMatMul
from .group_query import GroupQuery
from .group_query_site import GroupQuerySite
from .heads_as_rows import HeadsAsRows
from .infinite_weights import InfiniteWeights
from .late_sum import LateSum
from .lower import lower_attention, record_unrecognised
from .multi_head import MultiHead
from .multi_head_site import MultiHeadSite
from .multiplied_mask import MultipliedMask
from .own import OwnAttention
from .packed_site import PackedSite
from .present import present_attention, record_present
from .recognise import SoftmaxAttention
from .refine import REFINE, refine_attention
from .repeated import RepeatedHeads
from .softmax_axis import SoftmaxAxis
from .standard import Standard
from .standard_site import StandardSite
from .turned_scores import TurnedScores
from .value_first import ValueFirst
from .weight_factors import WeightFactor
from .windows import WindowsAsBatch
from .written_softmax import WrittenSoftmax

__all__ = [
    "LOWER",
    "RECOGNISE",
    "REFINE",
    "lower_attention",
    "present_attention",
    "record_present",
    "record_unrecognised",
    "refine_attention",
]

#: Rules that make and refine the canonical op, in the order they run.
RECOGNISE: tuple[Rule, ...] = (
    FusedMatMul(),
    EinsumProduct(),
    LateSum(),
    BiasInPart(),
    MultipliedMask(),
    WrittenSoftmax(),
    SoftmaxAxis(),
    TurnedScores(),
    ValueFirst(),
    InfiniteWeights(),
    WeightFactor(),
    SoftmaxAttention(),
    StandardSite(),
    MultiHeadSite(),
    GroupQuerySite(),
    PackedSite(),
    RepeatedHeads(),
    EarlyRepeat(),
    HeadsAsRows(),
    WindowsAsBatch(),
)

#: Rules that lower it.
LOWER: tuple[Rule, ...] = (GroupQuery(), MultiHead(), Standard(), OwnAttention())
