"""The installed command end to end: a pipeline, a service and a query; the client by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve.start.local import free_port
from tests.package.conftest import Installed


@pytest.mark.slow
def test_the_installed_command_trains_serves_and_answers(
    installed: Installed, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = tmp_path / "tiny.yaml"
    settings.write_text(yaml.safe_dump(tiny_settings | {"runs": str(tmp_path / "runs")}))
    done = installed.run("raycd", "train", "--config", str(settings), timeout=400)
    assert done.returncode == 0, done.stderr
    assert "fine-tuned CLIP" in done.stdout
    bundle, port = tmp_path / "runs" / "tiny" / "bundle", free_port()
    url = f"http://127.0.0.1:{port}"
    gallery = tmp_path / "gallery.sqlite"  # its schema comes from the wheel's migrations
    options = ("--bundle", str(bundle), "--gallery", str(gallery), "--port", str(port))
    with subprocess.Popen(
        [str(installed.folder / "bin" / "raycd"), "serve", *options],
        cwd=installed.folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as service:
        try:
            wait_until_ready(url, service)
            page = httpx.get(f"{url}/")
            assert (page.status_code, "<html" in page.text) == (200, True)
            assert httpx.get(f"{url}/-/healthz").is_success  # what k8s/ asks of a worker
            query = ("search", "--text", "is blue", "--json")
            answer = installed.run("raycd", "client", "--url", url, *query)
            assert answer.returncode == 0, answer.stderr
            assert json.loads(answer.stdout)["total"] == 3 * 30  # categories, images of each
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)


def wait_until_ready(url: str, service: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        if service.poll() is not None or time.monotonic() > until:
            os.killpg(service.pid, signal.SIGKILL)
            pytest.fail(service.communicate()[0])
        time.sleep(0.2)


@pytest.mark.slow
def test_what_pip_installs_without_an_extra_is_the_client(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "-q", "--retries", "0"]
    made = subprocess.run([*pip, "install", str(wheel)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"pip reaches no registry here: {made.stderr.splitlines()[-1:]}")
    for module, code in (("raycd.client", 0), ("torch", 1), ("ray", 1), ("yaml", 1)):
        done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, cwd=tmp_path)
        assert done.returncode == code, done.stderr
    command = str(tmp_path / "venv" / "bin" / "raycd")
    done = subprocess.run([command, "client", "--help"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
