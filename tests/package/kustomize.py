"""As much of Kustomize as k8s/ uses; anything else in a kustomization is an error.

Kustomize itself is a program that few machines have. Where one has it, test_kubernetes.py holds
these answers against its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

KNOWN = {
    *("apiVersion", "kind", "resources", "namespace", "nameSuffix", "labels", "images", "patches"),
}


def render(folder: Path) -> list[dict[str, Any]]:
    """Return the manifests of a kustomization. Raises where it names what is not there."""
    asked = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(asked) - KNOWN
    assert not unknown, f"{folder}: kustomize.py does not know {sorted(unknown)}"
    made = [each for name in asked["resources"] for each in _resource(folder / name)]
    for manifest in made:
        meta = manifest["metadata"]
        meta["name"] += asked.get("nameSuffix", "")
        if "namespace" in asked:
            meta["namespace"] = asked["namespace"]
        for label in asked.get("labels", []):
            meta.setdefault("labels", {}).update(label["pairs"])
    for patch in asked.get("patches", []):
        chosen = [m for m in made if _is_target(m, patch["target"])]
        assert chosen, f"{folder}: a patch has no target {patch['target']}"
        for manifest in chosen:
            for step in yaml.safe_load(patch["patch"]):
                _apply(manifest, step)
    for image in asked.get("images", []):
        assert sum(_rename(each, image) for each in made), f"{folder}: no image {image['name']}"
    return made


def _resource(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        return render(path)
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def _is_target(manifest: dict[str, Any], target: dict[str, str]) -> bool:
    name = target.get("name", manifest["metadata"]["name"])
    return (manifest["kind"], manifest["metadata"]["name"]) == (target["kind"], name)


def _apply(manifest: Any, step: dict[str, Any]) -> None:
    """Apply one operation of a JSON patch (RFC 6902): add to or replace in mappings, remove."""
    *way, last = [
        part.replace("~1", "/").replace("~0", "~") for part in step["path"].lstrip("/").split("/")
    ]
    for part in way:
        manifest = manifest[int(part) if isinstance(manifest, list) else part]
    assert isinstance(manifest, dict), step
    if step["op"] == "remove":
        del manifest[last]
    else:
        assert step["op"] == "add" or last in manifest, step
        manifest[last] = step["value"]


def _rename(value: Any, image: dict[str, str]) -> int:
    """Give the containers below `value` another image; return how many have it now."""
    if isinstance(value, list):
        return sum(_rename(each, image) for each in value)
    if not isinstance(value, dict):
        return 0
    count = 0
    for container in value.get("containers", []):
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            tag = image.get("newTag", tag)
            container["image"] = image.get("newName", name) + (f":{tag}" if tag else "")
            count += 1
    return count + sum(_rename(each, image) for each in value.values())
