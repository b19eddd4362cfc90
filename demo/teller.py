"""What the demo's command says while its graph runs."""
import sys
from typing import Any, Self

from graphs import COMPARING
from tqdm import tqdm


class Teller:
    """Names each stage and counts its steps; `with_times`: tells what a stage should take. A bar that is not full is left as it stands."""

    def __init__(self, with_times: bool) -> None:
        self._with_times = with_times
        self._bar: Any = None
        self._phase = ""
        self._done = self._total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def tell(self, message: dict[str, Any]) -> None:
        """Say what a message of ComfyUI's websocket means."""
        kind, data = message["type"], message["data"]
        if kind == "lora_loom.run":
            self._tell_of_training(data["event"])
        elif kind == "executing" and data["node"] == COMPARING:
            self._close()
            if not self._total:
                print("The LoRA is trained already: its run is found again")
            self._stage("Drawing the grid", "1 minute")
        elif kind == "progress" and data["node"] == COMPARING:
            self._count(data["value"], data["max"])

    def _tell_of_training(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "started":
            self._done, self._total = event["resumed_from"], event["total_steps"]
            if self._done:
                print(f"Going on with a LoRA that an earlier demo has trained for {self._done} of {self._total} steps", flush=True)
            else:
                self._stage(f"Training a LoRA, {self._total} steps", "3 minutes")
        elif kind == "phase" and self._total:
            self._tell_of_phase(event["name"])
        elif kind == "progress":
            self._done = event["step"]
            self._count(event["step"], event["total"], loss=f"{sum(event['losses']) / len(event['losses']):.4f}")
        elif kind == "warning":
            tqdm.write(f"  warning: {event['message']}", file=sys.stdout)

    def _tell_of_phase(self, name: str) -> None:
        if name == "training":
            # The bar's clock starts here: what was loaded and encoded before says nothing about the steps to come.
            self._count(self._done, self._total)
        elif name != self._phase:
            self._close()
            print(f"  {name}", flush=True)
        self._phase = name

    def _stage(self, what: str, time: str) -> None:
        print(f"{what} (about {time})" if self._with_times else what, flush=True)

    def _count(self, done: int, total: int, **told: str) -> None:
        if self._bar is None:
            # A log file gets a line now and then, a terminal sees every step.
            seconds = 0.1 if sys.stdout.isatty() else 15
            self._bar = tqdm(total=total, initial=done, unit="step", file=sys.stdout, mininterval=seconds, maxinterval=seconds)
        self._bar.set_postfix(told, refresh=False)
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
