"""The settings of the service: `args` in config.yaml, and what `python serve/app.py` reads.

service    `ServeArgs`: all of them
galleries  the further galleries of a service, each with settings of its own
replicas   how many copies of the model there are
second     the second model beside the first, and its share of users
wanted     the bundles that it shall serve, which change while it runs
"""

from serve.args.galleries import DEFAULT, NO_GALLERY
from serve.args.second import Second
from serve.args.service import REGISTRY, LocalArgs, ServeArgs, is_fetched
from serve.args.wanted import Wanted

__all__ = [
    "DEFAULT",
    "NO_GALLERY",
    "REGISTRY",
    "LocalArgs",
    "Second",
    "ServeArgs",
    "Wanted",
    "is_fetched",
]
