"""Pack ImageNet's folders into WebDataset shards: fewer files, faster to read.

    python scripts/pack_imagenet.py data/imagenet data/imagenet-shards
    python scripts/pack_imagenet.py data/imagenet fast/imagenet-shards --per-shard 5000
    npas-train +exp=resnet50_imagenet data.root=data task.form=shards

Images are stored unchanged, in the order of their folders, so training on either form has the same
batches. The same command continues an interrupted packing at the first missing shard. classes.json
beside the shards has the class names and counts.
"""

import argparse
import sys
from pathlib import Path


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="folder with train/ and val/")
    parser.add_argument("target", type=Path, help="data.root/imagenet-shards")
    parser.add_argument("--per-shard", type=int, default=1000, help="images")
    parser.add_argument("--splits", default="train,val", help="train, val or both")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    return parser.parse_args()


def main() -> None:
    """Pack; exit code 2 for errors, 130 for Ctrl-C."""
    arguments = parse()
    try:
        pack(arguments)
    except KeyboardInterrupt:
        fail("interrupted; run the same command to continue", 130)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        where = error.filename or arguments.target
        fail(f"{where}: {error.strerror}; fix this and run the same command to continue")


def fail(line: str, code: int = 2) -> None:
    """Exit with a message on stderr."""
    print(f"pack_imagenet.py: {line}", file=sys.stderr)
    sys.exit(code)


def pack(arguments: argparse.Namespace) -> None:
    """List the folders and write the shards."""
    from npas.tasks.imagenet import shards
    from npas.tasks.imagenet.shards import Folder, class_folders

    if arguments.per_shard < 1:
        raise ValueError(f"--per-shard must be at least 1, got {arguments.per_shard}")
    splits = arguments.splits.split(",")
    if not set(splits) <= {"train", "val"}:
        raise ValueError(f"--splits {arguments.splits}: write train, val or train,val")
    source, target = arguments.source, arguments.target
    if not (source / "train").is_dir():
        raise ValueError(f"there is no folder {source / 'train'}: it holds a folder a class")
    if target.resolve() in (
        source.resolve(),
        *((source / split).resolve() for split in ("train", "val")),
    ):
        raise ValueError(f"{target} holds the images: name another folder for the shards")
    classes = class_folders(source / "train")
    folders = {split: Folder(source / split, len(classes), classes) for split in splits}
    say = (lambda line: None) if arguments.quiet else print
    shards.pack(folders, target, arguments.per_shard, say)
    print(f"{target} holds {' and '.join(splits)}: {len(classes):,} classes")


if __name__ == "__main__":
    main()
