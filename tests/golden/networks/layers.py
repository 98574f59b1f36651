"""Convolutions, norms and blocks, each as the trace of a golden file describes the layer of its name."""

from types import ModuleType

from torch import nn


class Layers:
    """Makes the layers of a file with one library."""

    def __init__(self, spconv: ModuleType, config: dict):
        self.spconv = spconv
        self.trace = {entry["name"]: entry for entry in config["trace"]}
        self.eps = config["arch"].get("bn_eps")  # a number, or one by the name of each norm

    @property
    def spatial_shape(self) -> list[int]:
        """Of the input."""
        return next(iter(self.trace.values()))["shape_in"]

    def children(self, prefix: str) -> list[str]:
        """Names directly below `prefix`, or of all roots, in order of execution."""
        depth = prefix.count(".") + 1 if prefix else 0
        below = (name.split(".") for name in self.trace if not prefix or name.startswith(f"{prefix}."))
        return list(dict.fromkeys(parts[depth] for parts in below if len(parts) > depth))

    def conv(self, name: str) -> nn.Module:
        entry = self.trace[name]
        ndim, kind = len(entry["kernel"]), entry["kind"]
        cls = {"subm": "SubMConv", "pointwise": "SubMConv", "strided": "SparseConv", "inverse": "SparseInverseConv"}[kind]
        arguments = {"kernel_size": entry["kernel"], "bias": entry["bias"], "indice_key": entry["indice_key"]}
        if kind == "strided":
            arguments |= {name: entry[name] for name in ("stride", "padding", "dilation")}
        elif kind != "inverse":
            # As the user gave it, to be ignored.
            arguments |= {"padding": entry["padding_argument_ignored"], "dilation": entry["dilation"]}
        return getattr(self.spconv, f"{cls}{ndim}d")(entry["c_in"], entry["c_out"], **arguments)

    def norm(self, name: str, channels: int) -> nn.BatchNorm1d:
        return nn.BatchNorm1d(channels, eps=self.eps[name] if isinstance(self.eps, dict) else self.eps, momentum=0.01)

    def block(self, name: str) -> nn.Module:
        """Convolution, norm and ReLU, the children 0, 1 and 2 of `name`."""
        conv = self.conv(f"{name}.0")
        return self.spconv.SparseSequential(conv, self.norm(f"{name}.1", conv.out_channels), nn.ReLU())

    def residual_block(self, name: str) -> nn.Module:
        """Two submanifold convolutions with norms around a skip, which is projected where the width changes."""
        spconv = self.spconv
        conv1, conv2 = self.conv(f"{name}.conv1"), self.conv(f"{name}.conv2")
        bn1, bn2 = self.norm(f"{name}.bn1", conv1.out_channels), self.norm(f"{name}.bn2", conv2.out_channels)
        proj = None
        if f"{name}.proj.0" in self.trace:
            proj = spconv.SparseSequential(self.conv(f"{name}.proj.0"), self.norm(f"{name}.proj.1", conv2.out_channels))

        class ResidualBlock(spconv.SparseModule):
            def __init__(self):
                super().__init__()
                self.conv1, self.bn1, self.relu, self.conv2, self.bn2 = conv1, bn1, nn.ReLU(), conv2, bn2
                self.proj = spconv.SparseSequential(nn.Identity()) if proj is None else proj

            def forward(self, x):
                out = self.conv1(x)
                out = out.replace_feature(self.bn1(out.features))
                out = out.replace_feature(self.relu(out.features))
                out = self.conv2(out)
                out = out.replace_feature(self.bn2(out.features))
                out = out.replace_feature(out.features + self.proj(x).features)
                return out.replace_feature(self.relu(out.features))

        return ResidualBlock()

    def stage(self, name: str) -> nn.Module:
        """Plain and residual blocks, the children 0, 1, ... of `name`."""
        blocks = [f"{name}.{child}" for child in self.children(name)]
        made = [self.residual_block(block) if f"{block}.conv1" in self.trace else self.block(block) for block in blocks]
        return self.spconv.SparseSequential(*made)
