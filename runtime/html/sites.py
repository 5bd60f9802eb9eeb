"""The attention sites: alike ones together, each with its source line, operator, kernel, error and reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..report import Report, Site
from ..summary import SiteGroup, group_sites
from ..words import counted
from .markup import Markup, breakable, escape, join, tag
from .numbers import milliseconds, power
from .words import plain_op

__all__ = ["section"]

_FOUND: Final = {
    "sdpa": "captured from torch's scaled dot product attention",
    "softmax": "recognised from its softmax",
    "op": "already one operator in the source graph",
    "recurrence": "captured from a linear attention call",
}
#: What a kernel class means, for readers who do not know the word.
_KERNELS: Final = {
    "flash": "tiled, scores never written to memory",
    "naive": "scores are written out",
    "recurrence": "token by token, no scores at all",
    "own": "deployml's, scores never written to memory",
    "compiled": "compiled, not run here",
    "unknown": "not known for this target",
}


def section(report: Report) -> Markup | None:
    """The section, or None for a model without attention."""
    if not report.sites:
        return None
    groups, times = group_sites(report.sites), _times(report)
    declined = [g for g in groups if g.sites[0].status == "declined"]
    fused = [g for g in groups if g.sites[0].status == "fused"]
    return tag(
        "section",
        tag("h2", "Attention sites"),
        tag("p", _lead(report, len(groups)), class_="soft"),
        *(_decline_note(g) for g in declined),
        _table([*declined, *fused], times),
        tag("details", tag("summary", f"Each of the {len(report.sites)} sites"), _each(report.sites, times)),
        id="sites",
    )


def _times(report: Report) -> dict[str, float]:
    """Node name to milliseconds, where the run was profiled."""
    profile = None if report.latency is None else report.latency.profile
    return {} if profile is None else {node.name: node.ms for node in profile.nodes}


def _took(sites: Sequence[Site], times: Mapping[str, float]) -> str:
    """The time of fused sites together; plain operators are not told from the rest of the graph."""
    known = [times[s.name] for s in sites if s.status == "fused" and s.name in times]
    return milliseconds(math.fsum(known)) if known else "–"


def _lead(report: Report, kinds: int) -> str:
    total, fused = len(report.sites), len(report.fused)
    alike = "" if kinds == total else f", in {counted(kinds, 'group')} of alike ones"
    return f"{fused} of {total} became one fused operator{alike}. The error is that of the fused form against float64."


def _decline_note(group: SiteGroup) -> Markup:
    site = group.sites[0]
    many = f"{len(group.sites)} sites, " if len(group.sites) > 1 else ""
    return tag(
        "div",
        tag("b", "Not fused: ", group.where),
        f" ({many}{site.reason or 'no reason given'})",
        tag("div", site.detail) if site.detail else None,
        tag("div", _advice(site), class_="soft small"),
        class_="note warn",
    )


def _advice(site: Site) -> Markup:
    nearest = f"The nearest lowering was {plain_op(site.nearest)}. " if site.nearest else ""
    if not site.rule and not site.nearest:
        return escape(nearest)
    return join(nearest, "More: ", tag("code", f"deployml explain {site.rule or site.nearest}"))


def _table(groups: Sequence[SiteGroup], times: Mapping[str, float]) -> Markup:
    columns = (*_COLUMNS, ("Time", "num")) if times else _COLUMNS
    heads = [tag("th", text, class_=kind) for text, kind in columns]
    body = [_row(group, times) for group in groups]
    return tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="wide")


_COLUMNS: Final = (("Sites", "num"), ("Where", None), ("Became", None), ("Facts", None), ("Error", "num"))


def _row(group: SiteGroup, times: Mapping[str, float]) -> Markup:
    site = group.sites[0]
    return tag(
        "tr",
        tag("td", len(group.sites), class_="num", data_label="sites"),
        tag(
            "td",
            tag("div", breakable(group.where), class_="mono"),
            _source(site),
            tag("div", _FOUND[site.origin], class_="soft small"),
        ),
        tag("td", *_became(site)),
        tag("td", _facts(site.facts), class_="small"),
        tag("td", power(group.error), class_="num", data_label="error"),
        tag("td", _took(group.sites, times), class_="num", data_label="time") if times else None,
    )


def _source(site: Site) -> Markup | None:
    return tag("div", tag("span", breakable(site.source), class_="mono"), class_="soft small") if site.source else None


def _became(site: Site) -> list[Markup]:
    if site.status == "declined":
        return [tag("div", "plain operators", class_="op fail"), tag("div", site.reason, class_="soft small")]
    kernel = site.kernel or "unknown"
    return [
        tag("div", breakable(plain_op(site.op)), class_="op"),
        tag("div", f"{kernel} kernel: {_KERNELS.get(kernel, 'of its own kind')}", class_="soft small"),
        tag("div", "rule ", tag("code", site.rule), class_="soft small") if site.rule else escape(""),
    ]


def _facts(facts: Mapping[str, Any]) -> Markup:
    """Head counts and masks in words; whatever else is known stays readable."""
    lines = [_heads(facts)] if "heads" in facts else []
    if facts.get("causal"):
        lines.append("causal")
    if facts.get("cross"):
        lines.append("keys of another sequence")
    for name in ("mask", "bias"):
        if name in facts:
            lines.append(f"{name}: {_mask(facts[name])}")
    shown = {"heads", "kv_heads", "head_dim", "value_dim", "scale", "causal", "cross", "mask", "bias"}
    rest = ((name, value) for name, value in facts.items() if name not in shown and value not in (None, False))
    lines += [f"{_spoken(name)}: {_spoken(value)}" for name, value in rest]
    return join(*(tag("div", line) for line in lines))


def _heads(facts: Mapping[str, Any]) -> str:
    heads, groups = facts["heads"], facts.get("kv_heads", facts["heads"])
    shared = f", {groups} for keys" if groups != heads else ""
    return f"{heads} heads of {facts.get('head_dim', '?')}{shared}"


def _mask(value: Any) -> str:
    """{"mask": "key_padding", "axes": "batch,key"} as "key padding (axes batch,key)"."""
    if not isinstance(value, Mapping):
        return _spoken(value)
    kind = value.get("mask") or value.get("kind") or "given"
    rest = [
        _spoken(name) if said is True else f"{_spoken(name)} {_spoken(said)}"
        for name, said in value.items()
        if name not in ("mask", "kind") and said not in (None, False, "", [], (), {})
    ]
    return f"{_spoken(kind)} ({', '.join(rest)})" if rest else _spoken(kind)


def _spoken(value: Any) -> str:
    if isinstance(value, Mapping):
        return _mask(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_spoken, value))
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def _each(sites: Sequence[Site], times: Mapping[str, float]) -> Markup:
    body = [
        tag(
            "tr",
            tag("td", site.index, class_="num"),
            tag("td", tag("span", breakable(site.module_path or site.name), class_="mono")),
            tag("td", breakable(plain_op(site.op)) if site.status == "fused" else f"declined: {site.reason}"),
            tag("td", power(site.error), class_="num", data_label="fused error"),
            tag("td", power(site.error_unfused), class_="num", data_label="unfused error"),
            tag("td", power(site.granted), class_="num", data_label="granted"),
            tag("td", _took([site], times), class_="num", data_label="time") if times else None,
        )
        for site in sites
    ]
    heads = (
        ("#", "num"),
        ("Module", None),
        ("Became", None),
        ("Error", "num"),
        ("Unfused", "num"),
        ("Granted", "num"),
        *((("Time", "num"),) if times else ()),
    )
    row = tag("tr", *(tag("th", text, class_=kind) for text, kind in heads))
    return tag("table", tag("thead", row), tag("tbody", *body), class_="wide small")
