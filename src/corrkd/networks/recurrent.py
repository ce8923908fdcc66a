"""From the frames of one modality to the states of an LSTM, as baselines of that time read their frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from corrkd.networks.draws import current_draws

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class FrameLSTM(nn.Module):
    """A one-directional LSTM over the frames of one modality; invisible frames are zeros.

    It reads left to right, so that padding, which comes last, changes no state of a frame that exists.

    Args:
        inputs: d_m, the width of the frames.
        width: of the states.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.lstm = nn.LSTM(inputs, width, batch_first=True)

    def forward(self, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """(N, T, d_m) and two (N, T) masks, visible within exists -> states (N, T, width), zero in the padding."""
        shown = torch.where(visible[..., None], frames, 0.0)
        draws = current_draws()
        if draws is not None and draws.stacked:  # LSTMs of several runs at once, which torch's kernel cannot do
            return self.states(shown) * exists[..., None]
        # One of several processes may have no sample, which an LSTM refuses: it reads one of zeros, of which nothing is kept.
        batch = shown if len(shown) else shown.new_zeros(1, *shown.shape[1:])
        states: Tensor = self.lstm(batch)[0][: len(shown)]
        return states * exists[..., None]

    def states(self, frames: Tensor) -> Tensor:
        """What `nn.LSTM` computes, as a loop over time: (N, T, d_m) -> (N, T, width)."""
        inputs, recurrent, first, second = (getattr(self.lstm, name) for name in PARAMETERS)
        projected = linear(frames, inputs, first + second)
        hidden = cell = projected.new_zeros(len(frames), self.width)
        states = []
        for gates in projected.unbind(1):
            entry, forget, change, out = (gates + hidden @ recurrent.T).chunk(4, 1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(entry) * torch.tanh(change)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            states.append(hidden)
        return torch.stack(states, 1)

    def last(self, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """The state after each sample's last frame, (N, width); zeros for a sample without frames."""
        states = self(frames, exists, visible)
        places = torch.arange(1, exists.shape[1] + 1, device=exists.device)
        end = (exists * places).amax(1).sub(1).clamp(min=0)
        return states.gather(1, end[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
