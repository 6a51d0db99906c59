"""What the nodes of a workflow told last, for a browser that comes late: after a reload, or back from another tab."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

ROUTE = "/liveavatar/runs"
ENDS = ("done", "cancelled", "failed")
"""Phases of a last message."""
_WORKFLOWS, _NODES = 32, 64
"""How many are remembered, and of each."""

Message = dict[str, Any]


class LatestMessages:
    """The latest message of every node, by the id of its workflow. One thread writes, another one reads."""

    def __init__(self) -> None:
        self._workflows: OrderedDict[str, OrderedDict[str, Message]] = OrderedDict()

    def put(self, workflow: str, message: Message) -> None:
        """A node told something; numbers that it leaves out are those of its run's message before."""
        nodes = self._workflows.setdefault(workflow, OrderedDict())
        before = nodes.pop(message["node"], None)
        if before is not None and before["phase"] not in ENDS:
            message = before | message
        if message["phase"] in ENDS:
            message = {name: value for name, value in message.items() if name != "preview"}  # the file is gone
        nodes[message["node"]] = message
        self._workflows.move_to_end(workflow)
        _forget(nodes, _NODES)
        _forget(self._workflows, _WORKFLOWS)

    def of(self, workflow: str) -> list[Message]:
        """The latest message of each node of a workflow."""
        return list(self._workflows.get(workflow, {}).values())


def _forget(latest: OrderedDict[str, Any], most: int) -> None:
    while len(latest) > most:
        latest.popitem(last=False)


latest_messages = LatestMessages()
"""Of this server."""


def workflow_of(running: list[Any], prompt_id: str) -> str | None:
    """The id of the workflow that a running prompt was made from; None of a prompt that no browser has queued.

    Args:
        running: core's list of running prompts: number, id, graph, extra data and more of each.
        prompt_id: of the prompt.
    """
    for item in running:
        if item[1] == prompt_id and len(item) > 3 and isinstance(item[3], dict):
            workflow = (item[3].get("extra_pnginfo") or {}).get("workflow")
            found = workflow.get("id") if isinstance(workflow, dict) else None
            return found if isinstance(found, str) else None
    return None


def register(routes: Any) -> None:
    """Let browsers ask."""
    from aiohttp import web

    @routes.get(ROUTE)
    async def runs(request: web.Request) -> web.Response:
        return web.json_response(latest_messages.of(request.query.get("workflow", "")))
