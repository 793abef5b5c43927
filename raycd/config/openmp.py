"""How OpenMP's threads, those of torch and FAISS on CPUs, wait for each other."""

from __future__ import annotations

import os


def settings() -> dict[str, str]:
    """Return the environment for OpenMP, which reads it once, when torch is imported.

    GNU's OpenMP spins for milliseconds by default: where another program has the CPU of one thread,
    the others spin for it instead of leaving their CPUs to it. 1000 turns are about 50 us: longer
    than the threads of one parallel region differ, shorter than a time slice. Against the default
    that cost 0 to 14% on a quiet machine, and kept more than half of the speed beside a busy CPU.
    (OMP_WAIT_POLICY=PASSIVE, which never spins, costs a quarter on a quiet machine.) A user who has
    set either variable has decided.
    """
    decided = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    return {} if decided else {"GOMP_SPINCOUNT": "1000"}
