"""Evaluate trained runs: `python evaluate.py FLAGS` is `python -m sparsejax evaluate FLAGS`.

python evaluate.py --workdirs runs/digits-rigl-0.75-0,runs/digits-dense-0
"""

import sys

from sparsejax.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
