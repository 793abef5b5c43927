"""Serves a bundle on this machine, or describes how a Ray cluster is to serve it.

    python serve/app.py --bundle runs/demo/bundle          until Ctrl-C, on http://127.0.0.1:8000
    python serve/app.py --bundle ... --proxy haproxy       the same with HAProxy in front: faster
    RAYCD_SERVE__GALLERY=postgresql://... python serve/app.py --config service.yaml
    serve deploy serve/config.yaml                         on a running cluster, through `build`

All but the last start a small Ray of their own, or join the one that RAY_ADDRESS names. Exit codes:
raycd/program.py; 75 is that Ray has died (start it again).
"""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from raycd.config import cli
from raycd.config.settings import Options, parse_service
from raycd.errors import ConfigError, RaycdError, RunError, WeightsError, called
from raycd.gallery_db.stored import sqlite_file
from raycd.gallery_engine.address import Address
from serve.args import DEFAULT, NO_GALLERY, REGISTRY, LocalArgs, ServeArgs, Wanted, is_fetched
from serve.security import keyring
from serve.security.asgi import GALLERIES
from serve.start import local, running

if TYPE_CHECKING:  # Ray and torch take seconds to import: a mistake ends it before
    from ray.serve import Application

UNGUARDED = """warning: the service listens on {host} without API keys: whoever reaches it may \
change the gallery
  to do:    {keys} add --file keys.json --name NAME --scope write, and give \
--api-keys keys.json"""


def build(args: ServeArgs) -> "Application":
    """Return the Ray Serve application, for config.yaml."""
    return running.application(args, tries=running.NO_END)


def main(argv: Sequence[str] | None = None, prog: str = "serve/app.py") -> int:
    """Serve until a signal, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return cli.guard(lambda: _serve(_read(argv, prog)), argv)


def _read(argv: Sequence[str], prog: str = "serve/app.py") -> Options[LocalArgs]:
    return parse_service(
        LocalArgs, argv, prog=prog, description="Answer composed queries over HTTP."
    )


def _serve(options: Options[LocalArgs]) -> None:
    # A handler may come while its own thread is in `get`: an Event would then wait for itself
    asked, wanted = SimpleQueue[None](), options.config
    signal.signal(signal.SIGHUP, lambda *_: asked.put(None))
    if local.is_ours():  # a wrong RAY_ADDRESS ends it at once
        local.check_free(wanted.host, wanted.port)
    else:
        _check_clusters(wanted)
    folder = _folder(wanted.bundle)
    args = _arguments(wanted, folder)
    for gallery in (DEFAULT, *args.galleries):
        if engine := args.of(gallery).gallery_engine:
            Address.parse(engine).check_installed()
    if args.api_keys:
        warn_of_keys(args)
    elif not _is_loopback(wanted.host):
        print(UNGUARDED.format(host=wanted.host, keys=called("serve/keys.py")), file=sys.stderr)
    if wanted.traces:
        from serve.monitoring import tracing

        os.environ.update(tracing.environment())
    from raycd import bundle
    from raycd.runtime import watch
    from serve.monitoring import logs

    logs.check(args)
    manifest = bundle.verify(folder)
    with (
        local.cluster(
            args, haproxy=wanted.proxy == "haproxy", metrics_port=wanted.metrics_port or None
        ) as metrics,
        running.running(args, wanted.host, wanted.port),
    ):
        url = f"http://{_in_url(wanted.host)}:{wanted.port}"
        what = f"{manifest.head['name']}, digest {manifest.digest[:12]}"
        print(f"raycd serves {wanted.bundle} ({what}) on {url}")
        _tell_galleries(wanted, f"{url}{GALLERIES}")
        text = shlex.quote(next(iter(manifest.example_texts), "is blue"))
        print(f"  curl -F image=@{_example(folder)} -F text={text} {url}/v1/search")
        print(f"  a page to try it on: {url}/    its API: {url}/docs    metrics: {metrics}")
        print(
            f"Ctrl-C stops it; kill -HUP {os.getpid()} has it look at the bundle again.", flush=True
        )
        with watch.port_answers(wanted.host, wanted.port, must=local.is_ours()):
            _until_stopped(args, wanted, asked, debug=options.debug)


def _check_clusters(wanted: LocalArgs) -> None:
    """Raise ConfigError for what a cluster's nodes read in their environment, before Ray starts."""
    given = {
        "--proxy haproxy": wanted.proxy != "default",
        "--metrics-port": bool(wanted.metrics_port),
        "--traces": wanted.traces,
    }
    if ignored := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(
            "on the cluster of RAY_ADDRESS this would change nothing",
            got=", ".join(ignored),
            do="leave it out, and set up the cluster's nodes as docs/serving.md and "
            "docs/monitoring.md say",
        )


def warn_of_keys(args: ServeArgs) -> None:
    """Name keys of galleries that the service lacks. Raises ConfigError for a file that is none."""
    for key in keyring.read(Path(args.api_keys)):
        if unknown := sorted(set(key.galleries or ()) - {DEFAULT, *args.galleries}):
            print(
                f"warning: the API key {key.name} is for galleries that are not served: "
                f"{', '.join(unknown)}",
                file=sys.stderr,
            )


def _tell_galleries(wanted: ServeArgs, url: str) -> None:
    if not wanted.galleries:
        return
    refused = {name: info.refused for name, info in running.bundle_infos().items() if info.refused}
    for name, given in wanted.galleries.items():
        print(f"  gallery {name}: {given.bundle} at {url}/{name}/search")
        if name in refused:
            print(f"warning: the gallery {name} is not loaded: {refused[name]}", file=sys.stderr)


def _until_stopped(
    args: ServeArgs, given: ServeArgs, asked: SimpleQueue[None], *, debug: bool = False
) -> None:
    """Change to what the bundles of `given` have become at each request; where that fails, go on as
    before.
    """
    good = Wanted(bundle=args.bundle)
    for number in count(1):
        asked.get()
        while not asked.empty():  # several of them are one
            asked.get()
        try:
            wanted = _newest(args, given, number)
            said = running.change(args, wanted, good)
        # Of Ray, of the registry: none of them ends a service that answers.
        except Exception as error:
            if debug:
                traceback.print_exc()
            print(f"error: {_not_changed(error)}", file=sys.stderr, flush=True)
            continue
        good = wanted.but(running.refusing(said), good, args)
        for gallery, info in said.items():
            of = "" if gallery == DEFAULT else f" in gallery {gallery}"
            refused = f"; the new one was refused: {info.refused}" if info.refused else ""
            print(f"raycd serves the bundle of digest {info.digest}{of}{refused}", flush=True)


def _newest(args: ServeArgs, given: ServeArgs, number: int) -> Wanted:
    """Return the bundles that are there now, by the names that were given for them."""
    bundles = {
        gallery: _pinned(given.of(gallery).bundle) or args.of(gallery).bundle
        for gallery in (DEFAULT, *given.galleries)
    }
    own = bundles.pop(DEFAULT)
    return Wanted(bundle=own, again=number, galleries=bundles)


def _pinned(bundle: str) -> str:
    """Return the version that an alias of the registry names now, to go back to; a URI; "" of a
    folder.
    """
    if not bundle.startswith(REGISTRY):
        return bundle if is_fetched(bundle) else ""
    from raycd.runtime.record import registry

    return registry.pinned(bundle)


def _not_changed(error: Exception) -> RunError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if not isinstance(error, RaycdError):
        lines = [f"{type(error).__name__}: {lines[-1]}"]
    return RunError(
        "the bundle could not be changed, the service goes on",
        got="\n            ".join(lines),
        do="fix that and send the signal again",
    )


def _folder(wanted: str, option: str = "--bundle") -> Path:
    """Return the folder of the bundle that an option names. Raises as `swap.folder`."""
    if is_fetched(wanted):
        from serve.engine import swap

        return swap.folder(wanted)
    folder = Path(wanted).expanduser().absolute()
    if not (folder / "manifest.json").is_file():
        raise WeightsError(
            f"there is no bundle at {wanted}",
            expected="a folder with a manifest.json, as training writes it to runs/<name>/bundle",
            do=f"run {called('jobs/train.py')} --preset demo first, or name another folder with "
            f"{option}",
        )
    return folder


def _dispensable(wanted: str, of: str, option: str) -> str:
    """Return where a bundle is that the service can start without. Where it is unfit, say so."""
    from raycd import bundle

    try:
        folder = _folder(wanted, option)
        bundle.verify(folder)
        return _for_replicas(wanted, folder)
    except RaycdError as error:
        print(f"warning: the bundle of {of} cannot be loaded: {error}", file=sys.stderr)
        return wanted if is_fetched(wanted) else str(Path(wanted).expanduser().absolute())


def _for_replicas(wanted: str, folder: Path) -> str:
    """Return where replicas find a bundle: the nodes of another cluster fetch it by themselves."""
    return ("" if local.is_ours() else _pinned(wanted)) or str(folder)


def _arguments(wanted: LocalArgs, folder: Path) -> ServeArgs:
    """Return what replicas are given, whose folders and addresses are other ones than ours."""
    given = wanted.model_dump(include=set(ServeArgs.model_fields))
    given["bundle"] = _for_replicas(wanted.bundle, folder)
    if wanted.second.bundle:
        given["second"]["bundle"] = _dispensable(
            wanted.second.bundle, "the second model", "--second.bundle"
        )
    for name, one in given["galleries"].items():
        one["bundle"] = _dispensable(one["bundle"], f"the gallery {name}", "--galleries")
    # Replicas start in other folders
    for part in (given, *given["galleries"].values()):
        for name in ("api_keys", "gallery", "log_dir", "pictures"):
            if not part.get(name) or part[name] == NO_GALLERY:
                continue
            if "://" not in part[name]:
                part[name] = str(Path(part[name]).expanduser().absolute())
            elif name == "gallery" and part[name].startswith("sqlite"):
                part[name] = str(sqlite_file(part[name]))
    if not wanted.hosts and _is_loopback(wanted.host):
        given["hosts"] = ("127.0.0.1", "localhost", "[::1]", wanted.host)
    return ServeArgs.model_validate(given)


def _is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches `host`. Raises as `local.addresses`."""
    return all(ip_address(found[4][0]).is_loopback for found in local.addresses(host))


def _in_url(host: str) -> str:
    """Return what stands in a URL by which this machine reaches what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _example(folder: Path) -> str:
    """Return an image of the gallery that the user can ask with, quoted for a shell."""
    import pyarrow.parquet as pq

    paths = pq.read_table(folder / "gallery.parquet", columns=["path"])["path"].to_pylist()
    return shlex.quote(next((path for path in paths if path and Path(path).is_file()), "photo.jpg"))


if __name__ == "__main__":
    sys.exit(main())
