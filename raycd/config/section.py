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
RunName = Annotated[str, Field(pattern=r"^(\w[\w.-]*)?$")]
Precision = Literal["auto", "fp32", "bf16"]
CountOrAuto = Count | Literal["auto"]
Compile = Literal["auto"] | bool
SelectOn = Literal["selection", "val", "last"]
Protocol = Literal["original", "original-masked", "val"]
Measure = Annotated[str, Field(pattern=r"^(recall@[1-9]\d*|recall_subset@[123])$")]


class Section(BaseModel):
    """A part of the configuration. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        frozen=True,
        allow_inf_nan=False,
    )
