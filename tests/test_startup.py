"""What a process imports before it has anything to do: torch and open_clip take seconds each, and
torch's compiler one more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys

import serve.app, serve.service, raycd.gallery_db

serves = sorted(sys.modules)

import raycd.runtime.train.teller

controls = sorted(sys.modules)

import tune.trial, jobs.comparison.cells, raycd.runtime.train.training, raycd.runtime.stages.train

print(json.dumps([serves, controls, sorted(sys.modules)]))
"""


def test_who_starts_a_service_or_a_training_needs_no_torch_and_who_trains_a_head_no_open_clip() -> (
    None
):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    serves, controls, trains = (set(modules) for modules in json.loads(done.stdout))
    assert serves & {"torch", "open_clip", "mlflow"} == set()
    assert controls & {"torch", "mlflow"} == set()  # Ray Train's controller
    assert trains & {"open_clip", "timm", "torchvision", "transformers", "torch._dynamo"} == set()
    assert "torch" in trains  # the names are those of modules
