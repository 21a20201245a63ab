"""The label page alone, without any model: people can rank while a stage samples, trains or waits for them."""

import uvicorn
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from rich.console import Console

from cluster.feedback import open_feedback
from cluster.ports import require_free_port
from cluster.run import RunFolder
from serve.label import label_router
from serve.listener import KEEP_ALIVE_SECONDS
from serve.page import url_host

STOP_SECONDS = 5


def serve_labels(run: RunFolder, host: str, port: int, people: int) -> None:
    """Serves the label page of a run until SIGINT or SIGTERM.

    Raises:
        UserError: the port is taken, or the database cannot be opened.
    """
    require_free_port(host, port)
    app = FastAPI(title="Triptych labels", docs_url=None, redoc_url=None, openapi_url=None)
    with open_feedback(run.feedback_url) as database:
        app.include_router(label_router(database, people))
        app.get("/")(lambda: RedirectResponse("/label"))
        console = Console(soft_wrap=True)
        console.print(f"label page at http://{url_host(host)}:{port}/label; Ctrl-C ends it")
        if not database.labellers():
            console.print(f"nobody can sign in yet: `triptych labeller add NAME --run {run.root}` gives a token")
        config = uvicorn.Config(
            app,
            host,
            port,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        uvicorn.Server(config).run()
