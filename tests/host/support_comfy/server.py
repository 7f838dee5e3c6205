"""A real ComfyUI server in a process of its own, headless on the CPU, and a client for its HTTP interface."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .sampling import Graph

TEST_NODE = Path(__file__).with_name("test_only_node.py")

BOOT_SECONDS = 240
"""How long a server may take to answer; ten seconds is usual, but test machines are busy."""

ANSWER_SECONDS = 120
"""How long one answer may take: a busy machine keeps a server waiting."""


class RefusedPromptError(Exception):
    """The server did not take a workflow; ``errors`` holds its answer."""

    def __init__(self, errors: dict[str, Any]) -> None:
        super().__init__(json.dumps(errors))
        self.errors = errors


class Server:
    """``with Server(...) as server:`` a ComfyUI that answers; it is gone when the block is left.

    Args:
        checkout: ComfyUI's folder.
        python: Interpreter that has its requirements.
        base: Folder made by ``boot.make_base``.
        log_level: What the server's log holds ("WARNING": complaints only).
        arguments: More arguments of the command line.
        environment: More variables for the server.

    Attributes:
        boot_log: What it had written when it first answered.
    """

    def __init__(
        self,
        checkout: Path,
        python: Path,
        base: Path,
        log_level: str = "INFO",
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.base = base
        self._environment = dict(environment or {})
        self._checkout = checkout
        self._log_path = base / "server.log"
        self._port = _free_port()
        self._command = [
            str(python),
            "main.py",
            "--cpu",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--base-directory",
            str(base),
            "--database-url",
            f"sqlite:///{base / 'user' / 'comfyui.db'}",
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--verbose",
            log_level,
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.boot_log = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def log(self) -> str:
        """Everything that the server has written so far."""
        return self._log_path.read_text(errors="replace")

    def __enter__(self) -> Server:
        shutil.copyfile(TEST_NODE, self.base / "custom_nodes" / TEST_NODE.name)
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "CLEAR_TEST_SERVER": "1",
            **self._environment,
        }
        environment.pop("PYTHONPATH", None)
        with self._log_path.open("wb") as log:
            # The test-only node ends the server when this pipe closes, which it does however this process ends.
            self._process = subprocess.Popen(
                self._command,
                cwd=self._checkout,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE,
            )
        try:
            self._wait_until_it_answers()
            self.get("/object_info")
        except BaseException:
            self.__exit__()
            raise
        self.boot_log = self.log
        return self

    def __exit__(self, *exc: object) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        self._process = None

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self._process.returncode}:\n{self.log}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.25)
        raise RuntimeError(f"the server did not answer within {BOOT_SECONDS} s:\n{self.log}")

    def get(self, path: str) -> Any:
        """The JSON answer to a GET."""
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a POST of JSON.

        Raises:
            RefusedPromptError: The server answered with an error, described in JSON.
        """
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RefusedPromptError(json.load(error)) from None

    def tell(self, path: str, body: Any = None) -> None:
        """A POST of JSON whose answer has no body."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()

    def run(
        self,
        graph: Graph,
        seconds: float = 240,
        pause: float = 0.1,
        meanwhile: Callable[[], None] | None = None,
        **asked: Any,
    ) -> dict[str, Any]:
        """Runs a workflow to its end and returns its entry in the server's history.

        Args:
            graph: The workflow.
            seconds: How long it may take.
            pause: Seconds between two questions.
            meanwhile: Called between them.
            asked: What the front end says of the run beside the workflow, such as ``partial_execution_targets``.

        Raises:
            RefusedPromptError: The workflow did not pass the server's checks.
            TimeoutError: It did not end in time.
        """
        prompt = self.post("/prompt", {"prompt": graph, **asked})["prompt_id"]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt}").get(prompt)
            if entry and entry["status"]["status_str"] in ("success", "error"):
                return entry
            if meanwhile is not None:
                meanwhile()
            time.sleep(pause)
        raise TimeoutError(f"the workflow did not end within {seconds} s:\n{self.log}")


def output_files(entry: dict[str, Any], base: Path) -> list[Path]:
    """Files that a run wrote into the output folder."""
    assert entry["status"]["status_str"] == "success", error_message(entry)
    return [
        base / "output" / file["subfolder"] / file["filename"]
        for shown in entry["outputs"].values()
        for files in shown.values()
        for file in files
        if isinstance(file, dict) and file["type"] == "output"
    ]


def shown_text(entry: dict[str, Any]) -> str:
    """Everything that nodes show as text after a run."""
    return "\n".join(text for shown in entry["outputs"].values() for text in shown.get("text", ()))


def error_message(entry: dict[str, Any]) -> str:
    """The server's error message for a failed run; empty if the run did not fail."""
    told = [facts["exception_message"] for kind, facts in entry["status"]["messages"] if kind == "execution_error"]
    return "\n".join(told).strip()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
