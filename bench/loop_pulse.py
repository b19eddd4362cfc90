"""A custom node for bench/listings.py: GET /loop_pulse tells for how long ComfyUI's event loop was held up at most since it was asked before."""
import asyncio
import time

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
_BEAT_SECONDS = 0.002
_longest = 0.0
_pulse = None


async def _beat():
    global _longest
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_BEAT_SECONDS)
        _longest = max(_longest, time.perf_counter() - before - _BEAT_SECONDS)


@PromptServer.instance.routes.get("/loop_pulse")
async def loop_pulse(_):
    global _longest, _pulse
    if _pulse is None:
        _pulse = asyncio.get_running_loop().create_task(_beat())
    longest, _longest = _longest, 0.0
    return web.json_response(longest)
