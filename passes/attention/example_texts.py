"""Writes the ONNX text of one canonical attention, for the examples of the lowering rules."""

from __future__ import annotations

from dataclasses import dataclass

from ..rule import Example

__all__ = ["AttentionText", "attention_text"]


@dataclass(frozen=True, slots=True)
class AttentionText:
    """A model text that becomes an example once it is said what must happen."""

    text: str
    opset: int

    def fires_once(self, op: str) -> Example:
        """The rule applies once and leaves one node of this operator."""
        return Example(text=self.text, fires=1, emits={op: 1})

    def declines(self, reason: str) -> Example:
        """The rule says no with this reason."""
        return Example(text=self.text, because=reason)


def attention_text(
    *,
    causal: str = "none",
    heads: int | str = 4,
    kv_heads: int | None = None,
    head_size: int = 16,
    query: str = "S",
    key: str | None = None,
    mask: str | None = None,
    bias: str | None = None,
    softcap: float = 0.0,
    weights: bool = False,
    opset: int = 21,
) -> AttentionText:
    """One canonical attention with the given facts; ``mask`` and ``bias`` are shapes such as "B,1,S,T".

    With ``weights`` the softmax result is an output of the graph.
    """
    key = key or ("S" if causal != "none" else "T")
    shared = kv_heads or heads
    if mask is not None and key == "S":
        mask = mask.replace("T", "S")
    inputs = [
        f"float[B,{heads},{query},{head_size}] q",
        f"float[B,{shared},{key},{head_size}] k",
        f"float[B,{shared},{key},{head_size}] v",
    ]
    names = ["q", "k", "v", "", ""]
    for index, (shape, kind, name) in enumerate([(mask, "bool", "m"), (bias, "float", "b")]):
        if shape is not None:
            inputs.append(f"{kind}[{shape}] {name}")
            names[3 + index] = name
    while not names[-1]:
        names.pop()
    attributes = [f"scale = {head_size**-0.5}", f'causal = "{causal}"', 'empty_rows = "zero"']
    if softcap:
        attributes.append(f"softcap = {softcap}")
    arguments = ", ".join(names)
    outputs = [f"float[B,{heads},{query},{head_size}] y"]
    if weights:
        outputs.append(f"float[B,{heads},{query},{key}] w")
    text = f"""<ir_version: 10, opset_import: ["" : {opset}, "deployml.canonical" : 1]>
g ({", ".join(inputs)}) => ({", ".join(outputs)}) {{
  [site] {"y, w" if weights else "y"} = deployml.canonical.Attention <{", ".join(attributes)}> ({arguments})
}}"""
    return AttentionText(text, opset)
