"""Settings and record of an artifact, a network's quantized and compressed tensors."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_type_hints

from npas.utils.checks import Ranged

KEYS = ("bits", "scheme", "compression")  # keyword arguments of `write_artifact`


@dataclass(frozen=True)
class Packing(Ranged):
    """Quantization and compression of an artifact.

    `rows` quantizes banks and tensors of more than 4,096 values to `bits`, scaled by each row's
    largest value, and keeps smaller ones in fp16; `golf` is the scheme of the Parameter Golf
    contest's baseline. A plan fits a budget in bytes if its tensors, before compression, take at
    most `expected_ratio` times as many: the expected bytes before over those after compression.
    """

    bits: Literal[8, 6] = 8
    scheme: Literal["rows", "golf"] = "rows"
    compression: Literal["zlib", "lzma", "none"] = "zlib"
    expected_ratio: Annotated[float, "[1, 8]"] = 1.0  # of trained weights: more is an error

    def __post_init__(self) -> None:
        hints = get_type_hints(Packing)
        for name in KEYS:
            if (value := getattr(self, name)) not in (choices := get_args(hints[name])):
                known = ", ".join(map(str, choices))
                raise ValueError(f"{self.section}{name}={value} is unknown: choose {known}")
        object.__setattr__(self, "bits", int(self.bits))  # 8.0 is accepted
        if self.scheme == "golf" and self.bits != 8:
            raise ValueError(f"{self.section}scheme=golf has 8 bits: set bits=8, or scheme=rows")
        super().__post_init__()

    @property
    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments of `write_artifact`."""
        return {name: getattr(self, name) for name in KEYS}

    @property
    def description(self) -> str:
        how = f"int{self.bits}" if self.scheme == "rows" else "int8 as in Parameter Golf"
        return f"{how}, {self.compression}" if self.compression != "none" else how


@dataclass(frozen=True)
class Artifact:
    """A written artifact; `metrics` are those of the network read back from it."""

    bytes: int
    bytes_before_compression: int
    bits: int
    scheme: str
    compression: str
    cap: int | None = None
    metrics: dict[str, float] | None = None
