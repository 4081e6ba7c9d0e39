"""Numbers that Rust makes too (tests/common/generated.rs): a hash of a name and a count, so that no weights are stored."""

import math

import numpy as np

MASK = (1 << 64) - 1


def seed(name):
    """FNV-1a, 64 bits."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def words(name, count):
    """SplitMix64 (Steele and others, 2014), seeded with the name."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def signs(name, shape):
    """Multiples of 2**-23 in -1..1, exact in float32."""
    top = (words(name, math.prod(shape)) >> np.uint64(40)).astype(np.int64)
    return ((top - (1 << 23)) / float(1 << 23)).reshape(shape)


def floats(name, shape, scale=1.0, offset=0.0):
    """Numbers in offset-scale..offset+scale, rounded to float32."""
    return (signs(name, shape) * scale + offset).astype(np.float32)


def integers(name, shape, below):
    return (words(name, math.prod(shape)) % np.uint64(below)).astype(np.int64).reshape(shape)


def summary(name, values):
    """What is stored of a tensor: norm, three random projections and four entries, which `words` chooses."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    places = [int(w % np.uint64(flat.size)) for w in words(f"entries/{name}", 4)]
    number = lambda v: float(f"{v:.11g}")
    return {
        "norm": number(np.linalg.norm(flat)),
        "projections": [number(flat @ signs(f"projection {k}/{name}", flat.shape)) for k in range(3)],
        "entries": [number(flat[p]) for p in places],
    }
