"""Shrunken random checkpoints of true layout: every component of a family's pipeline, seeded, a few MB at most.

    python -m tests.shrunken sdxl OUT [--seed 0]

They draw noise, but load, train, export and generate like the published ones.
"""

import argparse
from pathlib import Path

from tests.shrunken.families import FAMILIES, make


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.shrunken", description=__doc__)
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.family, arguments.out, arguments.seed)
    print(arguments.out)


if __name__ == "__main__":
    main()
