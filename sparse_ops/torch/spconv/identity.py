"""`Identity`."""

from torch import nn


class Identity(nn.Module):
    """What it is given."""

    def forward(self, input):
        return input

    def input_spatial_size(self, out_size):
        return out_size
