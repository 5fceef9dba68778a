"""The clients of the model server, and the server's process as its owner sees it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cafe_kit.errors import CafeError

from pipeline.generator import Generator, ModelServer, Scorer, _stream
from tests.tiny_llama import write_adapter, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    write_model(folder / "tiny")
    write_adapter(folder / "adapters" / "a", seed=1)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ModelServer]:
    with ModelServer(folder / "tiny", adapters=folder / "adapters", dtype="float32", threads=1) as server:
        yield server


# -- against our own server --------------------------------------------------------------------------------------------


def test_texts_come_back_in_order_and_finished_batches_are_progress(server: ModelServer) -> None:
    generator = server.generator()
    generator.check()
    prompts = [f"{'long ' * (i % 7)}{i}" for i in range(150)]
    seen: list[tuple[int, int]] = []
    texts = generator.complete(prompts, max_tokens=3, temperature=0.0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 150), (128, 150), (150, 150)]
    some = [0, 6, 77, 149]
    assert [texts[i] for i in some] == generator.complete([prompts[i] for i in some], max_tokens=3, temperature=0.0)
    assert generator.complete([], max_tokens=3) == []


def test_the_seed_decides(server: ModelServer) -> None:
    generator = server.generator()

    def ask(seed: int) -> list[str]:
        return generator.complete(["same"] * 70, max_tokens=10, seed=seed)

    first = ask(1)
    assert first == ask(1)
    assert len({*first, *ask(2)}) == 140, "no two texts share a random stream, within a request, between requests, between calls"


def test_streams_of_neighbouring_seeds_and_rows_are_apart() -> None:
    assert len({_stream(seed, row) for seed in range(100) for row in range(100)}) == 10_000
    assert 0 <= min(_stream(seed, 0) for seed in range(1000)) <= max(_stream(seed, 0) for seed in range(1000)) < 2**31


def test_adapter_by_name(server: ModelServer, folder: Path) -> None:
    scorer = server.scorer()
    scorer.load_adapter("a", folder / "adapters" / "a")
    assert server.generator().models() == ["tiny", "a"]
    prompts, options = ["one", "two", "three"], [" x", " yz"]
    base, adapted = (scorer.label_logprobs(model, prompts, options) for model in ("tiny", "a"))
    assert base.shape == (3, 2) and np.abs(base - adapted).max() > 0.01
    texts = [server.generator(model).complete(["x"], max_tokens=20, seed=3)[0] for model in ("tiny", "a")]
    assert texts[0] != texts[1]
    losses, tokens = scorer.answer_losses("a", [("one", " x"), ("two", " yz")])
    assert losses.shape == (2,) and tokens.tolist() == [3, 4]  # each character and the end of text
    with pytest.raises(CafeError, match="CAFE-508"):
        scorer.load_adapter("b", folder)
    scorer.unload_adapter("a")
    with pytest.raises(CafeError, match="CAFE-503"):
        scorer.label_logprobs("a", prompts, options)


def test_what_the_check_finds(server: ModelServer) -> None:
    for generator, code, word in (
        (Generator(server.base_url, "wrong" * 8, "tiny"), "CAFE-502", "key"),
        (Generator(server.base_url, server.api_key, "huge"), "CAFE-503", "tiny"),
        (Generator("http://127.0.0.1:9/v1", "x", "tiny"), "CAFE-501", "reached"),
    ):
        with pytest.raises(CafeError, match=word) as found:
            generator.check()
        assert found.value.code == code
    assert Generator(server.base_url.removesuffix("/v1"), server.api_key, "tiny").models(), "the address without /v1 will do"


def test_our_servers_refusal_arrives_in_its_words(server: ModelServer) -> None:
    with pytest.raises(CafeError, match="do not fit") as refused:
        server.generator().complete(["x" * 4096], max_tokens=10)
    assert refused.value.code == "CAFE-509"


# -- against another server --------------------------------------------------------------------------------------------


class _Other(BaseHTTPRequestHandler):
    """A few lines of another OpenAI server: one text for each prompt, made of the prompt and the seed."""

    texts: Any = staticmethod(lambda prompt, seed: f"{prompt}/{seed}")
    status = 200
    requests: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._say({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}, 200)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).requests.append(asked)
        texts = [self.texts(prompt, asked["seed"]) for prompt in asked["prompt"]]
        choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts) if text is not None]
        self._say({"id": "x", "object": "text_completion", "choices": choices[::-1]}, self.status)

    def _say(self, body: dict[str, Any], status: int) -> None:
        self._send(json.dumps(body).encode(), status, "application/json")

    def _send(self, data: bytes, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def other() -> Iterator[tuple[type[_Other], Generator]]:
    handler = type("Handler", (_Other,), {"requests": []})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield handler, Generator(f"http://127.0.0.1:{listening.server_port}/v1", "", "m")
    listening.shutdown()
    listening.server_close()


def test_another_server_gets_one_prompt_and_one_seed_at_a_time(other: tuple[type[_Other], Generator]) -> None:
    handler, generator = other
    generator.check()
    handler.requests.clear()
    texts = generator.complete(["same"] * 100, max_tokens=3, seed=7)
    assert len(set(texts)) == 100
    assert texts == generator.complete(["same"] * 100, max_tokens=3, seed=7)
    assert all(len(request["prompt"]) == 1 for request in handler.requests)


def test_fewer_texts_than_asked_for_and_empty_ones(other: tuple[type[_Other], Generator]) -> None:
    handler, generator = other
    handler.texts = staticmethod(lambda prompt, seed: None)
    with pytest.raises(CafeError, match="CAFE-504"):
        generator.complete(["x"], max_tokens=3)
    handler.texts = staticmethod(lambda prompt, seed: "")
    with pytest.raises(CafeError, match="CAFE-504"):
        generator.check()


def test_anothers_error_text_is_not_passed_on(other: tuple[type[_Other], Generator]) -> None:
    handler, generator = other
    handler.status = 422
    with pytest.raises(CafeError) as refused:
        generator.complete(["a secret"], max_tokens=3)
    assert refused.value.code == "CAFE-509" and "secret" not in str(refused.value)


@pytest.mark.parametrize(("kind", "data"), [("text/html", b"<html>"), ("application/json", b"{"), ("application/json", b"[]")])
def test_an_address_where_something_else_answers(other: tuple[type[_Other], Generator], kind: str, data: bytes) -> None:
    handler, generator = other
    handler.do_GET = lambda self: self._send(data, 200, kind)
    with pytest.raises(CafeError, match="does not speak") as found:
        generator.check()
    assert found.value.code == "CAFE-501"


def test_a_failing_progress_bar_ends_the_work(other: tuple[type[_Other], Generator]) -> None:
    handler, generator = other

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.complete(["x"] * 1000, max_tokens=3, progress=stop)
    assert len(handler.requests) < 1000


# -- the process -------------------------------------------------------------------------------------------------------


def test_a_killed_server_is_told_as_such(folder: Path) -> None:
    made: list[ModelServer] = []
    starter = threading.Thread(target=lambda: made.append(ModelServer(folder / "tiny", threads=1)) or made[0].start())
    starter.start()
    starter.join(120)  # a server outlives the thread that started it
    generator = made[0].generator()
    assert generator.complete(["x"], max_tokens=2)
    os.kill(made[0].pid, signal.SIGKILL)
    with pytest.raises(CafeError, match="CAFE-506"):
        generator.complete(["a secret"], max_tokens=2)
    made[0].stop()
    assert made[0].died() is None, "who was stopped has not died"


def test_starts_that_fail_say_why(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CafeError, match="CAFE-507"):
            ModelServer(folder / "tiny", port=taken.getsockname()[1]).start()
    with pytest.raises(CafeError, match="CAFE-421"):
        ModelServer(tmp_path, threads=1).start()
    with pytest.raises(CafeError, match="CAFE-505"):
        ModelServer(folder / "tiny", start_timeout_s=0.01).start()


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert Scorer(server.base_url, server.api_key).label_logprobs("tiny", ["x"], [" y"]).shape == (1, 1)
