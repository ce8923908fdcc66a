"""Registry of the networks by name, including those of other packages (entry points in the group
`corrkd.networks`).
"""

from __future__ import annotations

from corrkd.networks.base import AnyNetwork, Network
from corrkd.plugins import find

GROUP = "corrkd.networks"
BUILT_IN = {
    "corrkd": "corrkd.networks.corrkd:CorrKDNetwork",
    "hrlf": "corrkd.networks.hrlf:HRLFNetwork",
    "late-fusion": "corrkd.networks.late_fusion:LateFusionNetwork",
    "self-mm": "corrkd.networks.self_mm:SelfMMNetwork",
    "cubemlp": "corrkd.networks.cubemlp:CubeMLPNetwork",
    "dmd": "corrkd.networks.dmd:DMDNetwork",
    "mctn": "corrkd.networks.mctn:MCTNNetwork",
    "mctn-per-source": "corrkd.networks.mctn:MCTNPerSourceNetwork",
    "transm": "corrkd.networks.transm:TransMNetwork",
    "smil": "corrkd.networks.smil:SMILNetwork",
    "gcnet": "corrkd.networks.gcnet:GCNetwork",
    "mlp": "corrkd.networks.mlp:MLPNetwork",
    "gru": "corrkd.networks.gru:GRUNetwork",
    "perceiver": "corrkd.networks.perceiver:PerceiverNetwork",
}
# Networks that need files and another package: defaults are not enough to build them.
WITH_EXTRAS = {"bert": "corrkd.networks.bert:BertNetwork"}


def network_class(name: str) -> type[AnyNetwork]:
    """Return the network class with the given name.

    Raises:
        CorrKDError: if the name is unknown, the entry point cannot be loaded or is not a network,
            or the class has another `name`, by which saved models find it.
    """
    built_in = {**BUILT_IN, **WITH_EXTRAS}
    kind: type[AnyNetwork] = find(name, built_in, GROUP, Network, "network", attribute="name")
    return kind
