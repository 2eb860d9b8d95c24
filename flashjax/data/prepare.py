"""ImageNet's tar files -> the TFDS array_record layout that flashjax trains from.

    python -m flashjax.data.prepare --imagenet_dir DIR --data_dir OUT

DIR holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar as image-net.org gives them out (registration needed);
OUT becomes the TFDS root, with imagenet2012/5.1.0 in it: 150 GB, and as much again while it is made; allow some hours.
TFDS's own builder does the work, and it needs TensorFlow (the extra `prepare`); reading the result does not.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
NEEDED = ("tensorflow", "tensorflow_datasets", "array_record", "importlib_resources")


def missing(imagenet_dir: Path) -> list[str]:
    """What stands in the way, one sentence for each thing; empty if nothing does."""
    found = []
    modules = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if modules:
        found.append(f"not installed: {', '.join(modules)}. Run: pip install 'flashjax[prepare]'")
    if not imagenet_dir.is_dir():
        found.append(f"no directory {imagenet_dir}: --imagenet_dir names the one with the tar files of ImageNet")
    else:
        tars = [name for name in TARS if not (imagenet_dir / name).is_file()]
        if tars:
            found.append(
                f"not in {imagenet_dir}: {', '.join(tars)}. Get them from image-net.org (ILSVRC2012, task 1 and 2) "
                "and leave them packed"
            )
    return found


def prepare(imagenet_dir: Path, data_dir: Path) -> Path:
    """Writes imagenet2012 below `data_dir` and returns its directory; does nothing if it is already there."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("imagenet2012", data_dir=str(data_dir), file_format="array_record")
    # Its own folder for what TFDS would download, which is nothing: the default lies in the user's home.
    config = tfds.download.DownloadConfig(manual_dir=str(imagenet_dir))
    builder.download_and_prepare(download_dir=str(data_dir / "downloads"), download_config=config)
    return Path(builder.data_dir)


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when the set is there, 2 when something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m flashjax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--imagenet_dir", type=Path, required=True, help="directory with ImageNet's tar files")
    parser.add_argument("--data_dir", type=Path, required=True, help="TFDS root to write to")
    args = parser.parse_args(arguments)
    obstacles = missing(args.imagenet_dir.expanduser())
    if obstacles:
        print("cannot prepare ImageNet:", *obstacles, sep="\n  ", file=sys.stderr)
        return 2
    directory = prepare(args.imagenet_dir.expanduser(), args.data_dir.expanduser())
    print(f"{directory} is ready. Train with: --data_dir {args.data_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
