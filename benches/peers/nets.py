"""The nets of benches/common in torch. Modules are called as Limbeck's weights are."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Conv(nn.Module):
    """A convolution, normalised over the batch where it has no bias."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, pad=None, group=1, norm=True):
        super().__init__()
        pad = kernel // 2 if pad is None else pad
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=group, bias=not norm)
        self.bn = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x):
        return self.bn(self.conv(x))


class Block(nn.Module):
    """Two convolutions; a 1x1 convolution as shortcut where the shape changes."""

    def __init__(self, inputs, outputs, stride, norm):
        super().__init__()
        self.a, self.b = Conv(inputs, outputs, 3, stride, norm=norm), Conv(outputs, outputs, norm=norm)
        same = stride == 1 and inputs == outputs
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=not norm)

    def forward(self, x):
        return F.relu(self.b(F.relu(self.a(x))) + self.short(x))


class ResNet8(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.stem = Conv(3, 16, norm=norm)
        self.block0, self.block1, self.block2 = Block(16, 16, 1, norm), Block(16, 32, 2, norm), Block(32, 64, 2, norm)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        h = self.block2(self.block1(self.block0(F.relu(self.stem(x)))))
        return self.fc(h.mean((2, 3)))


class Separable(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depth, self.point = Conv(channels, channels, group=channels), Conv(channels, channels, 1)

    def forward(self, x):
        return F.relu(self.point(F.relu(self.depth(x))))


class DsCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Conv(1, 64, (10, 4), 2, (5, 1))
        self.block0, self.block1, self.block2, self.block3 = (Separable(64) for _ in range(4))
        self.fc = nn.Linear(64, 12)

    def forward(self, x):
        h = F.relu(self.stem(x))
        for block in (self.block0, self.block1, self.block2, self.block3):
            h = block(h)
        return self.fc(h.mean((2, 3)))


class Inverted(nn.Module):
    """Expansion, depthwise convolution, projection; added to its input where the shape stays."""

    def __init__(self, inputs, outputs, expansion, stride):
        super().__init__()
        inner = inputs * expansion
        self.expand = Conv(inputs, inner, 1) if expansion > 1 else None
        self.depth, self.project = Conv(inner, inner, 3, stride, group=inner), Conv(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        h = F.relu6(self.expand(x)) if self.expand else x
        h = self.project(F.relu6(self.depth(h)))
        return x + h if self.residual else h


class MobileNetV2(nn.Module):
    """Width 0.35. Expansion, output channels (scaled, multiples of 8), repeats and first stride of each stage."""

    STAGES = [(1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 3, 2), (6, 24, 4, 2), (6, 32, 3, 1), (6, 56, 3, 2), (6, 112, 1, 1)]

    def __init__(self):
        super().__init__()
        self.stem, channels, self.blocks = Conv(3, 16, 3, 2), 16, []
        for expansion, outputs, repeats, first in self.STAGES:
            for stride in [first] + [1] * (repeats - 1):
                block = Inverted(channels, outputs, expansion, stride)
                self.add_module(f"block{len(self.blocks)}", block)
                self.blocks.append(block)
                channels = outputs
        self.last, self.fc = Conv(channels, 1280, 1), nn.Linear(1280, 10)

    def forward(self, x):
        h = F.relu6(self.stem(x))
        for block in self.blocks:
            h = block(h)
        return self.fc(F.relu6(self.last(h)).mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x):
        n, length, width = x.shape
        h = self.norm1(x)
        q, k, v = (p(h).view(n, length, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        x = x + self.o(h.transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer0, self.layer1 = Layer(128, 4), Layer(128, 4)
        self.norm, self.fc = nn.LayerNorm(128), nn.Linear(128, 10)

    def forward(self, x):
        return self.fc(self.norm(self.layer1(self.layer0(x))).mean(1))


class Autoencoder(nn.Module):
    WIDTHS = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]

    def __init__(self):
        super().__init__()
        self.layers = []
        for i, (inputs, outputs) in enumerate(zip(self.WIDTHS, self.WIDTHS[1:])):
            layer = nn.Linear(inputs, outputs)
            self.add_module(f"layer{i}", layer)
            self.layers.append(layer)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


NETS = {
    "resnet8": lambda: ResNet8(True),
    "resnet8-plain": lambda: ResNet8(False),
    "ds-cnn": DsCnn,
    "mobilenet-v2-0.35": MobileNetV2,
    "transformer": Transformer,
    "autoencoder": Autoencoder,
}


def build(name, tensors):
    """The net in training mode with the weights of Limbeck's file. Limbeck keeps the weights of layers on the last axis of
    a sequence as [inputs, outputs]; torch has them the other way round."""
    net = NETS[name]().train()
    state = {}
    for key, initial in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = initial
        elif name == "transformer" and key.startswith("layer") and initial.dim() == 2:
            state[key] = tensors[key].t().contiguous()
        else:
            state[key] = tensors[key]
    net.load_state_dict(state)
    return net
