"""Distillation objectives by torch in float64, for distill/tests/objectives.rs.

Writes objectives.json: for each objective some cases with its taps, parameters, row weights (or null), the loss, and
the gradient in every tap on the student's side. Floats are multiples of 1/1024, exact in float32. A case with "net"
computes its first tap from the others and from "weights", which are differentiated too.
A reference below maps the taps, the parameters and the row weights to the loss; it is written with what torch has for
the purpose, or with loops. Run: python make.py
"""

import itertools
import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
SEEDS = range(4)
B, C = 5, 4
torch.set_default_dtype(torch.float64)


def weighted(rows, w):
    return (rows * w).sum() / w.sum()


def per_row(elements):
    return elements.reshape(len(elements), -1).mean(1)


def ce(t, p, w):
    rows = F.cross_entropy(t["student_logits"], t["labels"], label_smoothing=p["label_smoothing"], reduction="none")
    return weighted(rows, w)


def kl(zs, zt, tau):
    return tau**2 * F.kl_div((zs / tau).log_softmax(1), (zt / tau).softmax(1), reduction="none").sum(1)


def kd(t, p, w):
    return weighted(kl(t["student_logits"], t["teacher_logits"], p["temperature"]), w)


def hint(t, p, w):
    return weighted(per_row(F.mse_loss(t["student_feature"], t["teacher_feature"], reduction="none")), w)


def rkd(t, p, w):
    n = len(w)
    names = ("student_feature", "teacher_feature")
    features = [t[name].flatten(1) for name in names]

    def distances(e):
        d = {(i, j): torch.linalg.vector_norm(e[i] - e[j]) for i, j in itertools.permutations(range(n), 2)}
        mean = sum(w[i] * w[j] * v for (i, j), v in d.items()) / sum(w[i] * w[j] for i, j in d)
        return {key: value / mean for key, value in d.items()}

    def angle(e, i, j, k):
        return F.cosine_similarity(e[j] - e[i], e[k] - e[i], dim=0)

    ds, dt = map(distances, features)
    pairs = sum(w[i] * w[j] * F.smooth_l1_loss(ds[i, j], dt[i, j]) for i, j in ds)
    triples = sum(
        w[i] * w[j] * w[k] * F.smooth_l1_loss(angle(features[0], i, j, k), angle(features[1], i, j, k))
        for i, j, k in itertools.product(range(n), repeat=3)
        if i not in (j, k)
    )
    return p["lambda_d"] * pairs / w.sum() ** 2 + p["lambda_a"] * triples / w.sum() ** 3


def derpp(t, p, w):
    now = F.cross_entropy(t["student_logits"], t["labels"], reduction="none")
    dark = F.mse_loss(t["replay_logits"], t["stored_logits"], reduction="none").mean(1)
    again = F.cross_entropy(t["second_logits"], t["second_labels"], reduction="none")
    return weighted(now + p["alpha"] * dark + p["beta"] * again, w)


def lwf(t, p, w):
    tau, old = p["temperature"], t["teacher_logits"].shape[1]
    target = (t["teacher_logits"] / tau).softmax(1)
    return weighted(tau**2 * F.cross_entropy(t["student_logits"][:, :old] / tau, target, reduction="none"), w)


def self_distill(t, p, w):
    zs, zt = t["student_logits"], t["teacher_logits"]
    rows = (1 - p["mse"]) * kl(zs, zt, p["temperature"]) + p["mse"] * F.mse_loss(zs, zt, reduction="none").mean(1)
    return weighted(torch.where(zt.softmax(1).amax(1) >= p["threshold"], rows, 0.0), w)


def dmd(t, p, w):
    x, fake, real = t["sample"], t["fake_denoised"], t["real_denoised"]
    size = tuple(range(1, x.ndim))
    with torch.no_grad():
        grad = ((x - real) - (x - fake)) / (x - real).abs().mean(size, keepdim=True)
        target = x - grad
    return weighted(0.5 * per_row(F.mse_loss(x, target, reduction="none")), w)


def dsm(t, p, w):
    return weighted(t["weight"] * per_row(F.mse_loss(t["denoised"], t["sample"], reduction="none")), w)


def gan_generator(t, p, w):
    return weighted(per_row(F.binary_cross_entropy_with_logits(
        t["fake_score"], torch.ones_like(t["fake_score"]), reduction="none")), w)


def gan_critic(t, p, w):
    bce = F.binary_cross_entropy_with_logits
    fake = bce(t["fake_score"], torch.zeros_like(t["fake_score"]), reduction="none")
    real = bce(t["real_score"], torch.ones_like(t["real_score"]), reduction="none")
    return weighted(per_row(fake) + per_row(real), w)


def r1(t, p, w):
    (slope,) = torch.autograd.grad(t["real_score"].sum(), t["critic_input"], create_graph=True)
    return p["gamma"] / 2 * weighted(slope.flatten(1).pow(2).sum(1), w)


def scm(t, p, w):
    f, df, ft, x = (t[k].flatten(1) for k in ("velocity", "velocity_tangent", "teacher_velocity", "x_t"))
    with torch.no_grad():
        cos, sin = t["t"].cos()[:, None], t["t"].sin()[:, None]
        g = -(cos**2) * (f - ft) - p["warmup"] * (cos * sin * x + df)
        target = f + g / (torch.linalg.vector_norm(g, dim=1, keepdim=True) + p["c"])
    return weighted(t["weight"] * F.mse_loss(f, target, reduction="none").mean(1), w)


# Taps: a shape, "labels" (integers below C), or (low, high, shape). A list of shapes is used in turn, seed by seed.
LOGITS, LABELS = [B, C], "labels"
ANY = {"turns": [[B, 6], [B, 3, 2], [B, 2, 2, 2], [B, 6]]}
SCORE = {"turns": [[B], [B, 1], [B, 2, 2], [B, 1]]}
POSITIVE = (0.1, 3.0, [B])
CASES = {
    "ce": (ce, {"student_logits": LOGITS, "labels": LABELS}, ["student_logits"],
           [{"label_smoothing": e} for e in (0.0, 0.1, 0.3, 1.0)]),
    "kd": (kd, {"student_logits": LOGITS, "teacher_logits": LOGITS}, ["student_logits"],
           [{"temperature": tau} for tau in (4.0, 1.0, 0.5, 2.5)]),
    "hint": (hint, {"student_feature": ANY, "teacher_feature": ANY}, ["student_feature"], [{}]),
    "rkd": (rkd, {"student_feature": {"turns": [[B, 3], [B, 2, 2]]}, "teacher_feature": {"turns": [[B, 3], [B, 7]]}},
            ["student_feature"], [{"lambda_d": 25.0, "lambda_a": 50.0}, {"lambda_d": 1.0, "lambda_a": 0.0},
                                  {"lambda_d": 0.0, "lambda_a": 2.0}]),
    "derpp": (derpp, {"student_logits": LOGITS, "labels": LABELS, "replay_logits": LOGITS, "stored_logits": LOGITS,
                      "second_logits": LOGITS, "second_labels": LABELS},
              ["student_logits", "replay_logits", "second_logits"],
              [{"alpha": 1.0, "beta": 0.5}, {"alpha": 0.25, "beta": 0.0}, {"alpha": 0.0, "beta": 2.0}]),
    "lwf": (lwf, {"student_logits": LOGITS, "teacher_logits": {"turns": [[B, 2], [B, C], [B, 3]]}}, ["student_logits"],
            [{"temperature": tau} for tau in (2.0, 1.0, 3.0)]),
    "self_distill": (self_distill, {"student_logits": LOGITS, "teacher_logits": LOGITS}, ["student_logits"],
                     [{"temperature": 1.0, "threshold": 0.0, "mse": 0.0}, {"temperature": 2.0, "threshold": 0.6, "mse": 0.0},
                      {"temperature": 1.0, "threshold": 0.5, "mse": 1.0}, {"temperature": 3.0, "threshold": 0.0, "mse": 0.25}]),
    "dmd": (dmd, {"sample": ANY, "fake_denoised": ANY, "real_denoised": ANY}, ["sample"], [{}]),
    "dsm": (dsm, {"denoised": ANY, "sample": ANY, "weight": POSITIVE}, ["denoised"], [{}]),
    "gan_generator": (gan_generator, {"fake_score": SCORE}, ["fake_score"], [{}]),
    "gan_critic": (gan_critic, {"fake_score": SCORE, "real_score": SCORE}, ["fake_score", "real_score"], [{}]),
    "r1": (r1, {"critic_input": [B, 3]}, ["critic_input"], [{"gamma": g} for g in (1.0, 10.0, 0.2)]),
    "scm": (scm, {"velocity": ANY, "velocity_tangent": ANY, "teacher_velocity": ANY, "x_t": ANY, "t": (0.05, 1.5, [B]),
                  "weight": POSITIVE}, ["velocity"],
            [{"warmup": 1.0, "c": 0.1}, {"warmup": 0.0, "c": 0.1}, {"warmup": 0.5, "c": 1.0}]),
}
# Weights of the net of a case, small so that tanh is far from saturation, and the tap it computes.
NETS = {"r1": ({"w1": [3, 6], "w2": [6, 1]}, "real_score")}


def tanh_net(taps, weights):
    return torch.tanh(taps["critic_input"] @ weights["w1"]) @ weights["w2"]


def grid(rng, shape, low=-2.0, high=2.0):
    return torch.tensor(rng.integers(int(low * 1024) + 1, int(high * 1024), shape) / 1024.0)


def draw(rng, spec, seed):
    if spec == LABELS:
        return torch.tensor(rng.integers(0, C, [B]))
    if isinstance(spec, tuple):
        return grid(rng, spec[2], spec[0], spec[1])
    return grid(rng, spec["turns"][seed % len(spec["turns"])] if isinstance(spec, dict) else spec)


def dump(tensor):
    kind = "float" if tensor.is_floating_point() else "int64"
    return {"shape": list(tensor.shape), "dtype": kind, "data": tensor.detach().flatten().tolist()}


def case(name, seed):
    reference, specs, students, params = CASES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    taps = {key: draw(rng, spec, seed) for key, spec in specs.items()}
    weights = {key: grid(rng, shape, -0.5, 0.5) for key, shape in NETS[name][0].items()} if name in NETS else {}
    # Odd seeds weight their rows, one of them by 0.
    w = torch.cat([grid(rng, [B - 1], 0.2, 2.0), torch.zeros(1)]) if seed % 2 else None
    wrt = {**{key: taps[key] for key in students}, **weights}
    for value in wrt.values():
        value.requires_grad_()
    all_taps = {**taps, **({NETS[name][1]: tanh_net(taps, weights)} if name in NETS else {})}
    p = params[seed % len(params)]
    loss = reference(all_taps, p, torch.ones(B) if w is None else w)
    grads = torch.autograd.grad(loss, list(wrt.values()))
    return {
        "objective": name,
        "seed": seed,
        "params": p,
        "net": name in NETS,
        "taps": {key: dump(value) for key, value in taps.items()},
        "weights": {key: dump(value) for key, value in weights.items()},
        "row_weight": None if w is None else dump(w),
        "loss": loss.item(),
        "grads": {key: dump(value) for key, value in zip(wrt, grads)},
    }


if __name__ == "__main__":
    cases = [case(name, seed) for name in CASES for seed in SEEDS]
    lines = ",\n".join(json.dumps(c) for c in cases)
    (HERE / "objectives.json").write_text(f"[\n{lines}\n]\n")
