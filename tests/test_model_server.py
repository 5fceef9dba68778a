"""The model server as a process, over real HTTP, with a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from cafe_kit.errors import CafeError

from pipeline import openai_api
from pipeline.generator import ModelServer
from pipeline.served_model import Job, Sampling, ServedModel, Stopped, Turns, read_adapter
from tests.tiny_llama import write_adapter, write_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model ``tiny`` and the adapters ``adapters/a`` and ``adapters/b``."""
    folder = tmp_path_factory.mktemp("served")
    write_model(folder / "tiny")
    write_adapter(folder / "adapters" / "a", seed=1)
    write_adapter(folder / "adapters" / "b", seed=2)
    write_adapter(folder / "outside", seed=3)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ModelServer]:
    with ModelServer(folder / "tiny", adapters=folder / "adapters", dtype="float32", threads=1) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def raw(server: ModelServer) -> Iterator[httpx.Client]:
    """Plain HTTP with the right key."""
    headers = {"Authorization": f"Bearer {server.api_key}"}
    with httpx.Client(base_url=server.base_url.removesuffix("/v1"), headers=headers, timeout=60) as client:
        yield client


# -- completions and chats ---------------------------------------------------------------------------------------------


def test_completions_in_order_with_n_and_real_usage(client: openai.OpenAI) -> None:
    prompts = ["a long prompt that comes first", "short", "something between"]
    answer = client.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=5, seed=1)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert all(len(choice.text) == 5 and choice.finish_reason == "length" for choice in answer.choices)
    assert answer.usage and answer.usage.completion_tokens == 30
    assert answer.usage.prompt_tokens == sum(len(prompt) for prompt in prompts)  # one token a character
    greedy = [client.completions.create(model="tiny", prompt=p, max_tokens=5, temperature=0).choices[0].text for p in prompts]
    together = client.completions.create(model="tiny", prompt=prompts, max_tokens=5, temperature=0).choices
    assert [choice.text for choice in together] == greedy


def test_seed_repeats_and_its_absence_does_not(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> list[str]:
        answer = client.completions.create(model="tiny", prompt=["once"] * 4, max_tokens=12, **({} if seed is None else {"seed": seed}))
        return [choice.text for choice in answer.choices]

    assert ask(5) == ask(5) != ask(6)
    assert ask(None) != ask(None)
    assert len(set(ask(5))) == 4, "the same prompt in one request must not give the same text"


def test_stop_ends_a_text_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    free = client.completions.create(model="tiny", prompt="abc", max_tokens=40, seed=3).choices[0].text
    stop = free[10:12]
    choice = client.completions.create(model="tiny", prompt="abc", max_tokens=40, seed=3, stop=[stop]).choices[0]
    assert choice.text == free[: free.index(stop)]
    assert choice.finish_reason == "stop"


def test_streams_add_up_to_the_whole_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=["x", "why"], max_tokens=20, seed=4).choices
    pieces = {0: "", 1: ""}
    events = list(client.completions.create(model="tiny", prompt=["x", "why"], max_tokens=20, seed=4, stream=True))
    for event in events:
        for choice in event.choices:
            pieces[choice.index] += choice.text
    assert pieces == {choice.index: choice.text for choice in whole}
    assert len(events) > 20


def test_chat_uses_the_template_and_streams(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=15, temperature=0)
    same = client.completions.create(model="tiny", prompt="<s>user: Hello</s><s>assistant:", max_tokens=15, temperature=0)
    assert whole.choices[0].message.content == same.choices[0].text
    stream = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=15, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == whole.choices[0].message.content
    assert events[-1].usage == whole.usage


def test_two_streams_run_side_by_side(client: openai.OpenAI) -> None:
    arrived: list[str] = []
    begun = threading.Event()

    def read(name: str, tokens: int) -> None:
        for _ in client.completions.create(model="tiny", prompt=name, max_tokens=tokens, stream=True):
            arrived.append(name)
            begun.set()

    slow = threading.Thread(target=read, args=("slow", 800))
    slow.start()
    assert begun.wait(30)
    read("quick", 5)
    slow.join(60)
    assert arrived[-1] == "slow" and arrived.count("slow") == 801 and arrived.count("quick") == 6


def test_who_went_away_is_not_computed_for(raw: httpx.Client) -> None:
    hours = {"model": "tiny", "prompt": ["never read"] * 4096, "max_tokens": 4000}
    for _ in range(5):  # more than are computed at once
        with pytest.raises(httpx.ReadTimeout):
            raw.post("/v1/completions", json=hours, timeout=0.3)
    stream = {**hours, "stream": True}
    for _ in range(5):
        with raw.stream("POST", "/v1/completions", json=stream, timeout=30) as answer:
            next(answer.iter_lines())
    assert raw.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1}, timeout=30).status_code == 200


# -- adapters ----------------------------------------------------------------------------------------------------------


def _scores(raw: httpx.Client, model: str) -> np.ndarray:
    body = {"model": model, "prompts": ["one", "two"], "options": [" a", " bc", " bd"]}
    return np.array(raw.post("/cafe/label_logprobs", json=body).json()["logprobs"])


def test_the_model_field_chooses_the_adapter(raw: httpx.Client, client: openai.OpenAI, folder: Path) -> None:
    base = _scores(raw, "tiny")
    for name in "ab":
        raw.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder / "adapters" / name)}).raise_for_status()
    listed = {entry["id"]: entry["parent"] for entry in raw.get("/v1/models").json()["data"]}
    assert listed == {"tiny": None, "a": "tiny", "b": "tiny"}
    a, b = _scores(raw, "a"), _scores(raw, "b")
    assert np.abs(a - base).max() > 0.01 and np.abs(b - base).max() > 0.01 and np.abs(a - b).max() > 0.01
    assert np.array_equal(_scores(raw, "tiny"), base), "the base model comes back untouched"
    assert np.array_equal(_scores(raw, "a"), a)
    texts = {model: client.completions.create(model=model, prompt="x", max_tokens=30, temperature=0).choices[0].text for model in listed}
    assert len(set(texts.values())) == 3
    _check_together(client, texts)
    raw.post("/v1/unload_lora_adapter", json={"lora_name": "b"}).raise_for_status()
    assert raw.post("/v1/unload_lora_adapter", json={"lora_name": "b"}).status_code == 404


def _check_together(client: openai.OpenAI, texts: dict[str, str]) -> None:
    """Three greedy streams by turns say what each said alone: no adapter is left on for another's token."""
    streams = {
        model: iter(client.completions.create(model=model, prompt="x", max_tokens=30, temperature=0, stream=True)) for model in texts
    }
    said = dict.fromkeys(texts, "")
    for _ in range(31):
        for model, stream in streams.items():
            said[model] += "".join(choice.text for choice in next(stream).choices)
    assert said == texts


def test_an_adapter_that_may_not_be_loaded(raw: httpx.Client, folder: Path) -> None:
    adapters = folder / "adapters"
    write_adapter(adapters / "dora", seed=4, use_dora=True)
    write_adapter(adapters / "pattern", seed=4, alpha_pattern={"q_proj": 3})
    write_adapter(adapters / "modules", seed=4, modules_to_save=["lm_head"])
    write_adapter(adapters / "narrow", seed=4)
    tensors = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((4, 8), np.float32),
               "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": np.zeros((64, 4), np.float32)}  # fmt: skip
    from safetensors.numpy import save_file

    save_file(tensors, adapters / "narrow" / "adapter_model.safetensors")
    (adapters / "link").symlink_to(folder / "outside")
    (adapters / "empty").mkdir()
    base = _scores(raw, "tiny")
    for path in ("dora", "pattern", "modules", "narrow", "link", "empty", "missing", "../outside", "/etc"):
        answer = raw.post("/v1/load_lora_adapter", json={"lora_name": "bad", "lora_path": str(adapters / path)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "CAFE-508"), path
        assert str(folder) not in answer.text
    assert np.array_equal(_scores(raw, "tiny"), base)
    raw.post("/v1/load_lora_adapter", json={"lora_name": "same", "lora_path": str(adapters / "a")}).raise_for_status()
    raw.post("/v1/load_lora_adapter", json={"lora_name": "same", "lora_path": str(adapters / "a")}).raise_for_status()
    for name in ("same", "tiny"):
        assert raw.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(adapters / "b")}).status_code == 400


def test_pickled_adapters_are_not_read(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x", seed=0)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CafeError, match="CAFE-508"):
        read_adapter(folder)


# -- who is let in, and with what --------------------------------------------------------------------------------------


def test_no_key_no_answer(server: ModelServer) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": server.api_key}):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/cafe/label_logprobs"), ("GET", "/docs")):
            answer = httpx.request(method, server.base_url.removesuffix("/v1") + path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "CAFE-502")
    assert httpx.get(server.base_url.removesuffix("/v1") + "/health").text == ""


def test_a_foreign_host_and_a_foreign_origin(raw: httpx.Client) -> None:
    assert raw.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400
    assert raw.get("/health", headers={"Host": "evil.example"}).status_code == 400
    answer = raw.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_body_that_is_too_large(raw: httpx.Client) -> None:
    for content in (b" " * (17 * 2**20), iter([b" " * 2**20] * 17)):  # with its length told, and without
        answer = raw.post("/v1/completions", content=content)
        assert answer.status_code == 413
    assert raw.get("/nowhere").json()["error"]["code"] == "CAFE-509"


def test_it_listens_on_loopback_only(server: ModelServer) -> None:
    port = f":{int(server.base_url.split(':')[2].removesuffix('/v1')):04X}"
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    listening = [line[1] for line in lines if line[1].endswith(port) and line[3] == "0A"]
    assert listening == [f"0100007F{port}"]
    assert server.api_key not in Path(f"/proc/{server.pid}/cmdline").read_text()


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/completions", {"model": "none", "prompt": "x"}, 404, "CAFE-503"),
        ("/cafe/label_logprobs", {"model": "none", "prompts": ["x"], "options": ["y"]}, 404, "CAFE-503"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "logprobs": 3}, 400, "CAFE-509"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 0}, 400, "CAFE-509"),
        ("/v1/completions", {"model": "tiny", "prompt": "x" * 4090, "max_tokens": 16}, 400, "CAFE-509"),
        ("/v1/completions", {"model": "tiny", "prompt": ["x"] * 4096, "n": 2}, 400, "CAFE-509"),
        ("/v1/completions", {"model": "tiny", "prompt": []}, 400, "CAFE-509"),
        ("/v1/completions", "no object", 400, "CAFE-509"),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "hacker", "content": "x"}]}, 400, "CAFE-509"),
        ("/cafe/answer_losses", {"model": "tiny", "pairs": [["x"]]}, 400, "CAFE-509"),
    ],
)
def test_refusals_have_a_code_and_a_sentence(raw: httpx.Client, path: str, body: object, status: int, code: str) -> None:
    answer = raw.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["message"] and error["hint"]


# -- the life of the process -------------------------------------------------------------------------------------------


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _wait_gone(pid: int) -> bool:
    end = time.monotonic() + 30
    while not _gone(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return _gone(pid)


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline.model_server", "--model", str(folder / "tiny"), "--threads", "1"]


def test_the_end_of_its_input_ends_it_and_it_has_logged_no_prompt(folder: Path) -> None:
    key, canary = "k" * 32, "canary-7431"
    environment = os.environ | {"CAFE_MODEL_SERVER_KEY": key, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(_command(folder), stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd="/")
    assert process.stdin and process.stdout
    ready = json.loads(process.stdout.readline())
    assert ready["model"] == "tiny"
    for body in ({"model": "tiny", "prompt": canary}, {"model": "tiny", "prompt": canary, canary: 1}, {"model": canary, "prompt": "x"}):
        httpx.post(f"http://127.0.0.1:{ready['port']}/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    out, err = process.communicate(timeout=30)  # closes its input
    assert process.returncode == 0
    assert canary.encode() not in out + err and key.encode() not in out + err


def test_kill_9_of_the_parent_ends_it_even_with_its_input_open(folder: Path) -> None:
    """A third process holds the pipe open, so that only the parent's death can end the server."""
    reading, writing = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()",
         *_command(folder)],
        stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
        env=os.environ | {"CAFE_MODEL_SERVER_KEY": "k" * 32, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(reading)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert b"port" in parent.stdout.readline()
    parent.kill()
    parent.wait()
    assert _wait_gone(pid)
    os.close(writing)


def test_it_needs_a_key(folder: Path) -> None:
    process = subprocess.Popen(_command(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert process.stdout and process.stdin
    assert json.loads(process.stdout.readline())["error"]["code"] == "CAFE-505"
    assert process.wait(30) == 1
    process.stdin.close()


# -- turns -------------------------------------------------------------------------------------------------------------


def test_turns_go_round_and_nobody_computes_beside_another() -> None:
    turns, inside, order = Turns(), threading.Lock(), []

    def work(name: str) -> None:
        job = Job(turns)
        with turns.turn(job):
            for _ in range(50):
                assert inside.acquire(blocking=False)
                order.append(name)
                inside.release()
                turns.pass_on(job)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    first = Job(turns)
    with turns.turn(first):
        for thread in threads:
            thread.start()
        while len(turns) < 4:
            time.sleep(0.01)
    for thread in threads:
        thread.join(30)
    assert sorted(order) == sorted("abc" * 50)
    assert order == order[:3] * 50, "each waits for the others after one step"


def test_a_stopped_job_leaves_the_queue_wherever_it_stands() -> None:
    turns = Turns()
    first, waiting = Job(turns), Job(turns)
    failed: list[type[BaseException]] = []

    def wait() -> None:
        try:
            with turns.turn(waiting):
                raise AssertionError("never its turn")
        except Stopped as error:
            failed.append(type(error))

    with turns.turn(first):
        thread = threading.Thread(target=wait)
        thread.start()
        waiting.stop()
        thread.join(10)
        assert failed == [Stopped]
        first.stop()
        with pytest.raises(Stopped):
            turns.pass_on(first)
    with turns.turn(Job(turns)):
        pass  # nobody is left over in the queue


def test_generation_stops_within_a_token(folder: Path) -> None:
    from cafe_kit.base_model import BaseModel

    model = ServedModel(BaseModel.load(folder / "tiny", "float32", 1), "tiny", None)
    job, pieces = Job(model.turns), []

    def on_piece(row: int, piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            job.stop()

    with pytest.raises(Stopped):
        model.generate(job, "tiny", ["x"], Sampling(max_tokens=1000), on_piece)
    assert len(pieces) == 3
    assert model.generate(Job(model.turns), "tiny", ["x"], Sampling(max_tokens=2, seed=1))[0].tokens == 2


def test_a_refusal_never_repeats_the_value() -> None:
    with pytest.raises(CafeError) as refused:
        openai_api.parse(openai_api.Completion, b'{"model": "m", "prompt": {"secret": "patient 17"}}')
    assert "patient" not in str(refused.value) and "secret" not in str(refused.value)
