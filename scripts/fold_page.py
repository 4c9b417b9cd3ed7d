"""Write results/folds/README.md from what npas-fold wrote of each network.

npas-fold run=runs/... threshold=auto out=results/folds/NAME
python scripts/fold_page.py
"""

from __future__ import annotations

import argparse
import sys

from npas.reporting import folds, tables

RAW = argparse.RawDescriptionHelpFormatter


def main() -> int:
    """Write the page; the exit code is 2 where a file is damaged."""
    argparse.ArgumentParser(description=__doc__, formatter_class=RAW).parse_args()
    root = tables.results_root() / "folds"
    try:
        text = folds.page(root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    (root / "README.md").write_text(text, encoding="utf-8")
    print(f"wrote {root / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
