"""Cluster layers into groups by a vector per layer, and store the result as readable JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npas.config import GROUPS_FILE
from npas.config.typed import build
from npas.utils.files import write_whole
from npas.utils.json_data import read_json
from npas.utils.rng import derive_key

SEARCH, TRAIN = "search", "train"  # the stages of a run; most runs have only the second
RESTARTS = 10  # of k-means; the best counts


@dataclass(frozen=True)
class Grouping:
    """The group of each layer, in order of depth, and how the groups were found."""

    method: str  # learned or gradient
    seed: int
    num_groups: int
    epochs: int  # of the search, as are the next two
    steps: int
    wall_s: float
    # For gradient: correlation of the pairwise agreements measured on two halves of the batches.
    half_agreement: float | None
    groups: dict[str, str]  # by layer
    # By layer, what was clustered: coefficients or embedding; for gradient agreement with all.
    vectors: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        groups, vectors = data.pop("groups"), data.pop("vectors")
        layers = [{"name": k, "group": v, "vector": vectors[k]} for k, v in groups.items()]
        return {**data, "layers": layers}


def from_dict(data: Any) -> Grouping:
    """Read the data that `to_dict` returned. Raises ValueError for anything else."""
    try:
        head = {key: value for key, value in data.items() if key != "layers"}
        groups = {layer["name"]: layer["group"] for layer in data["layers"]}
        vectors = {layer["name"]: layer["vector"] for layer in data["layers"]}
        return build(Grouping, {**head, "groups": groups, "vectors": vectors})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def write(run_dir: Path, grouping: Grouping) -> None:
    """Write `groups.json` atomically, one line per layer."""
    head = grouping.to_dict()
    lines = ",\n".join(f"  {json.dumps(layer)}" for layer in head.pop("layers"))
    text = f'{json.dumps(head, indent=1)[:-2]},\n "layers": [\n{lines}\n ]\n}}\n'
    write_whole(run_dir / GROUPS_FILE, text)


def read(run_dir: Path) -> Grouping | None:
    """Read the run's `groups.json`; None if there is none. Raises ValueError if it is damaged."""
    file = run_dir / GROUPS_FILE
    try:
        return from_dict(read_json(file))
    except (FileNotFoundError, NotADirectoryError):  # a run_root that is a file is refused later
        return None
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): delete it to find the groups again"
        ) from None


def by_kmeans(vectors: Sequence[Sequence[float]], num_groups: int, seed: int) -> list[int]:
    """Cluster vectors by k-means, without normalization; return each one's cluster."""
    distinct = len({tuple(vector) for vector in vectors})
    if distinct < num_groups:
        raise ValueError(
            f"sharing.num_groups={num_groups}, but the layers have only {distinct} different"
            f" coefficient vectors: set it to {distinct} or less"
        )
    from sklearn.cluster import KMeans

    state = derive_key(seed, "groups") % 2**32
    kmeans = KMeans(num_groups, n_init=RESTARTS, random_state=state)
    return [int(label) for label in kmeans.fit(vectors).labels_]


def by_agreement(cosines: Sequence[Sequence[float]], num_groups: int) -> list[int]:
    """Cluster layers by average linkage on the cosines of all pairs; return each one's cluster."""
    if num_groups == len(cosines):  # scikit-learn refuses a single layer
        return list(range(num_groups))
    from sklearn.cluster import AgglomerativeClustering

    distances = [[max(0.0, 1 - cosine) for cosine in row] for row in cosines]
    linkage = AgglomerativeClustering(num_groups, metric="precomputed", linkage="average")
    return [int(label) for label in linkage.fit(distances).labels_]


def named(labels: Mapping[str, int], method: str) -> dict[str, str]:
    """Name groups in the order of their first layers: `learned0`, `learned1`, ..."""
    order = list(dict.fromkeys(labels.values()))
    return {layer: f"{method}{order.index(label)}" for layer, label in labels.items()}
