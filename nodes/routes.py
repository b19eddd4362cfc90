"""The HTTP routes: what runs there are, one run's history, and stopping one. Never a path in."""
import asyncio
from typing import Any

from aiohttp import web
from pydantic import ValidationError
from server import PromptServer

from ..trainer.typed import Model
from .asked import read_workflow
from .runs import RUNS


class _StopBody(Model):
    save: bool = True


def add_routes() -> None:
    """Register with ComfyUI's server; it serves each under /api as well."""
    routes = PromptServer.instance.routes

    @routes.get("/lora_loom/runs")
    async def runs(_: web.Request) -> web.Response:
        newest_first = sorted(RUNS.values(), key=lambda run: run.started, reverse=True)
        return web.json_response({"runs": [run.summary() for run in newest_first]})

    @routes.get("/lora_loom/runs/{id}")
    async def one_run(request: web.Request) -> web.Response:
        run = RUNS.get(request.match_info["id"])
        if run is None:
            return _error(404, "there is no such run in this server")
        told = run.history
        events: list[Any] = [event.model_dump(mode="json") for event in told.events]
        if told.progress:
            events.append(told.progress.model_dump(mode="json"))
        workflow = await asyncio.to_thread(read_workflow, run.folder)
        return web.json_response({"run": run.summary(), "events": events, "curve": told.curve(), "workflow": workflow})

    @routes.post("/lora_loom/runs/{id}/stop")
    async def stop(request: web.Request) -> web.Response:
        run = RUNS.get(request.match_info["id"])
        if run is None:
            return _error(404, "there is no such run in this server")
        if request.content_type != "application/json":
            return _error(415, "the body must be JSON")
        try:
            body = _StopBody.model_validate_json(await request.read())
        except ValidationError as error:
            return _error(400, f"the body is wrong: {error.errors()[0]['msg']}")
        if run.state not in ("running", "stopping"):
            return _error(409, f"the run is {run.state}")
        run.stop("adapter" if body.save else "nothing")
        return web.json_response({"stopping": True})


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
