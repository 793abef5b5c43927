"""The number of replicas: a fixed one, or bounds between which Ray Serve's autoscaling chooses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

_Whole = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

# Ray Serve hears of requests every 10 s, and wants to look back further than that.
_LOOK_BACK_S = 15.0


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are: `min` to `max`, as the load asks."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    min: _Whole = 1
    """The fewest; with these the service is ready."""
    max: _Whole = 1
    """The most. Threads and room on a machine are reckoned for these."""
    target: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0
    """Requests at work and waiting for each replica: more of them add replicas, fewer take away."""
    up_s: _Seconds = 10.0
    """Seconds that more are wanted before they are started."""
    down_s: _Seconds = 300.0
    """Seconds that fewer are wanted before some end."""

    def __post_init__(self) -> None:
        if self.max < self.min:
            raise ValueError(f"max is at least min: got min {self.min} and max {self.max}")

    def __str__(self) -> str:
        if not self.follow_load:
            return str(self.max)
        given = (f"{field.name}: {getattr(self, field.name):g}" for field in fields(self))
        return f"{{{', '.join(given)}}}"

    @property
    def follow_load(self) -> bool:
        """Whether their number changes."""
        return self.min < self.max

    @classmethod
    def of(cls, given: Any) -> Any:
        """Return what is validated: a number alone is both bounds. Raises ValueError."""
        if isinstance(given, bool):  # pydantic reads true as 1; in YAML it is a slip
            raise ValueError("a number, or min, max and target")
        if isinstance(given, cls):
            return given
        if isinstance(given, dict):
            known = [field.name for field in fields(cls)]
            if unknown := [name for name in given if name not in known]:
                raise ValueError(f"names among {', '.join(known)}: {unknown[0]!r} is none")
            if "max" not in given:
                raise ValueError("a max, too: the most replicas that there may be")
            return given
        return {"min": given, "max": given}

    def options(self) -> dict[str, Any]:
        """Return the options of a Ray Serve deployment."""
        if not self.follow_load:
            return {"num_replicas": self.max}
        return {
            "autoscaling_config": {
                "min_replicas": self.min,
                "max_replicas": self.max,
                "target_ongoing_requests": self.target,
                "upscale_delay_s": self.up_s,
                "downscale_delay_s": self.down_s,
                "look_back_period_s": _LOOK_BACK_S,
            }
        }


ReplicaCount = Annotated[Replicas, BeforeValidator(Replicas.of)]
