"""The networks by the name in their card, with those of other packages (entry points in the group `corrkd.networks`)."""

from __future__ import annotations

from corrkd.networks.base import AnyNetwork, Network
from corrkd.plugins import find

GROUP = "corrkd.networks"
BUILT_IN = {
    "corrkd": "corrkd.networks.corrkd:CorrKDNetwork",
    "late-fusion": "corrkd.networks.late_fusion:LateFusionNetwork",
    "self-mm": "corrkd.networks.self_mm:SelfMMNetwork",
    "cubemlp": "corrkd.networks.cubemlp:CubeMLPNetwork",
    "dmd": "corrkd.networks.dmd:DMDNetwork",
    "mctn": "corrkd.networks.mctn:MCTNNetwork",
    "mctn-per-source": "corrkd.networks.mctn:MCTNPerSourceNetwork",
    "transm": "corrkd.networks.transm:TransMNetwork",
    "smil": "corrkd.networks.smil:SMILNetwork",
    "gcnet": "corrkd.networks.gcnet:GCNetwork",
}


def network_class(name: str) -> type[AnyNetwork]:
    """The network of that name. Raises CorrKDError for an unknown one."""
    found: type[AnyNetwork] = find(name, BUILT_IN, GROUP, Network, "network")
    return found
