"""The networks by the name in their card, with those of other packages (entry points in the group
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
# Those that need files and another package, and cannot be built from defaults alone.
WITH_EXTRAS = {"bert": "corrkd.networks.bert:BertNetwork"}


def network_class(name: str) -> type[AnyNetwork]:
    """Return the network of that name.

    Raises:
        CorrKDError: the name is unknown, or the class has another: a saved model is loaded by the
            name of its network.
    """
    built_in = {**BUILT_IN, **WITH_EXTRAS}
    kind: type[AnyNetwork] = find(name, built_in, GROUP, Network, "network", attribute="name")
    return kind
