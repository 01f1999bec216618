"""A server: edits as models and as arguments, 64 requests at once over 16 edits, loading and unloading over HTTP."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_models import generate, save_edits, save_model
from transformers import AutoModelForCausalLM

NAMES = [f"edit{i:02}" for i in range(16)]
START = 400  # seconds that a server may take to start
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    save_model("llama", folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    save_edits(model, folder / "edits", NAMES)
    save_edits(model, folder / "edits" / "later", ["new"])
    save_edits(model, folder / "elsewhere", ["other"])
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "model").eval()


@pytest.fixture(scope="module")
def server(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    options = "--served-model-name base --dtype float32 --max-model-len 128 --max-num-seqs 64 --block-size 32"
    options += " --enforce-eager" if os.environ.get("SERVING_TESTS_EAGER") else ""
    command = [sys.executable, "-m", "headedit", "serve", str(folder / "model"), "--edits", str(folder / "edits")]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options.split()], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START
        while status(f"{address}/health") != 200:
            alive = process.poll() is None and time.monotonic() < end
            assert alive, (folder / "log").read_text()[-3000:]
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except OSError:
        return None


def post(url, data):
    """The status and the content of an answer."""
    request = urllib.request.Request(url, json.dumps(data).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith("{") else text
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def complete(server, prompt, model="base", **extra):
    """The status of a request and its tokens, or its error."""
    data = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    xargs = {"vllm_xargs": extra} if extra else {}
    code, found = post(f"{server}/v1/completions", {**data, **xargs, "return_token_ids": True})
    return code, found["choices"][0]["token_ids"] if code == 200 else found


def prompt_of(i):
    return [3 + (11 * i + 5 * j) % 120 for j in range(20 + i % 9)]


def listed(server):
    with urllib.request.urlopen(f"{server}/v1/models") as answer:
        return [card["id"] for card in json.loads(answer.read())["data"]]


def test_edits_are_listed_as_models_next_to_the_base(server):
    assert listed(server) == ["base", *NAMES]


def test_an_edit_is_chosen_as_the_model_or_by_an_argument(server, model, folder):
    edit = folder / "edits" / "edit03"
    wanted = generate(model, prompt_of(0), edit, tokens=TOKENS)
    assert complete(server, prompt_of(0), model="edit03") == (200, wanted)
    assert complete(server, prompt_of(0), headedit="edit03") == (200, wanted)
    weaker = generate(model, prompt_of(0), edit, 0.5, tokens=TOKENS)
    assert complete(server, prompt_of(0), headedit="edit03", headedit_strength=0.5) == (200, weaker)
    assert complete(server, prompt_of(0), model="edit03", headedit_strength=0.5) == (200, weaker)
    assert complete(server, prompt_of(0)) == (200, generate(model, prompt_of(0), tokens=TOKENS))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"headedit": "edit99"}, 404),
        ({"model": "edit99"}, 404),
        ({"headedit": "edit01", "headedit_strength": "much"}, 400),
        ({"headedit": "edit01", "model": "edit02"}, 400),
        ({"headedit_strenght": 1}, 400),
    ],
)
def test_a_wrong_request_gets_a_status_of_its_own(arguments, code, server):
    found, message = complete(server, prompt_of(0), **arguments)
    assert found == code, message
    assert complete(server, prompt_of(0))[0] == 200


def test_of_64_requests_at_once_none_gets_the_answer_of_another(server, model, folder):
    edits = [NAMES[i % 16] for i in range(64)]
    alone = [generate(model, prompt_of(i), folder / "edits" / edit, tokens=TOKENS) for i, edit in enumerate(edits)]
    assert [complete(server, prompt_of(i), headedit=edits[i]) for i in range(4)] == [(200, a) for a in alone[:4]]
    changed = []

    def change():
        changed.append(post(f"{server}/v1/unload_lora_adapter", {"lora_name": "edit15"}))
        path = str(folder / "edits" / "later" / "new")
        changed.append(post(f"{server}/v1/load_lora_adapter", {"lora_name": "new", "lora_path": path}))

    timer = threading.Timer(0.3, change)
    timer.start()
    with ThreadPoolExecutor(66) as pool:
        bad = pool.submit(complete, server, prompt_of(0), headedit="edit99")
        found = list(pool.map(lambda i: complete(server, prompt_of(i), headedit=edits[i]), range(64)))
    timer.join()
    assert bad.result()[0] == 404
    assert [code for code, _ in changed] == [200, 200], changed
    unloaded = [i for i, (code, _) in enumerate(found) if code == 404]
    assert all(edits[i] == "edit15" for i in unloaded)  # those that came after it was unloaded
    assert [tokens for _, tokens in found if isinstance(tokens, list)] == [
        tokens for i, tokens in enumerate(alone) if i not in unloaded
    ]
    wanted = generate(model, prompt_of(1), folder / "edits" / "later" / "new", tokens=TOKENS)
    assert complete(server, prompt_of(1), model="new") == (200, wanted)
    assert complete(server, prompt_of(1), model="edit15")[0] == 404
    assert listed(server) == ["base", *NAMES[:15], "new"]


def test_what_cannot_be_loaded_gets_a_status_and_the_server_goes_on(server, folder):
    load = f"{server}/v1/load_lora_adapter"
    for name, path in [("y", folder / "elsewhere" / "other"), ("y", folder / "edits" / "no"), ("base", "x"), ("", "x")]:
        assert post(load, {"lora_name": name, "lora_path": str(path)})[0] == 400
    again = {"lora_name": "edit01", "lora_path": str(folder / "edits" / "edit01")}
    assert post(load, again)[0] == 400
    assert post(load, {**again, "load_inplace": True})[0] == 200
    assert post(f"{server}/v1/unload_lora_adapter", {"lora_name": "y"})[0] == 404
    assert complete(server, prompt_of(0))[0] == 200
