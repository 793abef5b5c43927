"""A better search from what people did, in one command: each step is skipped when it is done.

    export MLFLOW_TRACKING_URI=sqlite:///runs/mlflow.db
    python jobs/refresh.py --preset demo --into week-2 --champion models:/raycd@champion \\
        --gallery runs/demo/gallery.sqlite --service http://127.0.0.1:8000 --hup 12345

catalogue   new images (--new) are embedded by the champion's encoder, into the live gallery
feedback    searches and events become triplets (jobs/feedback.py)
train       stage 2 goes on from the champion's head; the encoder stays
judge       champion and new version answer the queries held back, and val
alias       where the interval of the difference lies above zero, the new version is the champion
swap        the service changes to it

What is done lies in <runs>/<into>.refresh; another --into is another refresh.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import feedback
from raycd.config import Config, DataConfig, cli, layers, settings
from raycd.data import catalogue, sources
from raycd.data.folder import absolute, is_local
from raycd.durable import replace_folder
from raycd.errors import ConfigError, RunError
from raycd.redact import json_without_passwords, without_passwords
from raycd.run import IDENTITY, RECORD
from raycd.steps import Steps

if TYPE_CHECKING:
    from raycd.compare.champion import Verdict
    from raycd.data.schema import Dataset
    from raycd.evaluate import Metric

CHAMPION, FEATURES, FEEDBACK = "champion", "features", "feedback"
REGISTRY = "models:/"
SWAP_S = 300.0  # that a service may take to change to a bundle
PAUSE_S = 0.5


def flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument
    own("--champion", metavar="BUNDLE", help="In use: models:/<name>@<alias>, or a folder.")
    own("--into", metavar="NAME", help="Name of the new run.")
    own("--gallery", default="", metavar="URL", help="A SQLite file or a postgresql:// URL.")
    own("--pictures", default="", metavar="ROOT", help="Where uploaded pictures lie.")
    own("--new", metavar="SOURCE", help="New images, as jobs/embed.py --images takes them.")
    category = "Of new images; may repeat."
    own("--category", action="append", default=[], metavar="NAME", help=category)
    own("--service", metavar="URL", help="The service that shall change to a better version.")
    own("--hup", type=int, metavar="PID", help="Its process, which the signal HUP tells to.")
    feedback.rules(parser)


def main(options: cli.Options) -> None:
    asked, config = options.flags, options.config
    asked.gallery, asked.pictures = settings.addresses(asked.gallery, asked.pictures)
    _check(asked, config)
    Refresh(config, asked, _folder(asked, config)).run()


def _folder(asked: argparse.Namespace, config: Config) -> Path:
    return Path(absolute(config.runs), f"{asked.into}.refresh")


def _check(asked: argparse.Namespace, config: Config) -> None:
    from raycd.model import fusion

    if not (asked.champion and asked.into and asked.gallery):
        raise ConfigError("a refresh takes --champion, --into and --gallery", do="give all three")
    layers.build([layers.Layer("--into", {"name": asked.into})])
    if (asked.service is None) != (asked.hup is None):
        raise ConfigError(
            "a service is changed by the signal HUP, and tells over HTTP that it did",
            got="--service or --hup alone",
            do="give both, or neither",
        )
    if asked.hup is not None:
        cli.at_least("--hup", asked.hup, 1)  # 0 and -1 are many processes
    if not is_local(config.runs):
        raise ConfigError(
            "a refresh keeps what it has done on this machine",
            got=f"runs {config.runs}",
            expected="a local folder",
            do="give --runs",
        )
    if not (asked.champion.startswith(REGISTRY) or is_local(asked.champion)):
        raise ConfigError(
            "a bundle on a store is not replaced by a refresh",
            got=f"--champion {asked.champion}",
            expected="models:/<name>@<alias>, or a folder of this machine",
        )
    folder = Path(asked.champion)
    begun = (_folder(asked, config) / "begin.json").is_file()  # a copy is there
    if not begun and (folder.parent / IDENTITY).is_file() and (folder / RECORD).is_file():
        raise ConfigError(
            "the champion is a stage of a run, which would write it again when it is run again",
            got=f"--champion {asked.champion}",
            expected="a bundle's folder of its own, or models:/<name>@<alias>",
            do=f"cp -r {asked.champion} champion, serve that, and give --champion champion",
        )
    if asked.champion.startswith(REGISTRY) and "@" not in asked.champion:
        raise ConfigError(
            "a version has no alias to move", got=asked.champion, expected="models:/<name>@<alias>"
        )
    if asked.champion.startswith(REGISTRY):
        named = asked.champion.removeprefix(REGISTRY).partition("@")[0]
        if not config.tracking.enabled or named != config.tracking.model:
            raise ConfigError(
                "the new bundle would not be a version of the champion's model",
                got=f"--champion {asked.champion}, tracking.model {config.tracking.model}, "
                f"tracking.enabled {str(config.tracking.enabled).lower()}",
                expected="the bundle that is trained is registered under the champion's name",
                do=f"give --tracking.model {named}",
            )
    head = fusion.head_class(config.stage2.head)
    if head.on_titles or not head.trains:
        raise ConfigError(
            "the head learns from no triplet, so from no feedback",
            got=f"stage2.head {config.stage2.head}",
            expected="the champion's, or where that has no weights, as sum, any that trains",
            do="give --stage2.head clip_cd, say",
        )


@dataclass(frozen=True)
class Refresh:
    """The steps of one refresh, whose results are in `folder`."""

    config: Config
    asked: argparse.Namespace
    folder: Path

    @property
    def _steps(self) -> Steps:
        return Steps(self.folder)

    def run(self) -> None:
        """Do the steps that are not done."""
        asked = self.asked
        champion = self._steps.once("begin", [""], self._begin)
        if champion["asked"] != asked.champion:
            raise ConfigError(
                f"the refresh {asked.into} is against another champion",
                got=asked.champion,
                expected=champion["asked"],
                do="give another --into",
            )
        where = without_passwords(asked.gallery)
        if asked.new:
            root = absolute(self.config.data.root) if self.config.data.root else ""
            rows = sources.content(absolute(asked.new), root)
            labels = catalogue.labels(absolute(asked.new))
            said = hashlib.sha256(json.dumps(labels).encode()).hexdigest()
            of = [without_passwords(asked.new), rows, where, *asked.category, said]
            self._steps.once("catalogue", of, lambda: self._catalogue(rows, labels))
        made = self._steps.once("feedback", self._rules(where), self._feedback)
        for line in feedback.lines(made):
            print(line)
        if made["held_back"]:
            self._question(self.folder / FEEDBACK / feedback.HELD_BACK)  # before the training
        trained = self._train(made)
        digest = trained["digest"]
        how = self.config.evaluate.model_dump_json(exclude={"batch_size"})
        of = [digest, made["made"], self.config.registry.metric, how]
        verdict = self._steps.once("judge", of, lambda: self._judge(trained["bundle"], made))
        print(f"held back: {verdict['held_back']}")
        print(f"val:       {verdict['val']}")
        if not verdict["better"] and self._steps.done("alias", [digest]) is None:
            print(f"kept:      {asked.champion}; the new bundle is {trained['bundle']}")
            return
        moved = self._steps.once("alias", [digest], lambda: self._move(champion, trained))
        print(f"champion:  {moved['now']}")
        if asked.service:
            of = [digest, asked.service]
            swapped = self._steps.once("swap", of, lambda: self._swap(digest))
            print(f"service:   serves the bundle of digest {swapped['digest']}")
        else:
            print("next:      tell the service to look again: kill -HUP, or again in user_config")

    def _rules(self, gallery: str) -> list[str]:
        """Return what the triplets of feedback depend on, beside what people did until now."""
        asked, config = self.asked, self.config
        return [
            f"since {asked.since}, {asked.support}, {asked.correct}, {asked.held_back}",
            *(gallery, f"negatives {asked.negatives}", config.stage2.head),
            json.dumps(json_without_passwords(config.data.model_dump(mode="json"))),
            *(config.compose.when, config.name or config.preset),
            *(without_passwords(asked.pictures), feedback.content(config)),
        ]

    def _begin(self) -> dict[str, Any]:
        """Copy the champion: whatever becomes of its alias or folder, the refresh is against it."""
        from raycd import bundle
        from serve.engine import swap

        asked, pinned = self.asked.champion, self.asked.champion
        if asked.startswith(REGISTRY):
            from raycd.runtime.record import registry

            pinned = registry.pinned(asked)
        source = swap.folder(pinned)
        digest = bundle.verify(source).digest
        with replace_folder(self.folder / CHAMPION) as fresh:
            shutil.copytree(source, fresh, dirs_exist_ok=True)
        return {"asked": asked, "pinned": pinned, "digest": digest}

    def _catalogue(self, rows: str, labels: Mapping[str, catalogue.Labels]) -> dict[str, Any]:
        """Embed new images, and have them in the live gallery; `rows` is the hash of them."""
        from jobs import gallery
        from raycd import bundle
        from raycd.runtime import cluster
        from raycd.runtime.embed import embed_shards

        champion, own = self.folder / CHAMPION, str(self.folder / f"{FEATURES}-{rows[:12]}")
        encoder = bundle.load_encoder(champion, bundle.verify(champion))
        with cluster.connected(self.config.compute):
            stored = embed_shards.embed_source(own, absolute(self.asked.new), encoder, self.config)
        names = {"gallery": self.asked.gallery, "pictures": self.asked.pictures, "source": own}
        gallery.import_features(
            argparse.Namespace(**names, encoder="", category=self.asked.category, new=False),
            labels,
        )
        return {"source": self.asked.new, "images": int(stored.starts[-1])}

    def _feedback(self) -> dict[str, Any]:
        """Make triplets of what people did until now."""
        return feedback.make(self.config, self.asked, self.folder / FEEDBACK)

    def _train(self, made: dict[str, Any]) -> dict[str, Any]:
        """Train stage 2 on from the champion. The pipeline itself skips what is done."""
        from raycd.runtime import pipeline

        outcome = pipeline.run(self._trained_config(made))
        record = pipeline.recorded(outcome.run, "bundle")
        known = outcome.run.read_json("mlflow.json") or {}
        return {
            "bundle": outcome.run.path("bundle"),
            "digest": record["digest"],
            "run_id": known.get("run_id", ""),
        }

    def _trained_config(self, made: dict[str, Any]) -> Config:
        config = self.config
        return config.model_copy(
            update={
                "name": self.asked.into,
                "data": self._data(self.folder / FEEDBACK, made),
                "encoder": config.encoder.model_copy(
                    update={"bundle": str((self.folder / CHAMPION).absolute())}
                ),
                # Another encoder than the champion's, or other triplets than those of the manifest
                "adapt": config.adapt.model_copy(update={"epochs": 0}),
                "compose": config.compose.model_copy(update={"when": "never"}),
                "stage1": config.stage1.model_copy(update={"finetune": "none"}),
                "registry": config.registry.model_copy(update={"alias": ""}),
            }
        )

    def _data(self, folder: Path, made: dict[str, Any]) -> DataConfig:
        data = self.config.data
        return data.model_copy(update=feedback.data_of(data, folder, made))

    def _judge(self, new: str, made: dict[str, Any]) -> dict[str, Any]:
        """Ask both the queries held back, and val: better on those, and not worse on these.

        Where val has no triplets, the queries held back decide alone.
        """
        if not made["held_back"]:
            return {
                "held_back": "no query was held back, so nothing says that the new one is better",
                "val": "not asked",
                "better": False,
            }
        held, _ = self._compare(self.folder / FEEDBACK / feedback.HELD_BACK, new)
        if made.get("val") == 0:
            said = {"held_back": held.reason, "val": "there are no val triplets"}
            return {**said, "better": held.is_better}
        val, against = self._compare(self.folder / FEEDBACK, new)
        better = held.is_better and not against.is_better
        return {"held_back": held.reason, "val": val.reason, "better": better}

    def _question(self, data: Path) -> tuple[Config, Dataset, Metric]:
        """Return settings, queries and metric by which a manifest's val judges.

        Raises ConfigError where there is no such metric.
        """
        from raycd.runtime.evaluate import elsewhere, evaluation

        config = self.config.model_copy(update={"data": self._data(data, {})})
        dataset = elsewhere.dataset(config, "val")
        return config, dataset, evaluation.named_metric(config.registry.metric, config, dataset)

    def _compare(self, data: Path, new: str) -> tuple[Verdict, Verdict]:
        """Judge the new bundle by a manifest's val against the champion, and the other way."""
        from raycd.compare.champion import answers_table, judge
        from raycd.runtime.evaluate import elsewhere, evaluation

        config, dataset, metric = self._question(data)
        answers = []
        for folder in (new, str(self.folder / CHAMPION)):
            model = elsewhere.Model.of_bundle(folder)
            *_, head = elsewhere.variants(model, dataset, "val", config)
            found = evaluation.ask(dataset, head, config)
            answers.append(
                answers_table(
                    dataset.triplets_of("val"),
                    found.ranks,
                    protocol=config.evaluate.protocol,
                    gallery=found.gallery,
                )
            )
        own, champion = answers
        return judge(own, champion, metric), judge(champion, own, metric)

    def _move(self, champion: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
        """Make the new bundle the champion: by its alias, or in the place of its folder."""
        asked = champion["asked"]
        if asked.startswith(REGISTRY):
            from raycd.runtime.record import registry

            version = registry.move_alias(asked, champion["pinned"], trained["run_id"])
            return {"now": f"{asked} is version {version}"}
        from raycd import bundle

        now = bundle.verify(Path(asked)).digest if Path(asked).exists() else champion["digest"]
        if now not in (champion["digest"], trained["digest"]):
            what = f"{asked} was not replaced: it is another one than the refresh began with"
            got = f"{now[:12]} instead of {champion['digest'][:12]}; new: {trained['bundle']}"
            raise ConfigError(what, got=got, do="give another --into, which compares with it")
        with replace_folder(Path(asked)) as fresh:
            shutil.copytree(trained["bundle"], fresh, dirs_exist_ok=True)
        return {"now": f"{asked} has digest {trained['digest'][:12]}"}

    def _swap(self, digest: str) -> dict[str, Any]:
        """Tell the service to look again, and wait until it answers with the bundle."""
        from raycd.client import Client

        try:
            os.kill(self.asked.hup, signal.SIGHUP)
        except OSError as error:
            raise ConfigError(
                "the service's process cannot be told",
                got=f"--hup {self.asked.hup}: {error.strerror}",
                expected="the number that the service shows when it starts",
            ) from error
        until = time.monotonic() + SWAP_S
        with Client(self.asked.service, api_key=os.environ.get("RAYCD_API_KEY")) as client:
            while time.monotonic() < until:
                serving = client.info().bundle
                if serving is not None and digest.startswith(serving.digest):
                    return {"digest": serving.digest}
                time.sleep(PAUSE_S)
        raise RunError(
            "the service did not change to the new bundle",
            got=f"{SWAP_S:.0f} s after the signal {serving and serving.digest}",
            expected=digest[:12],
            do="see why in its output; the champion is moved, and the same command sends the "
            "signal again",
        )


def program(argv: Sequence[str] | None = None, prog: str = "jobs/refresh.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="Learn from feedback, and serve what is better.",
        flags=flags,
    )


if __name__ == "__main__":
    sys.exit(program())
