"""The filters of a search, as a request has them: which values of an attribute are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from raycd.names import twice


def _number(value: object) -> object:
    if isinstance(value, bool):  # which is an int in Python
        raise ValueError(f"got {str(value).lower()}, expected a number")
    return value


Number = BeforeValidator(_number)

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=512)]
Bound = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, Number]


class Condition(BaseModel):
    """What the value of an attribute must be: all that is given, and an image has one value.

    A range compares values that are numbers; others are not in it. An image without the attribute
    is found where `not` alone is given.
    """

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        frozen=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    in_: Annotated[tuple[Name, ...] | None, Field(alias="in")] = None
    """One of these."""
    not_: Annotated[tuple[Name, ...], Field(alias="not")] = ()
    """None of these."""
    gt: Bound = None
    """A number above this one."""
    gte: Bound = None
    """A number that is not below this one."""
    lt: Bound = None
    """A number below this one."""
    lte: Bound = None
    """A number that is not above this one."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.in_ is None and not self.not_ and not self.has_range:
            raise ValueError("says nothing: give in, not, gt, gte, lt or lte")
        return self

    @property
    def has_range(self) -> bool:
        """Return whether it compares numbers."""
        return any(bound is not None for bound in (self.gt, self.gte, self.lt, self.lte))

    @property
    def holds_without(self) -> bool:
        """Return whether it holds for an image without the attribute."""
        return self.in_ is None and not self.has_range


def _as_sent(value: object) -> object:
    if isinstance(value, Mapping):
        for name in _OWN & value.keys():  # Python's own names are no part of the interface
            raise ValueError(f"there is no such field as {name}; did you mean {name[:-1]}?")
    return value


def _each_once(value: object) -> object:
    names = value if isinstance(value, Mapping) else ()
    if (again := twice(str(name).strip() for name in names)) is not None:
        raise ValueError(f"{again!r} is there twice")
    return value


def _form(value: object) -> str:
    return CONDITION if isinstance(value, Mapping | Condition) else VALUES


_OWN = {"in_", "not_"}
EachOnce = BeforeValidator(_each_once)  # of names, which are stripped
# How errors name the two forms of a filter
VALUES, CONDITION = "(values)", "(condition)"
Filter = Annotated[
    Annotated[list[Name], Tag(VALUES)]
    | Annotated[Condition, BeforeValidator(_as_sent), Tag(CONDITION)],
    Discriminator(_form),
]
