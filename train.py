"""Train a sparse diffusion model: `python train.py FLAGS` is `python -m sparsejax train FLAGS`.

python train.py                                            # digits, RigL, 75 % sparse
python train.py --config configs/digits.py:static,0.9
"""

import sys

from sparsejax.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
