"""How a model differs from its lock, each difference as a sentence that names the place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from .lock import CONSTANTS, Lock, LockedSite, LockedValue
from .report import SCHEMA_VERSION, LatencyReport, ParityReport, Site, Verdict, to_json
from .summary import group_sites
from .words import counted

__all__ = ["CheckReport", "Finding", "differences", "verdict_of"]

Kind = Literal[
    "site",
    "operators",
    "wiring",
    "input",
    "output",
    "axis",
    "opset",
    "weights",
    "parity",
    "nan",
    "load",
    "latency",
    "versions",
]
Side = Literal["input", "output"]
_LAYERS: Final = re.compile(r"(?<=\.)[\d,\-]+(?=\.|$)|^[\d,\-]+(?=\.|$)")
_LISTED_OPS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference.

    Attributes:
        kind: What it concerns.
        where: The place: a module path, a name.
        text: What was and what is, and why, in a sentence.
        verdict: "fail", "inconclusive", or "pass" for what is only worth knowing.
        source: "file.py:123" of the user's code, where known.
    """

    kind: Kind
    where: str
    text: str
    verdict: Verdict = "fail"
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What ``deployml check`` found.

    Attributes:
        verdict: "fail" when any finding fails, else "inconclusive" or "pass".
        model: File name of the model.
        lock: File name of its lock.
        findings: Differences and facts, failures first.
        checked: What was compared, as words.
        not_run: Check name to the reason it was not run.
        parity: Against the source, when one was given.
        latency: Against the unfused graph, when it was asked for.
        versions: Installed packages.
        schema: Version of this form.
        command: "check".
    """

    verdict: Verdict
    model: str
    lock: str
    findings: tuple[Finding, ...] = ()
    checked: tuple[str, ...] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)
    parity: ParityReport | None = None
    latency: LatencyReport | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: str = SCHEMA_VERSION
    command: str = "check"

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that fail the check."""
        return tuple(f for f in self.findings if f.verdict == "fail")

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as JSON text, keys in field order."""
        return to_json(self, indent=indent)


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """The verdict that findings add up to."""
    verdicts = {f.verdict for f in findings}
    return "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"


def differences(locked: Lock, now: Lock, *, weights_decide: bool = True) -> tuple[Finding, ...]:
    """Compare a model as it is with its lock.

    Args:
        locked: What was approved.
        now: What is.
        weights_decide: Whether other weights fail; False where results are compared with the source anyway.
    """
    found = [
        *_sites(locked.sites, now.sites),
        *_operators(locked.census, now.census),
        *_values("input", locked.inputs, now.inputs),
        *_values("output", locked.outputs, now.outputs),
        *_opsets(locked, now),
    ]
    found += [
        *([] if found else _wiring(locked, now)),
        *_weights(locked, now, decide=weights_decide),
        *_versions(locked.versions, now.versions),
    ]
    order = {"fail": 0, "inconclusive": 1}
    return tuple(sorted(found, key=lambda f: order.get(f.verdict, 2)))


def _sites(old: Sequence[LockedSite], new: Sequence[LockedSite]) -> Iterator[Finding]:
    """Sites are the same when they stand at the same place; several at one place are told apart by their order."""
    before, after = _placed(old), _placed(new)
    lost = [before[key] for key in before if key not in after]
    come = [after[key] for key in after if key not in before]
    if lost and len(lost) == len(come) and not set(before) & set(after):  # every path changed: compare by order
        pairs, lost, come = list(zip(old, new, strict=True)), [], []
    else:
        pairs = [(before[key], after[key]) for key in before if key in after]
    said = [(site, text) for was, site in pairs for text in _became(was, site)]
    said += [(site, f"was {_form(site)}; there is no attention at that place any more") for site in lost]
    said += [(site, f"is new: {_form(site)}{_because(site)}") for site in come]
    yield from _grouped(said)


def _placed(sites: Sequence[LockedSite]) -> dict[tuple[str, int], LockedSite]:
    found: dict[tuple[str, int], LockedSite] = {}
    for site in sites:
        number = sum(1 for where, _ in found if where == site.where)
        found[site.where, number] = site
    return found


def _became(was: LockedSite, site: LockedSite) -> Iterator[str]:
    if was.op != site.op or was.status != site.status:
        better = "" if was.status == "fused" else "; if that is welcome, lock it: deployml lock"
        yield f"was {_form(was)}, is now {_form(site)}{_because(site)}{better}"
    elif was.attributes and was.attributes != site.attributes:
        yield f"computes something else: {_changed(was.attributes, site.attributes)}"


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    names = [name for name in sorted({**old, **new}) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name, 'unset')} -> {new.get(name, 'unset')}" for name in names)


def _form(site: LockedSite) -> str:
    if site.status == "fused":
        return (site.op or "one node").removeprefix("com.microsoft::")
    return counted(site.nodes, "plain node")


def _because(site: LockedSite) -> str:
    """The rule, its reason code and its sentence, as far as they are known."""
    if site.status == "fused" or site.reason is None:
        return ""
    if site.rule is None:
        return f": {site.reason}; {site.detail}" if site.detail else f": {site.reason}"
    return f": rule {site.rule} declined, {site.reason}" + (f", because {site.detail}" if site.detail else "")


def _grouped(said: Sequence[tuple[LockedSite, str]]) -> Iterator[Finding]:
    """One finding for all layers of which the same is to be said."""
    proxies = [
        Site(
            index=i,
            name=site.where,
            status="declined",
            reason=text,
            source=site.source,
            module_path=site.where,
        )
        for i, (site, text) in enumerate(said)
    ]
    for group in group_sites(proxies):
        first = group.sites[0]
        yield Finding(
            kind="site",
            where=group.where,
            text=f"{_called(group.where, len(group.sites))} {first.reason}",
            source=first.source,
        )


def _called(where: str, many: int) -> str:
    numbers = ".".join(_LAYERS.findall(where))
    layer = f"layer{'' if many == 1 else 's'} {numbers} " if numbers else ""
    return f"{layer}attention ({where})" + (f", {many} of them," if many > 1 else "")


def _operators(old: Mapping[str, int], new: Mapping[str, int]) -> Iterator[Finding]:
    names = sorted(
        (n for n in {**old, **new} if old.get(n, 0) != new.get(n, 0)),
        key=lambda n: (-abs(new.get(n, 0) - old.get(n, 0)), n),
    )
    if not names:
        return
    listed = [f"{n.removeprefix('com.microsoft::')} {old.get(n, 0)} -> {new.get(n, 0)}" for n in names[:_LISTED_OPS]]
    rest = f" and {len(names) - _LISTED_OPS} more" if len(names) > _LISTED_OPS else ""
    counts = f"{sum(old.values())} nodes were locked, there are {sum(new.values())}"
    yield Finding(kind="operators", where="graph", text=f"operators changed: {', '.join(listed)}{rest}; {counts}")


def _values(kind: Side, old: Sequence[LockedValue], new: Sequence[LockedValue]) -> Iterator[Finding]:
    before, after = {v.name: v for v in old}, {v.name: v for v in new}
    for name, value in before.items():
        if name not in after:
            there = ", ".join(f"'{n}'" for n in after) or "none"
            yield Finding(kind=kind, where=name, text=f"{kind} '{name}' is gone; the {kind}s are now {there}")
        else:
            yield from _value(kind, value, after[name])
    for name in after:
        if name not in before:
            yield Finding(kind=kind, where=name, text=f"{kind} '{name}' is new")
    shared = [n for n in before if n in after]
    if shared != [n for n in after if n in before]:
        text = f"the {kind}s stand in another order: {', '.join(after)} (locked: {', '.join(before)})"
        yield Finding(kind=kind, where=kind, text=text)


def _value(kind: Side, was: LockedValue, now: LockedValue) -> Iterator[Finding]:
    if was.dtype != now.dtype:
        yield Finding(kind=kind, where=now.name, text=f"{kind} '{now.name}' was {was.dtype}, is now {now.dtype}")
    if was.shape is None or now.shape is None or len(was.shape) != len(now.shape):
        if was.shape != now.shape:
            text = f"{kind} '{now.name}' had the shape {_shape(was.shape)}, has now {_shape(now.shape)}"
            yield Finding(kind=kind, where=now.name, text=text)
        return
    for axis, (before, after) in enumerate(zip(was.shape, now.shape, strict=True)):
        if before != after:
            text = f"axis {axis} of {kind} '{now.name}' {_axis(before, after)}"
            yield Finding(kind="axis", where=now.name, text=text)


def _axis(before: int | str | None, after: int | str | None) -> str:
    if isinstance(after, int):
        return (
            f"was dynamic ({before or 'no name'}) and is now fixed at {after}"
            if not isinstance(before, int)
            else (f"was fixed at {before} and is now fixed at {after}")
        )
    if isinstance(before, int):
        return f"was fixed at {before} and is now dynamic ({after or 'no name'})"
    return f"was called {before or 'nothing'} and is now called {after or 'nothing'}"


def _shape(shape: Sequence[int | str | None] | None) -> str:
    return "unknown" if shape is None else f"[{', '.join('?' if d is None else str(d) for d in shape)}]"


def _opsets(locked: Lock, now: Lock) -> Iterator[Finding]:
    for domain in sorted({**locked.opsets, **now.opsets}):
        was, have = locked.opsets.get(domain), now.opsets.get(domain)
        if was != have:
            text = f"opset of {domain} was {was or 'not imported'}, is now {have or 'not imported'}"
            yield Finding(kind="opset", where=domain, text=text)
    if locked.ir_version != now.ir_version:
        text = f"the file's IR version was {locked.ir_version}, is now {now.ir_version}"
        yield Finding(kind="opset", where="IR version", text=text)


def _wiring(locked: Lock, now: Lock) -> Iterator[Finding]:
    """The same operators, each as often: what is left to differ is what they are told and what they read."""
    if None in (locked.wiring, now.wiring) or locked.wiring == now.wiring:
        return
    text = "the operators are the locked ones, but some have other attributes or axes, or read other values"
    yield Finding(kind="wiring", where="graph", text=f"{text}; give --against SOURCE, or lock the model anew")


def _without_constants(locked: Lock, now: Lock) -> Mapping[str, str]:
    """A graph with other operators has other constants, which is said already."""
    if locked.census == now.census or CONSTANTS not in {**locked.weights, **now.weights}:
        return locked.weights
    kept = {name: digest for name, digest in locked.weights.items() if name != CONSTANTS}
    return {**kept, **({CONSTANTS: now.weights[CONSTANTS]} if CONSTANTS in now.weights else {})}


def _weights(locked: Lock, now: Lock, *, decide: bool) -> Iterator[Finding]:
    """A digest of all parts together would say that something changed; one for each part says where."""
    old, new = _without_constants(locked, now), now.weights
    if not old or _same_weights(locked, now, old):
        return
    parts = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    listed = ", ".join(parts[:6]) + (f" and {len(parts) - 6} more parts" if len(parts) > 6 else "")
    said = f"other weights than those that were locked, in {listed}"
    if not parts:
        said = "the weights are the locked ones, but some stand in each other's place within their layer"
    advice = "" if not decide else "; give --against SOURCE to have the results compared, or lock the model anew"
    verdict: Verdict = "fail" if decide else "pass"
    yield Finding(kind="weights", where=listed or "graph", text=f"{said}{advice}", verdict=verdict)


def _same_weights(locked: Lock, now: Lock, old: Mapping[str, str]) -> bool:
    """Whether each weight stands where it stood; in a graph that is wired otherwise, whether all are there."""
    if locked.computation is not None and now.computation is not None and locked.wiring == now.wiring:
        return locked.computation == now.computation
    return sorted(old.values()) == sorted(now.weights.values())


def _versions(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Finding]:
    names = [n for n in sorted({**old, **new}) if old.get(n) != new.get(n)]
    if names:
        listed = ", ".join(f"{n} {old.get(n, 'none')} -> {new.get(n, 'none')}" for n in names)
        yield Finding(kind="versions", where="versions", text=f"made with other versions: {listed}", verdict="pass")
