"""A ComfyUI server as a child process, and the few requests that a client of its API makes. The demo and the tests use it."""
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

PACK = Path(__file__).resolve().parent.parent
_KEEPER = Path(__file__).resolve().parent / "keeper.py"
_START_SECONDS = 120.0
# Whatever proxy the environment names, this server is on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """The server answered with an error; `body` is its JSON."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {json.dumps(body)}")
        self.status, self.body = status, body


class Server:
    """One server process on a base directory of its own (models, input, output, custom_nodes with this pack); see `start`."""

    def __init__(self, comfyui: Path, base: Path, port: int = 0, python: str = sys.executable) -> None:
        """`port`: the one to take if it is free; another if it is not."""
        self.comfyui, self.base, self.python = comfyui.resolve(), base.resolve(), python
        self.port = _free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, **environment: str) -> "Server":
        """Start ComfyUI with `options` on its command line and wait until it answers; it ends with this process, however that ends.

        Raises RuntimeError with its last words.
        """
        for folder in ("models", "input", "output", "custom_nodes"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / "lora-loom"
        if not (link.exists() and link.samefile(PACK)):
            link.unlink(missing_ok=True)  # of a place where this folder was before
            link_folder(link, PACK)
        command = [sys.executable, str(_KEEPER), self.python, "main.py", "--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--disable-auto-launch", "--database-url", f"sqlite:///{self.base / 'comfy.db'}", *options]
        # Ctrl-C in a terminal is for this process, which then stops the other.
        group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x00000200}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.comfyui, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **environment}, **group
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI did not start:\n{self.last_words()}")
            try:
                self.get("/system_stats")
                return self
            except OSError:
                time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer within {_START_SECONDS:.0f} s:\n{self.last_words()}")

    @property
    def pid(self) -> int:
        """ComfyUI's process id; `process` is its keeper's. Raises RuntimeError if it does not run."""
        children = psutil.Process(self.process.pid).children() if self.process and self.process.poll() is None else []
        if not children:
            raise RuntimeError("ComfyUI does not run")
        return int(children[0].pid)

    def stop(self) -> None:
        """End the server and whatever it has started, and wait; a training saves its state first."""
        if self.process and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()

    def last_words(self, characters: int = 3000) -> str:
        """The end of the server's log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def get(self, path: str) -> Any:
        """GET as JSON."""
        with _OPENER.open(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """POST JSON; raises Refused."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with _OPENER.open(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, json.loads(error.read() or b"null")) from error
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any], client: str = "") -> str:
        """Queue a graph in API format; gives its id. `client`: the websocket that is told of it."""
        body = {"prompt": prompt, **({"client_id": client} if client else {})}
        return self.post("/prompt", body)["prompt_id"]

    async def follow(self, prompt: dict[str, Any], client: str = "lora-loom-demo") -> AsyncIterator[dict[str, Any]]:
        """Queue a graph and give what `/ws` says, as {type, data}, until the graph is done; pictures are left out.

        Raises RuntimeError if the server ends before.
        """
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket_:
            prompt_id = self.queue(prompt, client)
            async for message in socket_:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                told = json.loads(message.data)
                yield told
                ended = told["type"] in ("execution_success", "execution_error", "execution_interrupted")
                if ended and told["data"].get("prompt_id") == prompt_id:
                    return
        raise RuntimeError(f"ComfyUI ended before the graph was done:\n{self.last_words()}")

    def wait(self, prompt_id: str, timeout: float = 300) -> dict[str, Any]:
        """The history entry once the prompt is done."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry
            time.sleep(0.2)
        raise TimeoutError(f"prompt not done in {timeout} s; server log:\n{self.last_words()}")

    def run(self, prompt: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
        """Queue, wait, and expect success; gives the outputs by node id. Raises RuntimeError with the node's message."""
        entry = self.wait(self.queue(prompt), timeout)
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(error_of(entry))
        return entry["outputs"]

    def file(self, saved: dict[str, str]) -> Path:
        """The path of a picture as the history names it."""
        return self.base / saved["type"] / saved["subfolder"] / saved["filename"]


def error_of(entry: dict[str, Any]) -> str:
    """The message of the node that failed."""
    for kind, message in entry["status"]["messages"]:
        if kind in ("execution_error", "execution_interrupted"):
            return str(message.get("exception_message", kind))
    return ""


def link_folder(link: Path, target: Path) -> None:
    """Make `link` lead to the folder `target`: what is edited there is what runs here."""
    if os.name == "nt":  # a junction: symbolic links need a privilege there
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, stdout=subprocess.DEVNULL)
    else:
        link.symlink_to(target, target_is_directory=True)


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
