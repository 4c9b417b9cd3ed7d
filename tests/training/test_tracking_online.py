"""W&B's real client goes on in the same run, against a server of this test's own on loopback."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

# One process that trains, as far as the tracker can tell.
CHILD = """
import json, logging, os, sys
from pathlib import Path
from npas.config import Config, WandbConfig
from npas.training import tracking

logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
asked = json.loads(sys.argv[1])
for name, seconds in asked["limits"].items():
    setattr(tracking, name, seconds)
nodes = {"model": {"family": "wrn"}, "task": {"family": "digits"}}
wandb = WandbConfig(mode=asked["mode"], project="p", tags=["a", "b"])
config = Config(exp="small", budget="dense", wandb=wandb, **nodes)
run_dir, facts = Path(asked["run_dir"]), {"ranks": 2, "git": {"commit": "0123abc"}}
with tracking.Tracker(config, run_dir, asked["logged"], None, facts=facts) as tracker:
    for step in asked["steps"]:
        tracker.log({"step": step, "train/loss": 1 / step})
    if asked["kills"]:
        for entry in Path("/proc").glob("[0-9]*/stat"):
            pid, name, _, parent = entry.read_text().split()[:4]
            if name.startswith("(wandb-core") and int(parent) == os.getpid():
                os.kill(int(pid), 9)
        tracker.log({"step": 100})
    if asked["status"] == "done":
        tracker.summarize({"last": {"accuracy": 98.0}})
    tracker.ended(asked["status"])
print("trained on")
"""


class Server(ThreadingHTTPServer):
    """Knows of W&B's protocol what a run needs, and keeps what it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, query: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Answer a query by its name; None if it is not known."""
        entity = {"id": "E", "name": "somebody"}
        if query == "Viewer":
            teams: dict[str, Any] = {"edges": []}
            names = {"entity": "somebody", "username": "somebody", "email": ""}
            return {"viewer": {"id": "U", "flags": "{}", "teams": teams, **names}}
        if query == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if query == "OrganizationCoreWeaveOrganizationID":
            return {"entity": {"organization": None}}
        if query == "RunResumeStatus":
            bucket = self.bucket(asked["name"]) if asked["name"] in self.runs else None
            return {"model": {"id": "P", "name": "p", "entity": entity, "bucket": bucket}}
        if query == "UpsertBucket":
            inserted = asked["name"] not in self.runs
            run = self.runs.setdefault(asked["name"], {"history": [], "asked": [], "stream": []})
            run["asked"].append({key: value for key, value in asked.items() if value is not None})
            return {"upsertBucket": {"bucket": self.bucket(asked["name"]), "inserted": inserted}}
        if query == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/put/{f}"} for f in asked["files"]]
            done = {"runID": asked["run"], "uploadHeaders": [], "files": files}
            return {"createRunFiles": done}
        return None

    def bucket(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        asked = {key: value for call in run["asked"] for key, value in call.items()}
        project = {"id": "P", "name": "p", "entity": {"id": "E", "name": "somebody"}}
        return {
            "id": name,
            "name": name,
            "displayName": asked.get("displayName"),
            "description": None,
            "notes": None,
            "config": asked.get("config"),
            "tags": asked.get("tags"),
            "sweepName": None,
            "project": project,
            "summaryMetrics": json.dumps(run.get("summary", {})),
            "historyTail": json.dumps([json.dumps(line) for line in run["history"][-1:]]),
            "eventsTail": "[]",
            "historyLineCount": len(run["history"]),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "wandbConfig": '{"t": 1}',
        }

    def stream(self, run: dict[str, Any], sent: dict[str, Any]) -> None:
        """Take in a piece of a run's files: each says at which line it begins."""
        run["stream"].append({key: value for key, value in sent.items() if key != "files"})
        for name, piece in sent.get("files", {}).items():
            lines = [json.loads(line) for line in piece["content"]]
            if name == "wandb-history.jsonl":
                run["history"][piece["offset"] :] = lines
            elif name == "wandb-summary.json":
                run["summary"] = lines[-1]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def reply(self, data: object, code: int = 200) -> None:
        text = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self) -> None:
        self.body()
        self.reply({})

    def do_POST(self) -> None:
        data = self.body()
        if self.path == "/graphql":
            asked = json.loads(data)
            (name,) = re.findall(r"^\s*(?:query|mutation) (\w+)", asked["query"])
            answer = self.server.answer(name, asked.get("variables") or {})
            if answer is not None:
                return self.reply({"data": answer})
            self.server.unknown.append(name)
            return self.reply({"errors": [{"message": f"{name} is not known"}]})
        match = re.fullmatch(r"/files/somebody/p/(\w+)/file_stream", self.path)
        if match is None:  # telemetry
            return self.reply({}, 404)
        self.server.stream(self.server.runs[match[1]], json.loads(data))
        return self.reply({})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        yield found
        found.shutdown()


Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return a function that runs the child above against a server, and gives back how it ended."""

    def run(
        url: str,
        *steps: int,
        key: bool = True,
        stdin: int = subprocess.DEVNULL,
        stderr: int = subprocess.PIPE,
        **asked: Any,
    ) -> subprocess.CompletedProcess[str]:
        defaults = {"mode": "online", "run_dir": str(tmp_path / "run"), "logged": 0}
        defaults |= {"status": "done", "limits": {}, "kills": False}
        return subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps({**defaults, "steps": steps, **asked})],
            env=environment(tmp_path, url, key),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=120,
        )

    return run


def environment(home: Path, url: str, key: bool = True) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    kept |= {"HOME": str(home), "NO_PROXY": "127.0.0.1", "WANDB_BASE_URL": url}
    return kept | ({"WANDB_API_KEY": "0123456789" * 4} if key else {})


def the_run(server: Server, run_dir: Path) -> dict[str, Any]:
    """Return all that the server was told; it must be of one run, the folder's."""
    assert list(server.runs) == [(run_dir / "wandb_id").read_text().strip()]
    return next(iter(server.runs.values()))


def test_a_run_that_was_stopped_goes_on_in_the_same_run(
    server: Server, start: Start, tmp_path: Path
) -> None:
    done = start(server.url, 1, 2, status="preempted")
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained on\n", "")
    run = the_run(server, tmp_path / "run")
    first = run["asked"][0]
    assert (first["groupName"], first["jobType"], first["displayName"]) == ("small", "train", "run")
    assert first["tags"] == ["a", "b"] and first["commit"] == "0123abc"
    config = json.loads(first["config"])
    assert config["budget"] == {"value": "dense"} and config["facts"]["value"]["ranks"] == 2
    assert any(piece.get("preempting") for piece in run["stream"])
    assert run["stream"][-1]["exitcode"] == 1
    assert run["summary"]["status"] == "preempted"

    done = start(server.url, 3, 4, logged=2)
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained on\n", "")
    assert the_run(server, tmp_path / "run") is run
    assert [line["step"] for line in run["history"]] == [1, 2, 3, 4]
    assert [line["_step"] for line in run["history"]] == [0, 1, 2, 3]
    assert run["stream"][-1]["exitcode"] == 0
    assert (run["summary"]["status"], run["summary"]["last/accuracy"]) == ("done", 98.0)
    # What is drawn over what: all over "step".
    metrics = json.loads(run["asked"][-1]["config"])["_wandb"]["value"]["m"]
    assert any(metric.get("1") == "step" for metric in metrics)
    assert server.unknown == []
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "log.jsonl",
        "wandb",
        "wandb_id",
    }


def test_parts_that_were_offline_are_put_together_when_they_are_sent(
    server: Server, start: Start, tmp_path: Path
) -> None:
    for part, status in enumerate(("preempted", "done")):
        steps = (2 * part + 1, 2 * part + 2)
        done = start("http://127.0.0.1:9", *steps, mode="offline", status=status, logged=2 * part)
        assert (done.returncode, done.stderr) == (0, "")
        time.sleep(1)  # the folders' names are in seconds
    assert server.runs == {}
    command = [sys.executable, "-m", "wandb", "sync", "--yes"]
    subprocess.run(
        command,
        cwd=tmp_path / "run",
        env=environment(tmp_path, server.url),
        check=True,
        timeout=120,
    )
    run = the_run(server, tmp_path / "run")
    assert [line["step"] for line in run["history"]] == [1, 2, 3, 4]
    assert (run["summary"]["status"], run["summary"]["last/accuracy"]) == ("done", 98.0)


def warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("WARNING")]


def test_a_server_that_never_answers_holds_nothing_up(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        started = time.monotonic()
        limits = {"START_S": 1, "INIT_S": 1, "FINISH_S": 1}
        done = start(url, 1, 2, limits=limits)
        assert time.monotonic() - started < 60
    assert done.returncode == 0 and done.stdout.startswith("trained on\n")
    assert len(warnings(done.stderr)) == 1
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2


def test_a_service_that_dies_is_one_warning(server: Server, start: Start, tmp_path: Path) -> None:
    done = start(server.url, 1, 2, kills=True)
    assert (done.returncode, done.stdout) == (0, "trained on\n")
    assert len(warnings(done.stderr)) == 1
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3


def test_nobody_is_asked_for_a_key(server: Server, start: Start) -> None:
    leader, terminal = pty.openpty()
    done = start(server.url, 1, key=False, stdin=terminal, stderr=terminal)
    text = os.read(leader, 10_000).decode()
    assert (done.returncode, done.stdout) == (0, "trained on\n")
    (warning,) = warnings(text)
    assert "wandb login" in warning
