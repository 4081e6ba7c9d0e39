"""Makes images.npy and labels.npy from scikit-learn's copy of the UCI handwritten digits.

Run: python make.py   (needs numpy and scikit-learn; writes beside this file, in the original sample order)
"""

import hashlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
SHA256 = {
    "images.npy": "88e52eb3e11cb9cc0130dc8fc4b6256aa919b3275fec17e6c2f880e1ae8d34ae",
    "labels.npy": "03ec0343bca84958ae3df825f252a3680415fa07fccb1ed1125ed521c13169e5",
}

digits = load_digits()
images = digits.images
assert images.shape == (1797, 8, 8) and (images == np.rint(images)).all()
assert images.min() == 0 and images.max() == 16
assert (np.bincount(digits.target) == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]).all()

np.save(HERE / "images.npy", images.astype(np.uint8))
np.save(HERE / "labels.npy", digits.target.astype(np.uint8))
for name, want in SHA256.items():
    got = hashlib.sha256((HERE / name).read_bytes()).hexdigest()
    print(f"{got}  {name}")
    assert got == want, f"{name}: expected {want}"
