"""What the sections of the configuration are made of: their base, and the types of fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0)]
Text = Annotated[str, Field(min_length=1)]
Precision = Literal["auto", "fp32", "bf16"]
CountOrAuto = Count | Literal["auto"]
RateOrAuto = Rate | Literal["auto"]
Compile = Literal["auto"] | bool
IndexKind = Literal["flat", "half", "ivf", "hnsw", "sq8", "rabitq"]
SelectOn = Literal["selection", "val", "last"]
Protocol = Literal["original", "original-masked", "val"]

_NAME = r"^(\w[\w.-]*)?$"
_ALIAS = r"^[A-Za-z_][A-Za-z0-9_-]*$"
_ALIAS_OR_NONE = r"^([A-Za-z_][A-Za-z0-9_-]*)?$"
_MEASURE = r"^(recall@[1-9]\d*|recall_subset@[123])$"
RunName = Annotated[str, Field(pattern=_NAME)]
Alias = Annotated[str, Field(pattern=_ALIAS)]
AliasOrNone = Annotated[str, Field(pattern=_ALIAS_OR_NONE)]
Measure = Annotated[str, Field(pattern=_MEASURE)]
IN_WORDS = {
    _NAME: "letters, digits, _ . and -, with a letter, a digit or _ first",
    _ALIAS: "letters from A to Z, digits, _ and -, with a letter or _ first",
    _ALIAS_OR_NONE: "nothing, or letters from A to Z, digits, _ and -, with a letter or _ first",
    _MEASURE: "recall@K, or recall_subset@1, 2 or 3",
}
"""What a pattern asks for, as it is said to a person."""


class Section(BaseModel):
    """A part of the configuration. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        frozen=True,
        allow_inf_nan=False,
    )
