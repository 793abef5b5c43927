"""`kill -9` of replicas, of the database's server and of the whole service, while many clients write and search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycd.catalogue import Catalogue
from raycd.client import Client
from tests.serve.crash.audit import audit, fixed_answers, same
from tests.serve.crash.load import Gallery, Importer, Load, Searcher, Writer
from tests.serve.crash.process import Service, wait_until

FEW = pytest.param({Writer: 12, Importer: 2, Searcher: 6}, 150, id="20-clients")
MANY = pytest.param({Writer: 130, Importer: 10, Searcher: 60}, 2000, id="200-clients", marks=pytest.mark.slow)


@pytest.mark.parametrize(("clients", "writes"), [FEW, MANY])
def test_sqlite_keeps_what_was_acknowledged_before_a_kill(
    tiny_bundle: Any, gallery: Gallery, tmp_path: Path, log: Path, clients: dict[Any, int], writes: int
) -> None:
    url = str(tmp_path / "gallery.sqlite")
    with (
        Service("--bundle", str(tiny_bundle.folder), "--gallery", url, log=log) as service,
        Catalogue.open(url) as catalogue,
        Client(service.url) as client,
    ):
        load = Load(service.url, gallery, clients)
        with load.running():
            load.advance(writes)
            service.kill_replicas(1)
            load.advance(writes)
            service.kill()
            load.give_up()
        service.start()
        audit(client, catalogue, load.ledger, gallery.encoder)
        with load.running():
            load.advance(writes)
        audit(client, catalogue, load.ledger, gallery.encoder)
        _check_afresh(service, client, catalogue, gallery)


def _check_afresh(service: Service, client: Client, catalogue: Catalogue, gallery: Gallery) -> None:
    """Replicas that load the gallery now answer as those that have followed it."""
    before = fixed_answers(client, gallery.seeds, catalogue.version())
    service.kill_replicas()
    wait_until(service.is_whole, "new replicas")
    afresh = fixed_answers(client, gallery.seeds, catalogue.version())
    for answer, again in zip(before, afresh, strict=True):
        same(answer, again)
