"""Medians, ratios and goals of what was measured, as JSON data and as lines to print."""
import statistics
from collections.abc import Callable
from typing import Any

from peers import Measured

PEERS = {"ours": "LoomTrainLoRA", "bare": "bare diffusers + peft loop", "core": "core's TrainLoraNode"}
Runs = dict[str, list[Measured]]


def summary(runs: Runs) -> dict[str, Any]:
    """One size: each peer's medians over its runs, and ours against the others.

    A ratio is the median over the repeats of ours divided by the peer's run of the same repeat, its neighbour in time.
    """
    return {
        "peers": {peer: _medians(measured) for peer, measured in runs.items()},
        "ours_over": {peer: _ratios(runs["ours"], runs[peer]) for peer in runs if peer != "ours"},
    }


def goals(sizes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every goal that was measured: what, its limit, the value, and whether it is met."""
    found = []
    for name, size in sizes.items():
        bare, core, ours = size["ours_over"]["bare"], size["ours_over"]["core"], size["peers"]["ours"]
        shares = [ours["events_share"], ours["server_share"]]
        found += [
            (f"{name}: a step, ours / bare loop", 1.03, bare["seconds"]),
            (f"{name}: peak memory of the process that trains, ours / core", 1.0, core["peak"]),
            (f"{name}: peak memory with ComfyUI beside it, ours / core", 1.0, core["peak_with_server"]),
            (f"{name}: events and subprocess, share of a step", 0.01, None if None in shares else sum(shares)),
        ]
        if name == "full":
            found.append((f"{name}: a step, ours / core", 0.5, core["seconds"]))
        else:
            found.append((f"{name}: first step, ours / core", 1.5, core["first_step_seconds"]))
    return [{"goal": goal, "at_most": limit, "value": value, "met": value <= limit} for goal, limit, value in found if value is not None]


def lines(report: dict[str, Any]) -> list[str]:
    """The table."""
    wide = max(map(len, PEERS.values()))
    rows = []
    for name, size in report["sizes"].items():
        about = report["settings"]["sizes"][name]
        rows += [f"{name}, {about['resolution']} px, batch 1, fp32, {about['repeats']} runs each"]
        rows += [f"  {'':{wide}}    s/step  (low-high)       ours is   first step   peak MiB   ComfyUI beside    trained"]
        rows += [f"  {title:{wide}}" + _row(size["peers"][peer], size["ours_over"].get(peer)) for peer, title in PEERS.items()]
        phases = sorted(size["peers"]["ours"]["phases"].items(), key=lambda phase: -phase[1])
        rows += ["  ours before its first step: " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases if seconds >= 0.05), ""]
    wide = max((len(goal["goal"]) for goal in report["goals"]), default=0)
    for goal in report["goals"]:
        rows.append(f"  {goal['goal']:{wide}}  {goal['value']:7.4f}  at most {goal['at_most']:<5}  {'met' if goal['met'] else 'NOT MET'}")
    return [*rows, "", *report["differences"]]


def _row(peer: dict[str, Any], ratios: dict[str, Any] | None) -> str:
    ratio = f"{ratios['seconds']:.3f} x" if ratios else ""
    low, high = peer["seconds_low_high"]
    return (
        f"  {peer['seconds']:8.3f}  ({low:.3f}-{high:.3f}){'':3}{ratio:>9}  {peer['first_step_seconds']:9.1f} s  {_whole(peer['peak']):>9}"
        f"   {_whole(peer['server_peak']):>14}  {peer['parameters'] / 1e6:7.2f} M"
    )


def _medians(measured: list[Measured]) -> dict[str, Any]:
    seconds = [run.seconds for run in measured]
    return {
        "seconds": statistics.median(seconds),
        "seconds_low_high": [min(seconds), max(seconds)],
        "first_step_seconds": statistics.median(run.first_step_seconds for run in measured),
        "peak": _median([run.peak for run in measured]),
        "server_peak": _median([run.server_peak for run in measured]),
        "events_share": _median([run.events_share for run in measured]),
        "server_share": _median([run.server_share for run in measured]),
        "parameters": measured[0].parameters,
        "phases": {name: statistics.median(run.phases.get(name, 0.0) for run in measured) for name in measured[0].phases},
    }


def _ratios(ours: list[Measured], peer: list[Measured]) -> dict[str, float | None]:
    def of(value: Callable[[Measured], float | None]) -> float | None:
        pairs = [(value(mine), value(its)) for mine, its in zip(ours, peer, strict=True)]
        return _median([mine / its if mine is not None and its else None for mine, its in pairs])

    return {
        "seconds": of(lambda run: run.seconds),
        "first_step_seconds": of(lambda run: run.first_step_seconds),
        "peak": of(lambda run: run.peak),
        # Two peaks that need not come at the same time: never less than what the two processes have had together.
        "peak_with_server": of(lambda run: None if run.peak is None else run.peak + (run.server_peak or 0.0)),
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
