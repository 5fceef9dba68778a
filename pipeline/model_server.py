"""Our model server: the OpenAI HTTP API over transformers, one process, on loopback.

Knows: HTTP, keys and limits, and how this process ends with the one that started it. Does not know what is asked for, and
logs no request. Where a vLLM server is at hand, that one serves generation and chat instead.

    CAFE_MODEL_SERVER_KEY=... python -m pipeline.model_server --model FOLDER [--adapters FOLDER] [--dtype bfloat16]

One JSON line on standard output says that it serves (``port``, ``model``) or why it cannot (``error``). It ends when its
standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import hmac
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import uvicorn
from cafe_kit.errors import CafeError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline import openai_api as api
from pipeline.endpoint import OURS
from pipeline.served_model import Job, Sampling, ServedModel, Stopped, Text

_MAX_BODY = 16 * 2**20
_AT_ONCE = 4  # computations that share the model by turns; each holds an attention cache, further ones wait
_STATUS = {"CAFE-502": 401, "CAFE-503": 404, "CAFE-508": 400, "CAFE-509": 400}
T = TypeVar("T")


class Service:
    """The routes over one served model."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self._slots = anyio.CapacityLimiter(_AT_ONCE)

    async def health(self, request: Request) -> Response:
        return PlainTextResponse("")

    async def models(self, request: Request) -> Response:
        base = self.model.name
        listed = [
            {"id": name, "object": "model", "owned_by": OURS, "parent": None if name == base else base} for name in self.model.names()
        ]
        return JSONResponse({"object": "list", "data": listed})

    async def load_adapter(self, request: Request) -> Response:
        asked = api.parse(api.LoadAdapter, await request.body())
        await anyio.to_thread.run_sync(self.model.load_adapter, asked.lora_name, Path(asked.lora_path))
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        asked = api.parse(api.UnloadAdapter, await request.body())
        self.model.unload_adapter(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    async def label_logprobs(self, request: Request) -> Response:
        asked = api.parse(api.Labels, await request.body())
        table = await self._compute(request.receive, lambda job: self.model.label_logprobs(job, asked.model, asked.prompts, asked.options))
        return JSONResponse({"logprobs": table})

    async def answer_losses(self, request: Request) -> Response:
        asked = api.parse(api.Pairs, await request.body())
        pairs = [(prompt, answer) for prompt, answer in asked.pairs]
        losses, tokens = await self._compute(request.receive, lambda job: self.model.answer_losses(job, asked.model, pairs))
        return JSONResponse({"losses": losses, "tokens": tokens})

    async def completions(self, request: Request) -> Response:
        asked = api.parse(api.Completion, await request.body())
        return await self._generate(request, asked, asked.prompts, asked.sampling(16), api.CompletionShape())

    async def chat(self, request: Request) -> Response:
        asked = api.parse(api.Chat, await request.body())
        prompt = self.model.chat_prompt([message.model_dump() for message in asked.messages])
        return await self._generate(request, asked, [prompt], asked.sampling(512), api.ChatShape())

    async def _generate(self, request: Request, asked: api.Generation, prompts: list[str], how: Sampling, shape: api.Shape) -> Response:
        self.model.known(asked.model)
        answer = api.Answer(shape, asked.model, self.model.check_length(prompts, how.max_tokens))
        rows = [prompt for prompt in prompts for _ in range(asked.n)]
        if asked.stream:
            return _EventStream(self, answer, asked.model, rows, how, asked.wants_usage)
        texts = await self._compute(request.receive, lambda job: self.model.generate(job, asked.model, rows, how))
        return JSONResponse(answer.whole(texts))

    async def _compute(self, receive: Receive, work: Callable[[Job], T]) -> T:
        """``work`` in a thread when a slot is free; stopped when the client goes away."""
        job = Job(self.model.turns)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            job.stop()

        watcher = asyncio.create_task(watch())
        try:
            return await anyio.to_thread.run_sync(work, job, limiter=self._slots, abandon_on_cancel=True)
        finally:
            job.stop()
            watcher.cancel()


class _EventStream(Response):
    """Server-sent events while the text is made: one for each token, then why the texts ended."""

    def __init__(self, service: Service, answer: api.Answer, model: str, rows: list[str], how: Sampling, usage: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-store"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._service, self._answer, self._model, self._rows, self._how, self._usage = service, answer, model, rows, how, usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[bytes | None]()

        def on_piece(row: int, piece: str) -> None:
            if piece:
                loop.call_soon_threadsafe(events.put_nowait, self._answer.piece(row, piece))

        def work(job: Job) -> list[Text]:
            return self._service.model.generate(job, self._model, self._rows, self._how, on_piece)

        making = asyncio.create_task(self._service._compute(receive, work))
        making.add_done_callback(lambda _: events.put_nowait(None))
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while (data := await events.get()) is not None:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        try:
            last = self._answer.end(await making, self._usage)
        except Stopped:
            return
        except Exception as error:
            last = api.event(api.error_body(_as_cafe(error)))
        await send({"type": "http.response.body", "body": last, "more_body": False})


class _Key:
    """Middleware: whoever does not hold the key gets 401, before the body is read. ``/health`` is open and says nothing."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                refusal = CafeError("CAFE-502", "The model server refused the key.", "Send the key as a bearer token.")
                return await _refuse(refusal)(scope, receive, send)
        await self._app(scope, receive, send)


def _as_cafe(error: Exception) -> CafeError:
    """An unforeseen failure by its class alone: its message may repeat a prompt."""
    if isinstance(error, CafeError):
        return error
    kind = type(error).__name__
    if isinstance(error, MemoryError) or "OutOfMemory" in kind:
        return CafeError("CAFE-510", "The model server ran out of memory.", "Ask for fewer or shorter texts, or free memory.")
    return CafeError("CAFE-510", f"The model server failed ({kind}).", "Try again; if it stays so, start the server again.")


def _refuse(error: CafeError) -> JSONResponse:
    return JSONResponse(api.error_body(error), _STATUS.get(error.code, 500))


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Stopped):
        return Response(status_code=499)  # nobody reads it
    if isinstance(error, HTTPException):
        refusal = CafeError("CAFE-509", f"The request was refused: {error.detail}.", "Correct the request.")
        return JSONResponse(api.error_body(refusal), error.status_code)
    return _refuse(_as_cafe(error))


def application(model: ServedModel, key: str, on_start: Callable[[], None]) -> Starlette:
    """The ASGI application; ``on_start`` is called when it is about to serve."""
    service = Service(model)
    routes = [
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/load_lora_adapter", service.load_adapter, methods=["POST"]),
        Route("/v1/unload_lora_adapter", service.unload_adapter, methods=["POST"]),
        Route("/cafe/label_logprobs", service.label_logprobs, methods=["POST"]),
        Route("/cafe/answer_losses", service.answer_losses, methods=["POST"]),
    ]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]), Middleware(_Key, key=key)]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        on_start()
        yield

    handlers = dict.fromkeys((CafeError, Stopped, HTTPException, Exception), _on_error)
    return Starlette(routes=routes, middleware=guards, exception_handlers=handlers, lifespan=lifespan, max_body_size=_MAX_BODY)


def end_with_parent() -> None:
    """Leave no orphan: the kernel kills this process with the one that started it, and the end of standard input ends it."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def listen(port: int) -> socket.socket:
    """A listening socket on loopback; port 0 is any free one. CAFE-507 if it is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        raise CafeError("CAFE-507", f"Port {port} cannot be used, another program has it.", "Choose another port, or 0 for any.") from None
    listener.listen(128)
    return listener


def serve(arguments: argparse.Namespace, key: str, tell: Callable[[dict[str, object]], None]) -> None:
    """Load the model and answer until the process ends."""
    from cafe_kit.base_model import BaseModel

    listener = listen(arguments.port)
    base = BaseModel.load(arguments.model, arguments.dtype, arguments.threads)
    model = ServedModel(base, arguments.model.resolve().name, arguments.adapters)
    ready = {"port": listener.getsockname()[1], "model": model.name}
    app = application(model, key, lambda: tell(ready))
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a logged exception may repeat a prompt
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.model_server", description="OpenAI HTTP API over transformers")
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal LM, safetensors")
    parser.add_argument("--adapters", type=Path, help="folder below which adapters may be loaded; default: none may")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=0, help="for torch; 0: its own choice")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0: any free one")
    arguments = parser.parse_args()
    end_with_parent()
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to standard error

    def tell(line: dict[str, object]) -> None:
        print(json.dumps(line), file=protocol, flush=True)

    key = os.environ.pop("CAFE_MODEL_SERVER_KEY", "")
    try:
        if len(key) < 16:
            raise CafeError(
                "CAFE-505", "The model server got no key.", "Set CAFE_MODEL_SERVER_KEY to a random text of 16 characters or more."
            )
        serve(arguments, key, tell)
    except CafeError as error:
        tell({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        os._exit(1)


if __name__ == "__main__":
    main()
