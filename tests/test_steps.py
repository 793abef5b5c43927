"""Steps that are done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raycd.steps import Steps


def test_a_step_is_done_again_where_something_that_it_is_done_of_has_changed(
    tmp_path: Path,
) -> None:
    steps, done = Steps(tmp_path), list[int]()

    def work() -> dict[str, Any]:
        done.append(0)
        return {"times": len(done)}

    asked = (["d", "recall@10"], ["d", "recall@10"], ["d", "recall@1"], ["e", "recall@1"])
    assert [steps.once("judge", of, work)["times"] for of in asked] == [1, 1, 2, 3]
    noted = {"of": "d", "found": {"times": 7}}  # by an earlier raycd
    (tmp_path / "judge.json").write_text(json.dumps(noted))
    assert steps.once("judge", ["d", "recall@10"], work) == {"times": 7}
