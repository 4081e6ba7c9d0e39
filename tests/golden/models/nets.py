"""The networks of make.py: small, but built as the published ones are, in plain torch.nn."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm, activation."""

    def __init__(self, inputs, outputs, kernel=1, stride=1, groups=1, act=None):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([act()] if act else []))


def fused(module):
    """Every ConvNorm of the module, its BatchNorm made part of the convolution, as exporters do in inference."""
    for child in module.modules():
        if isinstance(child, ConvNorm):
            child[0] = nn.utils.fuse_conv_bn_eval(child[0], child[1])
            child[0].bias.requires_grad_()
            child[1] = nn.Identity()
    return module


# MobileNetV2 and V3 (arXiv:1801.04381, arXiv:1905.02244)


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(self.pool(x)))))


class Inverted(nn.Module):
    def __init__(self, inputs, hidden, outputs, kernel, stride, act, squeeze=False):
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        layers = [] if hidden == inputs else [ConvNorm(inputs, hidden, act=act)]
        layers.append(ConvNorm(hidden, hidden, kernel, stride, hidden, act))
        layers += [SqueezeExcite(hidden, max(4, hidden // 4))] if squeeze else []
        self.block = nn.Sequential(*layers, ConvNorm(hidden, outputs))

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3(nn.Module):
    """V3-small, its widths halved and its repeated blocks thinned out."""

    ROWS = [  # kernel, hidden, outputs, squeeze, activation, stride
        (3, 8, 8, True, nn.ReLU, 2),
        (3, 24, 12, False, nn.ReLU, 2),
        (3, 28, 12, False, nn.ReLU, 1),
        (5, 32, 20, True, nn.Hardswish, 2),
        (5, 40, 20, True, nn.Hardswish, 1),
        (5, 48, 24, True, nn.Hardswish, 1),
        (5, 64, 32, True, nn.Hardswish, 2),
        (5, 80, 32, True, nn.Hardswish, 1),
    ]

    def __init__(self, classes=10):
        super().__init__()
        layers, width = [ConvNorm(3, 8, 3, 2, act=nn.Hardswish)], 8
        for kernel, hidden, outputs, squeeze, act, stride in self.ROWS:
            layers.append(Inverted(width, hidden, outputs, kernel, stride, act, squeeze))
            width = outputs
        self.features = nn.Sequential(*layers, ConvNorm(width, 64, act=nn.Hardswish))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(64, 96), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(96, classes))

    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class MobileNetV2(nn.Module):
    ROWS = [  # expansion, outputs, blocks, stride
        (1, 8, 1, 1),
        (6, 12, 2, 2),
        (6, 16, 2, 2),
        (6, 24, 2, 2),
        (6, 32, 1, 2),
    ]

    def __init__(self, classes=10):
        super().__init__()
        layers, width = [ConvNorm(3, 8, 3, 2, act=nn.ReLU6)], 8
        for expansion, outputs, blocks, stride in self.ROWS:
            for i in range(blocks):
                step = stride if i == 0 else 1
                layers.append(Inverted(width, width * expansion, outputs, 3, step, nn.ReLU6))
                width = outputs
        self.features = nn.Sequential(*layers, ConvNorm(width, 64, act=nn.ReLU6))
        self.classifier = nn.Linear(64, classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))


# ShuffleNetV2 (arXiv:1807.11164)


class Shuffle(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride, half, act = stride, outputs // 2, nn.ReLU
        if stride == 2:
            self.left = nn.Sequential(ConvNorm(inputs, inputs, 3, 2, inputs), ConvNorm(inputs, half, act=act))
        own = inputs if stride == 2 else half
        self.right = nn.Sequential(
            ConvNorm(own, half, act=act), ConvNorm(half, half, 3, stride, half), ConvNorm(half, half, act=act)
        )

    def forward(self, x):
        left, right = x.chunk(2, dim=1) if self.stride == 1 else (self.left(x), x)
        x = torch.cat([left, self.right(right)], dim=1)
        batch, channels, height, width = x.size()
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)


class ShuffleNetV2(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        stages = [Shuffle(8, 16, 2), Shuffle(16, 16, 1), Shuffle(16, 32, 2), Shuffle(32, 32, 1), Shuffle(32, 48, 2)]
        self.stem = nn.Sequential(ConvNorm(3, 8, 3, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1))
        self.stages, self.last = nn.Sequential(*stages), ConvNorm(48, 64, act=nn.ReLU)
        self.classifier = nn.Linear(64, classes)

    def forward(self, x):
        return self.classifier(self.last(self.stages(self.stem(x))).mean([2, 3]))


# ConvNeXt (arXiv:2201.03545)


class NextBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x):
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.scale * self.narrow(F.gelu(self.wide(h))).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 4, 4), NextBlock(16)
        self.norm, self.down = nn.LayerNorm(16, eps=1e-6), nn.Conv2d(16, 24, 2, 2)
        self.second, self.last = NextBlock(24), nn.LayerNorm(24, eps=1e-6)
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        x = self.norm(self.first(self.stem(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.last(self.second(self.down(x)).mean([-2, -1])))


# U-Net (arXiv:1505.04597) with both ways up: ConvTranspose, and Resize to the size of the skip connection


class Double(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(ConvNorm(inputs, outputs, 3, act=nn.ReLU), ConvNorm(outputs, outputs, 3, act=nn.SiLU))


class UNet(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.a, self.b, self.c, self.d = Double(3, 8), Double(8, 12), Double(12, 16), Double(16, 24)
        self.up = nn.ConvTranspose2d(24, 16, 2, 2)
        self.e, self.f, self.g = Double(32, 16), Double(16 + 12, 12), Double(12 + 8, 8)
        self.groups = nn.GroupNorm(2, 8)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(self.pool(a))
        c = self.c(self.pool(b))
        h = self.e(torch.cat([self.up(self.d(self.pool(c))), c], dim=1))
        h = F.interpolate(h, size=b.shape[2:], mode="bilinear", align_corners=False)
        h = self.f(torch.cat([h, b], dim=1))
        h = F.interpolate(h, scale_factor=2, mode="nearest")
        return self.head(self.groups(self.g(torch.cat([h, a], dim=1))))


# BERT (arXiv:1810.04805): names as in published checkpoints


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.query, self.key, self.value = heads, *(nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x, bias):
        query, key, value = (self.split(f(x)) for f in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        h = self.dropout(torch.softmax(scores, dim=-1)) @ value
        h = h.permute(0, 2, 1, 3).contiguous()
        return h.view(h.shape[0], h.shape[1], -1)


class Added(nn.Module):
    """A projection that is added and normalised."""

    def __init__(self, inputs, outputs, dropout):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class BertLayer(nn.Module):
    def __init__(self, width, heads, inner, dropout):
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(width, heads, dropout), "output": Added(width, width, dropout)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = Added(inner, width, dropout)

    def forward(self, x, bias):
        x = self.attention["output"](self.attention["self"](x, bias), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Embeddings(nn.Module):
    def __init__(self, words, positions, width, dropout):
        super().__init__()
        self.word_embeddings, self.token_type_embeddings = nn.Embedding(words, width), nn.Embedding(2, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.LayerNorm, self.dropout = nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)

    def forward(self, ids):
        x = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))
        return self.dropout(self.LayerNorm(x + self.positions(ids.shape[1])))

    def positions(self, length):
        return self.position_embeddings(torch.arange(length).unsqueeze(0))


class Bert(nn.Module):
    """The encoder; its output is the last hidden state."""

    def __init__(self, words, positions=512, width=384, heads=12, inner=1536, layers=6, dropout=0.1):
        super().__init__()
        self.embeddings = Embeddings(words, positions, width, dropout)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(width, heads, inner, dropout) for _ in range(layers))})

    def forward(self, ids, mask):
        x = self.embeddings(ids)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(torch.float32).min
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        return x


class MaskedLanguage(nn.Module):
    """BERT with the word scores of pre-training, whose matrix is that of the word embeddings."""

    def __init__(self, words=50, width=32):
        super().__init__()
        self.bert = Bert(words, 20, width, 4, 64, 2)
        self.transform, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, words)
        self.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def forward(self, ids, mask):
        return self.decoder(self.norm(F.gelu(self.transform(self.bert(ids, mask)))))


class Sentence(nn.Module):
    """Sentence embeddings: the mean of the hidden states that the mask keeps, at length 1."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, ids, mask):
        kept = mask.unsqueeze(-1).to(torch.get_default_dtype())
        h = (self.bert(ids, mask) * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return F.normalize(h, dim=1)


class FoldedPositions(Embeddings):
    """The rows of the position embeddings that a length of 12 takes, as a weight."""

    def positions(self, length):
        return self.taken


def untied_bert(module):
    module.decoder.weight = nn.Parameter(module.decoder.weight.detach().clone())
    return module


def folded_bert(module):
    """A MaskedLanguage after constant folding: the tie is gone, and so are the position embeddings not in use."""
    untied_bert(module)
    embeddings = module.bert.embeddings
    embeddings.__class__ = FoldedPositions
    embeddings.taken = nn.Parameter(embeddings.position_embeddings.weight[None, :12].detach().clone())
    del embeddings.position_embeddings
    return module


# ViT (arXiv:2010.11929)


class Encoder(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(self.first(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(h.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.second(x))


class Vit(nn.Module):
    def __init__(self, classes=10, size=32, patch=8, width=32):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.layers, self.norm = nn.Sequential(Encoder(width, 4), Encoder(width, 4)), nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def folded_vit(module):
    """A Vit after constant folding: one class token for each image of the batch."""
    module.token = nn.Parameter(module.token.detach().expand(2, -1, -1).clone())
    return module


# Keyword spotters: recurrent, and convolutional in time (arXiv:1803.01271)


class GruSpotter(nn.Module):
    def __init__(self, features=10, hidden=16, classes=6):
        super().__init__()
        self.gru = nn.GRU(features, hidden, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


def blocks(rows, order):
    """The three blocks of rows of a GRU's weights in another order (torch has r, z, n; ONNX z, r, h)."""
    return torch.cat([rows.chunk(3)[i] for i in order])


class PackedGru(nn.Module):
    """A bidirectional GRU layer that starts at zero, its weights packed as the ONNX operator takes them."""

    def __init__(self, gru, layer):
        super().__init__()
        own = lambda leaf: [getattr(gru, f"{leaf}_l{layer}{end}").detach() for end in ("", "_reverse")]
        pack = lambda leaf: torch.stack([blocks(t, (1, 0, 2)) for t in own(leaf)])
        self.w, self.r = nn.Parameter(pack("weight_ih")), nn.Parameter(pack("weight_hh"))
        self.b = nn.Parameter(torch.cat([pack("bias_ih"), pack("bias_hh")], dim=1))

    def forward(self, x):
        directions = []
        for w, r, b in zip(self.w, self.r, self.b):
            directions += [blocks(t, (1, 0, 2)) for t in (w, r, *b.chunk(2))]
        start = torch.zeros(2, x.shape[0], self.r.shape[2], dtype=x.dtype)
        return torch._VF.gru(x, start, directions, True, 1, 0.0, False, True, True)[0]


def folded_gru(module):
    """A GruSpotter after constant folding."""
    layers = module.gru = nn.Sequential(PackedGru(module.gru, 0), PackedGru(module.gru, 1))
    module.forward = lambda x: module.head(layers(x)[:, -1])
    return module


class Causal(nn.Module):
    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        self.reach = 2 * dilation
        pair = [nn.Conv1d(n, outputs, 3, padding=self.reach, dilation=dilation) for n in (inputs, outputs)]
        self.first, self.second = (nn.utils.parametrizations.weight_norm(c) for c in pair)
        self.down = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        h = F.relu(self.first(x)[:, :, : -self.reach])
        h = F.relu(self.second(h)[:, :, : -self.reach])
        return F.relu(h + (x if self.down is None else self.down(x)))


class Tcn(nn.Module):
    def __init__(self, features=10, classes=6):
        super().__init__()
        self.layers = nn.Sequential(Causal(features, 16, 1), Causal(16, 16, 2), Causal(16, 24, 4), Causal(24, 24, 8))
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        return self.head(self.layers(x)[:, :, -1])

# Operators that exporters make of common idioms


class Mixed(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.first, self.prelu = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.PReLU(8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.second, self.third = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(4, 8, 3)
        self.mix = nn.Parameter(torch.zeros(8, 8))
        self.gate = nn.Linear(8, 8)
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        x = self.instance(self.prelu(self.first(x)))
        x = F.pixel_shuffle(F.elu(self.second(x)), 2)
        x = F.interpolate(self.third(x), scale_factor=0.5, mode="bilinear", align_corners=True)
        x = F.mish(F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 2) + F.softplus(F.max_pool2d(x, 5, 4, ceil_mode=True)))
        a, b = torch.split(x, [3, 5], dim=1)
        x = torch.cat([b, torch.roll(a, 1, dims=2)], dim=1)
        x = torch.einsum("bchw,cd->bdhw", x, self.mix).flatten(2)
        scores = x.transpose(1, 2) @ x
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).tril() == 0, float("-inf"))
        x = x @ scores.softmax(-1)
        x = x / x.norm(dim=1, keepdim=True).clamp(min=0.1) + torch.cumsum(x, dim=2)
        h = x[:, :, -1] * torch.sigmoid(self.gate(x.amax(2)))
        v = x.var(dim=2, unbiased=False).add(1e-3).sqrt().log()
        return self.head(torch.cat([h, torch.where(v > 0, v, 0.5 * v), x.mean(2, keepdim=True).squeeze(2)], dim=1))


class TransformerNet(nn.Module):
    """torch's own layers."""

    def __init__(self, words=50, width=16, classes=5):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        layer = lambda first: nn.TransformerEncoderLayer(width, 2, 32, 0.0, "gelu", batch_first=True, norm_first=first)
        self.layers = nn.ModuleList([layer(True), layer(False)])
        self.lstm = nn.LSTM(width, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, classes)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        h = self.lstm(x)[1][0]
        return self.head(torch.cat([h[0], h[1]], dim=1))
