"""The routes of the story page refuse requests that the page never sends."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serve.pages.story import TrainingRequest, story_router

RANKING = {"prompt": "p", "answers": [1, 2], "ranks": [1, 2]}


class Trainer:
    """Accepts one request."""

    def __init__(self) -> None:
        self.given: list[TrainingRequest] = []

    async def data(self) -> dict[str, Any]:
        return {"tasks": []}

    async def state(self, visitor: str) -> dict[str, Any]:
        return {"visitor": visitor}

    async def start(self, request: TrainingRequest) -> str:
        self.given.append(request)
        return "busy" if len(self.given) > 1 else ""


@pytest.mark.anyio
async def test_a_training_is_accepted_or_refused_with_the_reason():
    app, trainer = FastAPI(), Trainer()
    app.include_router(story_router(trainer))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        request = {"visitor": "ann-12345", "rankings": [RANKING]}
        accepted = await client.post("/story/training", json=request)
        assert (accepted.status_code, accepted.json()) == (202, {"visitor": "ann-12345"})
        refused = await client.post("/story/training", json=request)
        assert (refused.status_code, refused.json()) == (409, {"detail": "busy"})
        for wrong in (
            {"visitor": "../../etc", "rankings": [RANKING]},
            {"visitor": "ann-12345", "rankings": [RANKING | {"ranks": [1]}]},
            {"visitor": "ann-12345", "rankings": [RANKING | {"answers": [1, 1]}]},
            {"visitor": "ann-12345", "rankings": [RANKING | {"ranks": [0, 1]}]},
            {"visitor": "ann-12345", "rankings": [RANKING, RANKING]},
            {"visitor": "ann-12345", "rankings": [RANKING | {"prompt": f"p{number}"} for number in range(201)]},
            {"visitor": "ann-12345", "rankings": [], "steps": 10_000},
        ):
            assert (await client.post("/story/training", json=wrong)).status_code == 422, wrong
        assert (await client.get("/story/state", params={"visitor": "x"})).status_code == 422
    assert [one.rankings[0].ranks for one in trainer.given] == [[1, 2], [1, 2]]
