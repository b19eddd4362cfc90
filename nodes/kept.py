"""What nodes keep from one execution to the next, so that a changed weight reads and computes nothing again.

ComfyUI drops its own results of nodes that are not in the prompt; what is kept here goes with them.
"""
from typing import Any, ClassVar, Generic, TypeVar

Thing = TypeVar("Thing")
_MOST = 16


class Kept(Generic[Thing]):
    """Something by node, of the latest 16 nodes."""

    _all: ClassVar[list["Kept[Any]"]] = []

    def __init__(self) -> None:
        self._of: dict[str, Thing] = {}
        self._all.append(self)

    def get(self, node: str) -> Thing | None:
        """What was put for the node."""
        return self._of.get(node)

    def values(self) -> list[Thing]:
        """What was put for all nodes."""
        return list(self._of.values())

    def put(self, node: str, thing: Thing) -> None:
        """Keep it in the place of what was there. `node`: the node's id, which a word after a space may follow."""
        self._of.pop(node, None)
        self._of[node] = thing
        for old in list(self._of)[:-_MOST]:
            del self._of[old]

    def drop(self, node: str) -> None:
        """Keep nothing for the node."""
        self._of.pop(node, None)

    @classmethod
    def drop_others(cls, hidden: Any) -> None:
        """Keep nothing, of any kind, for nodes that are not in the prompt that runs. `hidden`: what the node that runs is given, with its prompt."""
        prompt = hidden.prompt
        for kept in cls._all if prompt else ():
            for node in [node for node in kept._of if node.partition(" ")[0] not in prompt]:
                kept.drop(node)
