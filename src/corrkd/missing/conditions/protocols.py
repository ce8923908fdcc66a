"""Protocols of published tables: one number is the mean over several conditions
(docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from corrkd.missing.conditions.absent import Absent
from corrkd.missing.conditions.at_ratio import AtRatio
from corrkd.missing.conditions.ratio import Ratio


@dataclass(frozen=True)
class Protocol:
    """Conditions of one kind at several rates, whose mean is reported.

    Attributes:
        name: a value of `evaluation.protocols`.
        title: in reports.
        meaning: what is missing at a rate, for captions.
        condition: the kind.
        rates: by number of modalities.
    """

    name: str
    title: str
    meaning: str
    condition: type[AtRatio]
    rates: Callable[[int], tuple[float, ...]]

    @property
    def row(self) -> str:
        """Return the name of its mean in results, beside the conditions'."""
        return f"mean-{self.name}"

    def conditions(self, modalities: Sequence[str], draws: int = 1) -> list[AtRatio]:
        """Return its conditions, by rising rate, averaged over so many random draws."""
        return [self.condition.at(rate, modalities, draws) for rate in self.rates(len(modalities))]


def tenths(last: int) -> tuple[float, ...]:
    """Return 0, 0.1, ... up to so many tenths."""
    return tuple(k / 10 for k in range(last + 1))


def lnln_rates(num_modalities: int) -> tuple[float, ...]:
    """Return 0, 0.1, ..., 0.9, whatever the number of modalities."""
    return tenths(9)


def gcnet_rates(num_modalities: int) -> tuple[float, ...]:
    """Return 0, 0.1, ..., 0.7, but no more than the first that leaves a single modality: 0.5 of
    two, 0 of one.
    """
    reached = -(-10 * (num_modalities - 1) // num_modalities)
    return tenths(min(7, reached))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("lnln", "LNLN", "random frames of every modality missing", Ratio, lnln_rates),
        Protocol(
            "gcnet", "GCNet", "modalities missing, at least one being left", Absent, gcnet_rates
        ),
    )
}
"""Protocols by name: LNLN (Zhang et al., NeurIPS 2024) and GCNet (Lian et al., TPAMI 2023), which
MERBench's authors and others follow.
"""
