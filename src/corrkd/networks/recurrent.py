"""LSTM and GRU over the frames of one modality, for the baselines that use them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from corrkd.networks.draws import current_draws

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class FrameRecurrence(nn.Module):
    """A one-directional recurrent layer over the frames of one modality. Invisible frames are read
    as zeros.

    It reads left to right, so padding, which comes last, does not change earlier states.

    Args:
        width: width of the states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @property
    def kernel(self) -> nn.RNNBase:
        """The torch layer, which holds the parameters."""
        raise NotImplementedError

    def states(self, frames: Tensor) -> Tensor:
        """Return the output of the kernel, by a loop over time: (N, T, d_m) -> (N, T, width)."""
        raise NotImplementedError

    def forward(self, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """Return the states, zero in the padding: (N, T, d_m) and two (N, T) masks
        -> (N, T, width). `visible` implies `exists`.
        """
        filled = torch.where(visible[..., None], frames, 0.0)
        draws = current_draws()
        if (
            draws is not None and draws.stacked
        ):  # several runs at once, which torch's kernel does not support
            return self.states(filled) * exists[..., None]
        # One of several processes may have no samples, which the kernel refuses: it reads a sample
        # of zeros, which is cut off again.
        batch = filled if len(filled) else filled.new_zeros(1, *filled.shape[1:])
        states: Tensor = self.kernel(batch)[0][: len(filled)]
        return states * exists[..., None]

    def last(self, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """Return the state after each sample's last frame, (N, width); zeros if it has no frame."""
        return last_state(self(frames, exists, visible), exists)

    def parameters_in_order(self) -> list[Tensor]:
        """Return the weights of the inputs and of the states, and the bias of each."""
        return [getattr(self.kernel, name) for name in PARAMETERS]


class FrameLSTM(FrameRecurrence):
    """An LSTM over the frames of one modality (Hochreiter and Schmidhuber, 1997).

    Args:
        inputs: d_m, width of the frames.
        width: width of the states.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.lstm = nn.LSTM(inputs, width, batch_first=True)

    @property
    def kernel(self) -> nn.RNNBase:
        """The LSTM."""
        return self.lstm

    def states(self, frames: Tensor) -> Tensor:
        """Return the output of `nn.LSTM`, by a loop over time: (N, T, d_m) -> (N, T, width)."""
        inputs, recurrent, first, second = self.parameters_in_order()
        projected = linear(frames, inputs, first + second)
        hidden = cell = projected.new_zeros(len(frames), self.width)
        states = []
        for gates in projected.unbind(1):
            entry, forget, change, out = (gates + hidden @ recurrent.T).chunk(4, 1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(entry) * torch.tanh(change)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            states.append(hidden)
        return torch.stack(states, 1)


class FrameGRU(FrameRecurrence):
    """A GRU over the frames of one modality (Cho et al., EMNLP 2014), with the reset gate after the
    product, as in `nn.GRU`.

    Args:
        inputs: d_m, width of the frames.
        width: width of the states.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.gru = nn.GRU(inputs, width, batch_first=True)

    @property
    def kernel(self) -> nn.RNNBase:
        """The GRU."""
        return self.gru

    def states(self, frames: Tensor) -> Tensor:
        """Return the output of `nn.GRU`, by a loop over time: (N, T, d_m) -> (N, T, width)."""
        inputs, recurrent, first, second = self.parameters_in_order()
        projected = linear(frames, inputs, first)
        hidden = projected.new_zeros(len(frames), self.width)
        states = []
        for gates in projected.unbind(1):
            reset, update, change = gates.chunk(3, 1)
            reset_state, update_state, change_state = linear(hidden, recurrent, second).chunk(3, 1)
            kept = torch.sigmoid(update + update_state)
            candidate = torch.tanh(change + torch.sigmoid(reset + reset_state) * change_state)
            hidden = kept * hidden + (1.0 - kept) * candidate
            states.append(hidden)
        return torch.stack(states, 1)


def last_state(states: Tensor, counted: Tensor) -> Tensor:
    """Return the state after each sample's last counted frame: (N, T, width) and (N, T) booleans
    -> (N, width).

    If no frame is counted, return the first state.
    """
    steps = torch.arange(1, counted.shape[1] + 1, device=counted.device)
    end = (counted * steps).amax(1).sub(1).clamp(min=0)
    return states.gather(1, end[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
