"""The replica's end of its connections to gateways: one task for each request."""

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial

from serve.transport.frames import FrameProtocol, Kind, encode
from serve.transport.gateway_end import Address
from serve.transport.messages import TALLY, ServedModel, Tally, Usage
from serve.transport.tls import replica_context

logger = logging.getLogger("ray.serve")


async def connect(address: Address, replica_id: bytes, models: Mapping[str, ServedModel]) -> "ReplicaConnection":
    """Connects a replica to a gateway, whose requests it answers from then on.

    Args:
        address: the gateway's address and the secret.
        replica_id: the replica's identifier.
        models: the models that answer, by name.

    Raises:
        OSError: the gateway cannot be reached, or does not prove by TLS that it belongs to the cluster.
        UserError: Ray uses TLS, and its files cannot be used.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        partial(ReplicaConnection, models), address.host, address.port, ssl=replica_context()
    )
    connection.transport.write(address.secret + replica_id)
    return connection


@dataclass(frozen=True)
class _RunningRequest:
    """A request in progress: its task, and whether the gateway takes further parts of its response."""

    task: asyncio.Task[None]
    wanted: asyncio.Event


class ReplicaConnection(FrameProtocol):
    """The replica's end of a connection."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        super().__init__()
        self._models = models
        self._work: dict[int, _RunningRequest] = {}

    async def drain(self) -> None:
        """Tells the gateway to send no further requests, and closes the connection when all are answered."""
        if not self.lost:
            self.send(0, Kind.DRAINING)
        while self._work:
            await asyncio.wait([one.task for one in self._work.values()])
        if not self.lost:
            self.close()

    def frame_received(self, number: int, kind: Kind, payload: bytes) -> None:
        if kind is Kind.REQUEST:
            tally, context = Tally(), copy_context()
            context.run(TALLY.set, tally)
            wanted = asyncio.Event()
            wanted.set()
            task = asyncio.create_task(self._answer(number, payload, wanted), context=context)
            self._work[number] = _RunningRequest(task, wanted)
            task.add_done_callback(partial(self._answered, number, tally))
        elif work := self._work.get(number):
            if kind is Kind.CANCEL:
                work.task.cancel()
            elif kind is Kind.PAUSE:
                work.wanted.clear()
            elif kind is Kind.RESUME:
                work.wanted.set()

    async def _answer(self, number: int, payload: bytes, wanted: asyncio.Event) -> None:
        model, endpoint, body = json.loads(payload)
        async with aclosing(self._models[model].answer(endpoint, body)) as parts:
            async for part in parts:
                await wanted.wait()
                await self.writable()
                self.send(number, *encode(part))

    def _answered(self, number: int, tally: Tally, task: asyncio.Task[None]) -> None:
        del self._work[number]
        if self.lost:
            return
        if not task.cancelled() and (failure := task.exception()):
            logger.error("a request failed", exc_info=failure)
            self.send(number, Kind.FAILED)
            return
        # vLLM answers a cancelled request with an error of its own: the task itself may have ended well.
        if task.cancelling():
            self.send(number, *encode(Usage(tally.prompt_tokens, tally.completion_tokens)))
        self.send(number, Kind.END)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for work in self._work.values():
            work.task.cancel()
