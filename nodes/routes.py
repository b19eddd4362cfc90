"""The HTTP routes: what runs there are, one run's history, and stopping one. Never a path in."""
import asyncio
import json

from aiohttp import web
from pydantic import ValidationError
from server import PromptServer

from ..trainer.past_runs import Summary
from ..trainer.typed import Model
from .asked import read_workflow
from .paths import PathError, run_folder
from .runs import ACTIVE, Run, find_run, history_of, listed_runs

_MOST_LISTED = 200


class _StopBody(Model):
    save: bool = True


def add_routes() -> None:
    """Register with ComfyUI's server; it serves each under /api as well."""
    routes = PromptServer.instance.routes

    @routes.get("/lora_loom/runs")
    async def runs(request: web.Request) -> web.Response:
        most = request.query.get("limit", str(_MOST_LISTED))
        if not (most.isdecimal() and 0 < int(most) < 1_000_000):
            return _error(400, "limit must be a number from 1 on")
        return _json(await asyncio.to_thread(_list, int(most)))

    @routes.get("/lora_loom/runs/{id}")
    async def one_run(request: web.Request) -> web.Response:
        body = await asyncio.to_thread(_whole, request.match_info["id"])
        return _json(body) if body else _error(404, "there is no such run")

    @routes.post("/lora_loom/runs/{id}/stop")
    async def stop(request: web.Request) -> web.Response:
        run = await asyncio.to_thread(_found, request.match_info["id"])
        if run is None:
            return _error(404, "there is no such run")
        if request.content_type != "application/json":
            return _error(415, "the body must be JSON")
        try:
            body = _StopBody.model_validate_json(await request.read())
        except ValidationError as error:
            return _error(400, f"the body is wrong: {error.errors()[0]['msg']}")
        if not isinstance(run, Run) or run.state not in ACTIVE:
            return _error(409, f"the run is {run.state}")
        run.stop("adapter" if body.save else "nothing")
        return web.json_response({"stopping": True})


def _list(most: int) -> str:
    found, total = listed_runs(most)
    return f'{{"runs": [{", ".join(run.model_dump_json() for run in found)}], "total": {total}}}'


def _found(id: str) -> Run | Summary | None:
    try:
        return find_run(id)
    except PathError:
        return None


def _whole(id: str) -> str:
    """A run with all that it has told; empty where there is none. One event after the other, so that no long work holds up the event loop."""
    run = _found(id)
    if run is None:
        return ""
    told = history_of(run)
    summary = run.summary() if isinstance(run, Run) else run
    events = [event.model_dump_json() for event in [*told.events, *filter(None, [told.progress])]]
    rest = {"curve": told.curve(), "workflow": read_workflow(run_folder(id))}
    return f'{{"run": {summary.model_dump_json()}, "events": [{", ".join(events)}], {json.dumps(rest)[1:]}'


def _json(body: str) -> web.Response:
    return web.Response(text=body, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
