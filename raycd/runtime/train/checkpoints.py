"""The checkpoints of a training: folders in a store that all of its workers reach.

They are raycd's own and not Ray Train's, whose list of checkpoints is rewritten in place (a full
disk or a kill at that moment makes the whole training unreadable), and whose uploads in the
background end the training where they fail. Here a checkpoint is whole or absent: a local folder is
renamed when it is on the disk, and before it is removed; in a bucket its history comes last.

    epoch-0003              three epochs are done
    epoch-0003-step-000120  and 120 batches of the fourth
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from raycd import scratch, stores
from raycd.durable import remove_folder, remove_halves, replace_file, replace_folder
from raycd.errors import RunError, WeightsError, brief
from raycd.run import local_copy, open_uri
from raycd.train.checkpoint import HISTORY, MID_EPOCH, TrainingState, read_history
from raycd.train.loop import best_epoch

Answer = TypeVar("Answer")

KEPT = 2  # the newest ones, beside that of the best epoch
_OURS = re.compile(r"epoch-(\d{4,})(?:-step-(\d{6,}))?")
FILE_OF_RAY = "checkpoint_manager_snapshot.json"
_RAYS = re.compile(r"checkpoint_.+")  # of an earlier version, one an epoch


def name_of(state: TrainingState) -> str:
    """Return the name of a checkpoint."""
    name = f"epoch-{len(state.history):04d}"
    return name if state.mid_epoch is None else f"{name}-step-{state.mid_epoch.batches:06d}"


def in_words(name: str) -> str:
    """Return in words where a checkpoint is: "epoch 4, step 120"; any other name as it is."""
    if not _OURS.fullmatch(name):
        return name or "the beginning"
    epoch, step, _ = _place(name)
    return f"epoch {epoch + 1}" + (f", step {step}" if step else "")


def _place(name: str) -> tuple[int, int, str]:
    """Return what orders names: epochs and steps as numbers, and before them Ray's."""
    found = _OURS.fullmatch(name)
    return (int(found[1]), int(found[2] or 0), "") if found else (-1, 0, name)


class Checkpoints:
    """The checkpoints in a folder or URI, for one process that writes and several that read.

    Methods raise RunError where a store does not answer, OSError where a disk does not.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._fs, self._path = open_uri(self.uri)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._damaged: set[str] = set()  # as `newest` found them

    def names(self) -> list[str]:
        """Return the names of the checkpoints, the newest first."""
        found = [name for name in self._listed() if _OURS.fullmatch(name) or _RAYS.fullmatch(name)]
        # What is written or removed in a bucket is there by halves meanwhile
        return sorted((name for name in found if self._is_whole(name)), key=_place, reverse=True)

    def read(self, name: str) -> TrainingState:
        """Read a checkpoint. Raises WeightsError where it is damaged."""
        with scratch.folder() as folder:
            state = TrainingState.read(local_copy(self._uri(name), folder))
        if "-step-" in name and state.mid_epoch is None:
            raise WeightsError(f"its {MID_EPOCH} is gone")
        return state

    def newest(self) -> tuple[TrainingState | None, str, list[str]]:
        """Return the newest checkpoint that can be read, its name, and what ails those after it."""
        damaged: list[str] = []
        for name in self.names():
            try:
                return self.read(name), name, damaged
            except WeightsError as error:
                self._damaged.add(name)
                damaged.append(f"{name} ({brief(error.__cause__ or error)})")
        return None, "", damaged

    def write(self, state: TrainingState) -> str:
        """Write a checkpoint, and return its name."""
        name = name_of(state)
        if self._is_local:
            with replace_folder(Path(self._path, name)) as folder:
                state.write(folder)
        else:
            with scratch.folder() as folder:
                state.write(folder)
                if name in self._listed():  # of an earlier attempt
                    self._remove(name)
                self._ask(
                    partial(self._upload, folder, posixpath.join(self._path, name)), "writing"
                )
        self._damaged.discard(name)
        return name

    def prune(self, own: TrainingState) -> None:
        """Remove all but the newest ones and the best epoch's, once `own` is written.

        One that `newest` found damaged takes no other's place. Those that are further than `own`
        stay: they were damaged, or could not be read for a while.
        """
        last = _place(name_of(own))
        names = [name for name in self.names() if _OURS.fullmatch(name) and _place(name) <= last]
        keep = set([name for name in names if name not in self._damaged][:KEPT])
        if own.history:
            keep.add(f"epoch-{best_epoch(own.history) + 1:04d}")
        for name in names:
            if name not in keep:
                self._remove(name)

    def finished(self) -> tuple[list[dict[str, Any]], int, Path]:
        """Return the history of a training that is over, its best epoch, and that one's folder.

        The best epoch is the best of those whose checkpoint is there.
        """
        kept: dict[int, str] = {}
        history: list[dict[str, Any]] = []
        for name in self.names():
            if "-step-" in name:
                continue
            with scratch.folder() as folder, suppress(ValueError):
                known = read_history(local_copy(self._uri(name, HISTORY), folder).parent)
                kept.setdefault(len(known) - 1, name)
                history = max(history, known, key=len)
        best = best_epoch([entry for entry in history if entry["epoch"] in kept])
        return history, best, local_copy(self._uri(kept[best]), scratch.new_folder())

    def remove_halves(self) -> None:
        """Remove what a process has left that was killed while it wrote or removed a checkpoint.

        One that it had put aside for another of the same name comes back where that one is absent.
        """
        if not self._is_local:
            return
        folder = Path(self._path)
        if folder.is_dir():
            remove_halves(folder)

    def forget_rays(self) -> None:
        """Remove Ray Train's list of the checkpoints of an earlier version.

        They can be read without it, and Ray Train ends where one of the list is gone.
        """
        with suppress(FileNotFoundError):
            self._ask(partial(self._fs.rm_file, posixpath.join(self._path, FILE_OF_RAY)), "writing")

    def read_json(self, name: str) -> Any:
        """Read a file beside the checkpoints; None where it is absent or cut short."""
        try:
            return json.loads(
                self._ask(partial(self._fs.cat_file, posixpath.join(self._path, name)))
            )
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def write_json(self, name: str, value: object) -> None:
        """Write a file beside the checkpoints; where that fails the earlier one stays."""
        stores.make_folder(self._fs, self._path)
        data, path = json.dumps(value, indent=1).encode(), posixpath.join(self._path, name)
        if not self._is_local:  # where a file is whole or absent
            self._ask(partial(self._fs.pipe_file, path, data), "writing")
            return
        with replace_file(Path(path)) as fresh:
            fresh.write_bytes(data)

    def _remove(self, name: str) -> None:
        if self._is_local:
            remove_folder(Path(self._path, name))
            return
        path = posixpath.join(self._path, name)

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(posixpath.join(path, HISTORY))  # first: without it nothing counts
            with suppress(FileNotFoundError):
                self._fs.rm(path, recursive=True)

        self._ask(remove, "writing")

    def _upload(self, folder: Path, path: str) -> None:
        stores.make_folder(self._fs, path)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == HISTORY):
            self._fs.put_file(str(file), posixpath.join(path, file.name))

    def _is_whole(self, name: str) -> bool:
        return bool(self._ask(partial(self._fs.exists, posixpath.join(self._path, name, HISTORY))))

    def _uri(self, *parts: str) -> str:
        return posixpath.join(self.uri, *parts)

    def _listed(self) -> list[str]:
        return stores.names(self.uri, self._fs, self._path, kind=RunError)

    def _ask(self, question: Callable[[], Answer], doing: stores.Doing = "reading") -> Answer:
        return stores.ask(self.uri, question, doing=doing, kind=RunError)
