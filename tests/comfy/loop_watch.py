"""A custom node that tells which folders and files ComfyUI's event loop has looked into itself since it was asked before: GET /loop_watch."""
import sys
import threading

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
_SEEN = []


def _watch(event, arguments):
    if event in ("os.scandir", "os.listdir", "open") and threading.current_thread() is threading.main_thread():
        _SEEN.append(str(arguments[0]))


sys.addaudithook(_watch)


@PromptServer.instance.routes.get("/loop_watch")
async def loop_watch(_):
    seen = list(_SEEN)
    _SEEN.clear()
    return web.json_response(seen)
