"""python -m flashjax.data.augment [--out DIR] [--images photographs|digits|FILE ...] [--seed N]

Shows one image under every augmentation: DIR/augment.png and DIR/augment.html.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from flashjax import cli
from flashjax.data.augment import pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("augment"), help="directory of the two files")
    parser.add_argument(
        "--images",
        nargs="+",
        default=["photographs"],
        help="photographs (of scikit-learn), digits (embedded), or files: the first is shown, the next three mixed in",
    )
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    args = parser.parse_args()
    with cli.friendly_errors():
        match args.images:
            case ["photographs"]:
                images = pictures.photographs()
            case ["digits"]:
                images = pictures.digits()
            case files:
                square = (pictures.SIDE, pictures.SIDE)
                images = [np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), square)) for file in files]
        for path in pictures.write(args.out, [images[index % len(images)] for index in range(4)], args.seed):
            print(path)


if __name__ == "__main__":
    main()
