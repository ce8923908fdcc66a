"""Protocols of published tables, in which one number is the mean over several conditions
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
    """Conditions of one kind at several rates, of which the mean is reported.

    Attributes:
        name: value in `evaluation.protocols`.
        title: name in reports.
        meaning: what is missing at a rate, for captions.
        condition: the kind.
        rates: rates by number of modalities.
    """

    name: str
    title: str
    meaning: str
    condition: type[AtRatio]
    rates: Callable[[int], tuple[float, ...]]

    @property
    def row(self) -> str:
        """Name of the mean in results, next to the conditions' names."""
        return f"mean-{self.name}"

    def conditions(self, modalities: Sequence[str], draws: int = 1) -> list[AtRatio]:
        """Return the conditions by rising rate, each averaged over `draws` random draws."""
        return [self.condition.at(rate, modalities, draws) for rate in self.rates(len(modalities))]


def tenths(last: int) -> tuple[float, ...]:
    """Return 0, 0.1, ... up to `last` tenths."""
    return tuple(k / 10 for k in range(last + 1))


def lnln_rates(num_modalities: int) -> tuple[float, ...]:
    """Return 0, 0.1, ..., 0.9, for any number of modalities."""
    return tenths(9)


def gcnet_rates(num_modalities: int) -> tuple[float, ...]:
    """Return 0, 0.1, ..., 0.7, but no more than the first rate that leaves a single modality: 0.5
    for two modalities, 0 for one.
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
the authors of MERBench and others follow.
"""
