"""One side of run.py: times torch's eager train step on the nets of benches/common and prints a line of JSON.

Usage: python torch_step.py NET THREADS STEPS
"""

import json
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

WARM_UP = 5


def conv(inputs, outputs, kernel, stride):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class ConvNorm(nn.Sequential):
    def __init__(self, inputs, outputs, stride):
        super().__init__(conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions with normalisation; a 1x1 convolution as shortcut where the shape changes."""

    def __init__(self, inputs, inner, outputs, stride):
        super().__init__()
        self.a = ConvNorm(inputs, inner, stride)
        self.b = ConvNorm(inner, outputs, 1)
        self.short = nn.Identity() if stride == 1 and inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.b(F.relu(self.a(x))) + self.short(x))


class Pooled(nn.Module):
    def __init__(self, body, channels, classes):
        super().__init__()
        self.body, self.fc = body, nn.Linear(channels, classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def digits_student():
    body = nn.Sequential(ConvNorm(1, 8, 1), nn.ReLU(), ConvNorm(8, 16, 2), nn.ReLU(), Block(16, 8, 16, 1), Block(16, 8, 16, 1))
    return Pooled(body, 16, 10)


def resnet8():
    body = nn.Sequential(ConvNorm(3, 16, 1), nn.ReLU(), Block(16, 16, 16, 1), Block(16, 32, 32, 2), Block(32, 64, 64, 2))
    return Pooled(body, 64, 10)


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
    def __init__(self, layers, width, heads, classes):
        super().__init__()
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.norm(self.layers(x)).mean(1))


# Net, shape of a batch.
CASES = {
    "digits-student": (digits_student, [32, 1, 8, 8]),
    "resnet8": (resnet8, [32, 3, 32, 32]),
    "transformer": (lambda: Transformer(2, 128, 4, 10), [16, 64, 128]),
}


def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def main():
    name, threads, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    build, shape = CASES[name]
    net = build().train()
    x, teacher = torch.randn(shape), torch.randn(shape[0], 10)
    labels = torch.arange(shape[0]) * 7 % 10
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    times = []
    for step in range(WARM_UP + steps):
        start = time.perf_counter()
        optimiser.zero_grad()
        logits = net(x)
        kd = F.kl_div(F.log_softmax(logits / 4, 1), F.log_softmax(teacher / 4, 1), reduction="batchmean", log_target=True)
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * kd
        loss.backward()
        optimiser.step()
        value = loss.item()
        if step >= WARM_UP:
            times.append((time.perf_counter() - start) * 1e3)
    parameters = sum(p.numel() for p in net.parameters())
    print(json.dumps({"ms": statistics.median(times), "peak_mb": peak_mb(), "loss": value, "parameters": parameters}))


main()
