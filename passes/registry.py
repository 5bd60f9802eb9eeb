"""Every rule, in the order of its code. A new rule is registered by its package's ``RULES``."""

from __future__ import annotations

from . import activations, attention, experts, layout, norms, recurrence, rotary
from .rule import Rule

__all__ = ["RULES", "find"]

#: All rules, sorted by code.
RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *attention.RECOGNISE,
            *attention.LOWER,
            *attention.REFINE,
            *norms.RULES,
            *activations.RULES,
            *rotary.RULES,
            *layout.RULES,
            *recurrence.RULES,
            *experts.RULES,
        ),
        key=lambda rule: rule.code,
    )
)


def find(name: str) -> Rule | None:
    """The rule with this code or kebab name, in any case; None when there is none."""
    wanted = name.strip().lower()
    return next((r for r in RULES if wanted in (r.code.lower(), r.name)), None)
