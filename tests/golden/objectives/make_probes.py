"""Whole train steps by torch in float64, for distill/tests/probes.rs.

Writes probes.json: for each probe the first weights, what is fed at each step, the losses of each step and the final
weights. Weights and feeds are multiples of 1/1024, exact in float32. Nets are perceptrons with tanh between their
layers, weights as in torch.nn.Linear. Run: python make_probes.py
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from make import dump, grid

HERE = pathlib.Path(__file__).parent
B = 8
# Eight Gaussians on a circle.
RADIUS, DEVIATION = 2.0, 0.15
ANGLES = torch.arange(8) * (torch.pi / 4)
CENTRES = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def perceptron(rng, *widths):
    weights = {}
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        weights[f"layer{i}.weight"] = grid(rng, [b, a], -1.0, 1.0)
        weights[f"layer{i}.bias"] = grid(rng, [b], -0.25, 0.25)
    return {k: v.requires_grad_() for k, v in weights.items()}


def apply(weights, x):
    h = F.linear(x, weights["layer0.weight"], weights["layer0.bias"])
    return F.linear(h.tanh(), weights["layer1.weight"], weights["layer1.bias"])


def dumped(weights):
    return {k: dump(v) for k, v in weights.items()}


def one(values):
    return dump(torch.tensor(values))


def real_denoised(x, sigma):
    """The exact denoiser of the mixture."""
    variance = DEVIATION**2 + sigma[:, None] ** 2
    distance = ((x[:, None] - CENTRES) ** 2).sum(2)
    share = (-distance / (2 * variance)).softmax(1)
    return (DEVIATION**2 * x + sigma[:, None] ** 2 * (share @ CENTRES)) / variance


def dmd():
    rng = np.random.default_rng(11)
    nets = {"generator": perceptron(rng, 2, 16, 2), "fake": perceptron(rng, 3, 16, 2), "critic": perceptron(rng, 2, 16, 1)}
    first = {name: dumped(net) for name, net in nets.items()}
    ema = {k: v.detach().clone() for k, v in nets["generator"].items()}
    g_opt = torch.optim.AdamW(nets["generator"].values(), lr=2e-3, weight_decay=0.0)
    d_opt = torch.optim.AdamW([*nets["fake"].values(), *nets["critic"].values()], lr=5e-3, weight_decay=0.0)
    steps = []

    def noised(x, feeds):
        return torch.cat([x + feeds["sigma"][:, None] * feeds["eps"], feeds["sigma"][:, None]], 1)

    for _ in range(20):
        d = {"z": grid(rng, [B, 2]), "eps": grid(rng, [B, 2]), "sigma": grid(rng, [B], 0.1, 1.5)}
        centre = CENTRES[torch.tensor(rng.integers(0, 8, [B]))]
        d["data"] = ((centre + DEVIATION * torch.tensor(rng.standard_normal([B, 2]))) * 1024).round() / 1024
        x = apply(nets["generator"], d["z"]).detach()
        weight = (d["sigma"] ** 2 + DEVIATION**2) / (d["sigma"] * DEVIATION) ** 2
        dsm = (weight * ((apply(nets["fake"], noised(x, d)) - x) ** 2).mean(1)).mean()
        gan = F.softplus(apply(nets["critic"], x)).mean() + F.softplus(-apply(nets["critic"], d["data"])).mean()
        d_opt.zero_grad()
        (dsm + gan).backward()
        d_opt.step()

        g = {"z": grid(rng, [B, 2]), "eps": grid(rng, [B, 2]), "sigma": grid(rng, [B], 0.1, 1.5)}
        x = apply(nets["generator"], g["z"])
        with torch.no_grad():
            x_tau = noised(x, g)
            real = real_denoised(x_tau[:, :2], g["sigma"])
            step = (apply(nets["fake"], x_tau) - real) / (x - real).abs().mean(1, keepdim=True)
            target = x - step
        loss = 0.5 * F.mse_loss(x, target) + 0.1 * F.softplus(-apply(nets["critic"], x)).mean()
        g_opt.zero_grad()
        loss.backward()
        g_opt.step()
        with torch.no_grad():
            for key, value in nets["generator"].items():
                ema[key] = 0.9 * ema[key] + 0.1 * value
        steps.append({"d": dumped(d), "g": dumped(g), "d_loss": one([(dsm + gan).item()]), "g_loss": one([loss.item()])})
    final = {name: dumped(net) for name, net in {**nets, "ema": ema}.items()}
    return {"first": first, "steps": steps, "final": final}


def sgd(weights, loss_of, feeds, lr):
    """Plain gradient descent; the losses."""
    losses = []
    for feed in feeds:
        loss = loss_of(weights, feed)
        grads = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for value, grad in zip(weights.values(), grads):
                value -= lr * grad
        losses.append(loss.item())
    return losses


def trained(weights, loss_of, feeds, lr):
    first = dumped(weights)
    losses = sgd(weights, loss_of, feeds, lr)
    steps = [{"feeds": dumped(feed), "loss": one([loss])} for feed, loss in zip(feeds, losses)]
    return {"first": first, "steps": steps, "final": dumped(weights)}


def r1():
    rng = np.random.default_rng(12)

    def loss_of(weights, feed):
        real = feed["real"].clone().requires_grad_()
        score = apply(weights, real)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        gan = F.softplus(apply(weights, feed["fake"])).mean() + F.softplus(-score).mean()
        return gan + 0.5 * 2.0 * slope.pow(2).sum(1).mean()

    feeds = [{"real": grid(rng, [B, 2]), "fake": grid(rng, [B, 2])} for _ in range(5)]
    return trained(perceptron(rng, 2, 12, 1), loss_of, feeds, 0.05)


def scm():
    rng = np.random.default_rng(13)

    def loss_of(weights, feed):
        x, t, ft = feed["x_t"], feed["t"], feed["teacher_velocity"]

        def velocity(x, t):
            return apply(weights, torch.cat([x, t[:, None]], 1))

        cos, sin = t.cos(), t.sin()
        f, df = torch.func.jvp(velocity, (x, t), ((cos * sin)[:, None] * ft, cos * sin))
        with torch.no_grad():
            g = -(cos**2)[:, None] * (f - ft) - (cos * sin)[:, None] * x - df
            target = f + g / (torch.linalg.vector_norm(g, dim=1, keepdim=True) + 0.1)
        return (((f - target) ** 2).mean(1) / t.tan()).mean()

    feeds = [
        {"x_t": grid(rng, [B, 2]), "t": grid(rng, [B], 0.1, 1.5), "teacher_velocity": grid(rng, [B, 2])}
        for _ in range(5)
    ]
    return trained(perceptron(rng, 3, 12, 2), loss_of, feeds, 0.1)


def gru():
    rng = np.random.default_rng(14)
    vocab, width, hidden, length = 7, 5, 6, 4
    shapes = {
        "embedding.weight": [vocab, width],
        "gru.weight_ih": [3 * hidden, width],
        "gru.weight_hh": [3 * hidden, hidden],
        "gru.bias_ih": [3 * hidden],
        "gru.bias_hh": [3 * hidden],
        "fc.weight": [vocab, hidden],
        "fc.bias": [vocab],
    }
    weights = {k: grid(rng, s, -1.0, 1.0).requires_grad_() for k, s in shapes.items()}

    def run(weights, tokens, state):
        cell = [weights[f"gru.{k}"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h = F.embedding(tokens, weights["embedding.weight"])
        y, state = torch.gru(h, state[None], cell, True, 1, 0.0, False, False, True)
        return F.linear(y, weights["fc.weight"], weights["fc.bias"]), state[0]

    def loss_of(weights, feed):
        logits, _ = run(weights, feed["tokens"], torch.zeros(B, hidden))
        return F.cross_entropy(logits.flatten(0, 1), feed["targets"].flatten())

    tokens = lambda: torch.tensor(rng.integers(0, vocab, [B, length]))
    out = trained(weights, loss_of, [{"tokens": tokens(), "targets": tokens()} for _ in range(3)], 0.5)
    # Greedy decoding with the final weights, from each token.
    token, state, decoded, margin = torch.arange(vocab)[:, None], torch.zeros(vocab, hidden), [], 1.0
    with torch.no_grad():
        for _ in range(8):
            logits, state = run(weights, token, state)
            best = logits[:, 0].topk(2).values
            margin = min(margin, (best[:, 0] - best[:, 1]).min().item())
            token = logits.argmax(2)
            decoded.append(token)
    assert margin > 1e-3, margin
    return {**out, "decoded": dump(torch.cat(decoded, 1))}


def optimisers():
    """The final weights of one net after the same batches under each optimiser.

    layer0 learns at half the rate. Matrices decay, biases do not; DOT decays both.
    """
    rng = np.random.default_rng(15)
    first = perceptron(rng, 3, 6, 2)
    feeds = [
        {"x": grid(rng, [B, 3]), "labels": torch.tensor(rng.integers(0, 2, [B])), "teacher_logits": grid(rng, [B, 2])}
        for _ in range(6)
    ]

    def losses(weights, feed):
        logits = apply(weights, feed["x"])
        kd = 16 * F.kl_div((logits / 4).log_softmax(1), (feed["teacher_logits"] / 4).softmax(1), reduction="batchmean")
        return F.cross_entropy(logits, feed["labels"]), kd

    def groups(weights, lr, decay):
        scale = lambda name: 0.5 if name.startswith("layer0") else 1.0
        return [
            {"params": [w], "lr": lr * scale(name), "weight_decay": decay if w.dim() > 1 else 0.0}
            for name, w in weights.items()
        ]

    def dot(weights):
        # Two optimisers on one set of weights; both gradients are taken before either moves them.
        options = {"lr": 0.05, "nesterov": False}
        return (
            torch.optim.SGD(weights.values(), momentum=0.9 - 0.05, weight_decay=0.01, **options),
            torch.optim.SGD(weights.values(), momentum=0.9 + 0.05, **options),
        )

    sgd = lambda nesterov: lambda w: (torch.optim.SGD(groups(w, 0.1, 0.1), momentum=0.9, nesterov=nesterov),)
    made = {
        "sgd": sgd(False),
        "nesterov": sgd(True),
        "adamw": lambda w: (torch.optim.AdamW(groups(w, 0.02, 0.1)),),
        "dot": dot,
    }
    final = {}
    for name, make in made.items():
        weights = {k: v.detach().clone().requires_grad_() for k, v in first.items()}
        optims = make(weights)
        for feed in feeds:
            task, kd = losses(weights, feed)
            # One optimiser follows the sum, two follow a loss each.
            each = (task + kd,) if len(optims) == 1 else (task, kd)
            grads = [torch.autograd.grad(loss, list(weights.values()), retain_graph=True) for loss in each]
            for optim, of in zip(optims, grads):
                for weight, grad in zip(weights.values(), of):
                    weight.grad = grad
                optim.step()
        final[name] = dumped(weights)
    return {"first": dumped(first), "feeds": [dumped(feed) for feed in feeds], "final": final}


if __name__ == "__main__":
    probes = {"dmd": dmd(), "r1": r1(), "scm": scm(), "gru": gru(), "optimisers": optimisers()}
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in probes.items())
    (HERE / "probes.json").write_text(f"{{\n{lines}\n}}\n")
