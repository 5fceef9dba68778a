"""Text and scores out of a language model, over HTTP.

Knows: the OpenAI HTTP API, as vLLM and our own model server speak it, and how our server process is started, watched and
stopped. Does not know what is asked for or why, and never loads a model: torch lives in the server's process.
Prompts and answers are never logged and stand in no error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from cafe_kit.errors import CafeError

from pipeline.endpoint import OURS, Endpoint, Obituary

Progress = Callable[[int, int], None]  # (done, total)
_ROWS = 64  # prompts in one request to our server, which computes them as one batch
_IN_FLIGHT = 64  # requests at a time to another server, which makes batches of them itself


class Generator:
    """Completions from one model of one server.

    Args:
        base_url: of our server or of any other that speaks the OpenAI HTTP API, with or without ``/v1``.
        api_key: its bearer key.
        model: a name from ``models()``: the base model or an adapter that the server holds.
        obituary: says why the server is gone, where somebody knows (``ModelServer``).
    """

    def __init__(self, base_url: str, api_key: str, model: str, obituary: Obituary = lambda: None) -> None:
        self.model = model
        self._server = Endpoint(base_url, api_key, obituary)
        self._ours: bool | None = None

    def models(self) -> list[str]:
        """The names that the server offers."""
        listed = self._server.get("/v1/models").get("data", [])
        self._ours = any(entry.get("owned_by") == OURS for entry in listed)
        return [str(entry["id"]) for entry in listed]

    def check(self) -> None:
        """Ask for a few tokens, as a run will.

        Raises:
            CafeError: CAFE-501 not reachable, 502 key refused, 503 no such model, 504 nothing comes out.
        """
        offered = self.models()
        if self.model not in offered:
            raise CafeError(
                "CAFE-503",
                f"The model server at {self._server.url} has no model '{self.model}'; it offers {', '.join(offered) or 'none'}.",
                "Take one of these names.",
            )
        if not any(self.complete(["One, two, three,", "The sun rises in the"], max_tokens=4, temperature=0.0, top_p=1.0, stop=(), seed=0)):
            raise CafeError("CAFE-504", f"The model '{self.model}' answers with empty texts.", "Try another base model, or another server.")

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[str]:
        """One continuation for each prompt, in their order.

        Prompts go out sorted by length, so that what is computed together is of one length. Each request draws from a
        stream of its own: a server that gives every prompt of a request the same seed (vLLM) gets one prompt at a time.

        Args:
            max_tokens: at most so many new tokens each.
            temperature: 0 is greedy.
            stop: texts before which a continuation ends.
            seed: with the same server and prompts, the same texts again (as far as the server keeps that promise).
            progress: is told (texts done, texts asked for) after each request.

        Raises:
            CafeError: CAFE-501 to 509.
        """
        if self._ours is None:
            self.models()
        size = _ROWS if self._ours else 1
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": list(stop) or None}
        texts = [""] * len(prompts)
        done = 0
        pool = ThreadPoolExecutor(max_workers=1 if self._ours else _IN_FLIGHT)
        try:
            asked = {pool.submit(self._request, [prompts[i] for i in chunk], settings, _stream(seed, chunk[0])): chunk for chunk in chunks}
            for answer in as_completed(asked):
                for i, text in zip(asked[answer], answer.result(), strict=True):
                    texts[i] = text
                done += len(asked[answer])
                if progress:
                    progress(done, len(prompts))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return texts

    def _request(self, prompts: list[str], settings: dict[str, Any], seed: int) -> list[str]:
        answer = self._server.post("/v1/completions", {"model": self.model, "prompt": prompts, "seed": seed, **settings})
        choices = sorted(answer.get("choices", []), key=lambda choice: choice["index"])
        if len(choices) != len(prompts):
            raise CafeError(
                "CAFE-504",
                f"The model server was asked for {len(prompts)} texts and gave {len(choices)}.",
                "Look into its log; start it again.",
            )
        return [str(choice["text"]) for choice in choices]


def _stream(seed: int, row: int) -> int:
    """A seed for one request, below 2**31: requests of one call, or of calls with neighbouring seeds, never share a stream."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:4], "big") >> 1


class Scorer:
    """Log-probabilities and losses from our model server (another server cannot score a label list in one request)."""

    def __init__(self, base_url: str, api_key: str, obituary: Obituary = lambda: None) -> None:
        self._server = Endpoint(base_url, api_key, obituary)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Serve the PEFT folder as model ``name``; a name stays with its weights. CAFE-508 if it cannot be served."""
        self._server.tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(Path(folder).resolve())})

    def unload_adapter(self, name: str) -> None:
        """Forget the adapter. CAFE-503 if there is none of this name."""
        self._server.tell("/v1/unload_lora_adapter", {"lora_name": name})

    def label_logprobs(self, model: str, prompts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        """(n, k) float64: total natural log-probability of each of k options directly after each of n prompts."""
        body = {"model": model, "prompts": list(prompts), "options": list(options)}
        table = np.asarray(self._server.post("/cafe/label_logprobs", body)["logprobs"], dtype=np.float64)
        return table.reshape(len(prompts), len(options))

    def answer_losses(self, model: str, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """For each (prompt, answer): summed negative log-likelihood of answer and end-of-text (n,) in nats; tokens (n,)."""
        answer = self._server.post("/cafe/answer_losses", {"model": model, "pairs": [list(pair) for pair in pairs]})
        return np.asarray(answer["losses"], dtype=np.float64), np.asarray(answer["tokens"], dtype=np.int64)


class ModelServer:
    """Our model server as a process of its own, for the time of a ``with`` block.

    It listens on loopback with a random key and ends with this process, however this one ends. Starting blocks until
    the model is loaded.

    Args:
        folder: base model, a Hugging Face folder with safetensors.
        adapters: the folder below which adapters may be loaded; None: none may.
        threads: for torch; 0: its own choice.
        port: 0: any free one.

    Raises:
        CafeError: 431-449 the model cannot be loaded, 505 no start, 507 port taken.
    """

    def __init__(
        self,
        folder: Path,
        *,
        adapters: Path | None = None,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        threads: int = 0,
        port: int = 0,
        start_timeout_s: float = 300.0,
    ) -> None:
        command = [sys.executable, "-m", "pipeline.model_server", "--model", str(folder), "--dtype", dtype]
        command += ["--threads", str(threads), "--port", str(port)]
        self._command = command + (["--adapters", str(adapters)] if adapters else [])
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._first_line = ""
        self._last_class = ""
        self._stopped = False
        self.api_key = secrets.token_urlsafe(32)
        self.base_url = ""
        self.model = ""

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def generator(self, model: str = "") -> Generator:
        """For the base model, or for an adapter that was loaded under this name."""
        return Generator(self.base_url, self.api_key, model or self.model, self.died)

    def scorer(self) -> Scorer:
        return Scorer(self.base_url, self.api_key, self.died)

    def start(self) -> None:
        """Start the process and wait until it serves."""
        threading.Thread(target=self._keep, name="model-server", daemon=True).start()
        in_time = self._ready.wait(self._start_timeout_s)
        told = json.loads(self._first_line) if self._first_line else {}
        if "port" in told:
            self.base_url, self.model = f"http://127.0.0.1:{told['port']}/v1", told["model"]
            return
        self.stop()
        if "error" in told:
            raise CafeError(**told["error"])
        why = f"ended ({self._last_class or 'no reason given'})" if in_time else f"was not ready within {self._start_timeout_s:.0f} s"
        raise CafeError("CAFE-505", f"The model server {why}.", "Free memory, or take a smaller model; cafe doctor checks both.")

    def stop(self) -> None:
        """End the process; twice is no harm."""
        self._stopped = True
        if self._process is None or self._process.poll() is not None:
            return
        assert self._process.stdin
        self._process.stdin.close()  # at the end of its input it ends
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of the server's process; 0 before the start."""
        return self._process.pid if self._process else 0

    def died(self) -> CafeError | None:
        """Why the process is gone, though nobody stopped it; None while it runs."""
        if self._stopped or self._process is None or self._process.poll() is None:
            return None
        why = self._last_class or f"exit status {self._process.returncode}"
        hint = "The machine may have run out of memory; free some and resume." if self._process.returncode == -9 else "Resume the run."
        return CafeError("CAFE-506", f"The model server died ({why}).", hint)

    def _keep(self) -> None:
        """Start, listen to and bury the process, all in one thread: the kernel ends the child when the *thread* that
        started it ends (PR_SET_PDEATHSIG), so this thread has to live as long as the child."""
        here = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH")) if part)
        # Threads that wait must sleep: spinning, two of them beside any other work run at a tenth of one thread's speed.
        quiet = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        environment = quiet | {"CAFE_MODEL_SERVER_KEY": self.api_key, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
            assert self._process.stdout and self._process.stderr
            chatter = threading.Thread(target=self._read_chatter, args=(self._process.stderr,), daemon=True)
            chatter.start()
            self._first_line = self._process.stdout.readline()
            if not self._first_line:
                chatter.join(5)
        finally:
            self._ready.set()
        self._process.wait()

    def _read_chatter(self, lines: Any) -> None:
        """Keep nothing of the library chatter but the class of the last exception: a message may repeat a prompt."""
        for line in lines:
            if found := re.match(r"([\w.]+(?:Error|Exception|Interrupt))\b", line):
                self._last_class = found[1]
