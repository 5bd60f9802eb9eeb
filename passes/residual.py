"""Which form a residual sum and its norm take on a target: data, as measured.

Processor time of one thread, float32, 8 x 128 rows of 768 numbers, in ms (``benchmarks/neighbours.py`` measures the
installed onnxruntime; the other versions were measured with the same graphs)::

    onnxruntime                        1.22   1.26   1.29   1.30   1.31
    SkipLayerNormalization             0.64   0.58   0.64   3.59   3.45
    Add, LayerNormalization            0.78   0.86   3.82   0.77   0.71
    Sum, LayerNormalization            0.78   0.90   3.88   0.64   0.60
    SkipSimplifiedLayerNormalization   0.55   0.60   0.68   0.59   0.57
    Add, SimplifiedLayerNormalization  0.72   0.76   0.84   0.40   0.41
    Sum, SimplifiedLayerNormalization  0.84   0.76   0.84   0.38   0.40
    deployml::SkipNormalization                                    0.24
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ..custom_ops import library_path
from ..runtime.target import Target

__all__ = ["TABLE", "Form", "Residual", "forms"]

#: The project's operator; onnxruntime's; or a Sum and the norm.
Form = Literal["own", "fused", "sum"]

_LAYER: Final = "LayerNormalization"
_RMS: Final = "SimplifiedLayerNormalization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """One row: the form of a norm with its residual sum on a target, in a range of onnxruntime versions.

    Attributes:
        target: Target name.
        norm: Operator of the norm.
        form: What is written.
        since: Oldest onnxruntime version the row holds for.
        before: The first version it no longer holds for, None for all that follow.
    """

    target: str
    norm: str
    form: Form
    since: tuple[int, ...] = (1, 22)
    before: tuple[int, ...] | None = None

    def holds(self, norm: str, target: Target) -> bool:
        """Whether the row speaks of this norm on this target."""
        version = target.onnxruntime
        inside = self.since <= version and (self.before is None or version < self.before)
        return inside and self.norm == norm and self.target == target.name


#: Best first where several rows hold.
TABLE: Final = (
    Residual(target="cpu", norm=_LAYER, form="own"),
    Residual(target="cpu", norm=_RMS, form="own"),
    Residual(target="cpu", norm=_LAYER, form="fused", before=(1, 30)),
    Residual(target="cpu", norm=_RMS, form="fused", before=(1, 30)),
    Residual(target="cpu", norm=_LAYER, form="sum", since=(1, 30)),
    Residual(target="cpu", norm=_RMS, form="sum", since=(1, 30)),
    Residual(target="cuda", norm=_LAYER, form="fused"),
    Residual(target="cuda", norm=_RMS, form="fused"),
    Residual(target="rocm", norm=_LAYER, form="fused"),
    Residual(target="rocm", norm=_RMS, form="fused"),
)


def forms(norm: str, target: Target) -> tuple[Form, ...]:
    """The forms of a norm with its residual sum that pay on a target, best first; the own one where it is built.

    With ``--fusion always`` onnxruntime's fused operator comes before a plain sum, whatever it costs.
    """
    found = [row.form for row in TABLE if row.holds(norm, target)]
    if found and target.fusion == "always":
        found = [*dict.fromkeys([*(form for form in found if form != "sum"), "fused"])]
    return tuple(form for form in found if form != "own" or library_path("cpu") is not None)
