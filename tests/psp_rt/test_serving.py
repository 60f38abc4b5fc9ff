"""The server: pictures in and out, several at once, and nothing that a client sends stops it."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx, which starlette's client is made of")

from safetensors.numpy import load as read_safetensors
from safetensors.numpy import save as to_safetensors
from starlette.testclient import TestClient

from psp_rt import StyleMix, Translator
from psp_rt.serving import Limits, Served, create_app
from psp_rt.serving.served import Hardware
from tests.models import tiny_engine


def file_of(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (tiny_engine.HEIGHT, tiny_engine.WIDTH, 3), np.uint8)
PICTURE = file_of(PIXELS)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return tiny_engine.build(tmp_path_factory.mktemp("served") / "tiny.engine")


@pytest.fixture
def client(engine):
    with TestClient(app_of(engine)) as found:
        yield found


def app_of(*engines, **limits):
    served = [Served.open(path, Hardware(device="cpu", workers=2, threads=1)) for path in engines]
    return create_app(served, Limits(**limits))


def picture_of(response):
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


@pytest.fixture(scope="module")
def expected(engine):
    with Translator(engine, device="cpu", color="rgb") as translator:
        yield translator


def test_a_picture_comes_back_as_the_translator_makes_it_however_it_is_sent(client, expected):
    wanted = expected.run(PIXELS)
    raw = client.post("/v1/run", content=PICTURE, headers={"content-type": "image/png"})
    form = client.post("/v1/run", files={"image": PICTURE})
    as_json = client.post(
        "/v1/run", json={"image": base64.b64encode(PICTURE).decode()}, headers={"accept": "image/*"}
    )
    for response in (raw, form, as_json):
        np.testing.assert_array_equal(picture_of(response), wanted)
        assert response.headers["content-type"] == "image/png"
        assert len(response.headers["x-request-id"]) == 16


def test_json_has_every_result_with_its_seed_and_what_was_done(client, expected):
    body = {"image": base64.b64encode(PICTURE).decode(), "seeds": [4, 5], "layers": "1-", "alpha": 0.5}
    answer = client.post("/v1/run", json=body).json()
    assert [result["seed"] for result in answer["results"]] == [4, 5]
    assert {"encode", "mix", "generate", "store"} <= set(answer["seconds"])
    wanted = expected.run(PIXELS, style=StyleMix.random([4, 5], layers="1-", alpha=0.5))
    for result, pixels in zip(answer["results"], wanted, strict=True):
        found = Image.open(io.BytesIO(base64.b64decode(result["image"])))
        np.testing.assert_array_equal(np.asarray(found), pixels)


def test_codes_go_out_and_in_as_json_and_as_safetensors(client, expected):
    codes = client.post("/v1/encode", files={"image": PICTURE}).json()
    np.testing.assert_allclose(codes["codes"][0], expected.encode(PIXELS), rtol=1e-6)
    kind = {"accept": "application/safetensors"}
    packed = read_safetensors(client.post("/v1/encode", files={"image": PICTURE}, headers=kind).content)
    np.testing.assert_array_equal(packed["codes"], np.float32(codes["codes"]))
    wanted = expected.run(PIXELS)
    accept = {"accept": "image/*"}
    from_json = client.post("/v1/generate", json={"codes": codes["codes"]}, headers=accept)
    from_tensors = client.post("/v1/generate", content=to_safetensors(packed), headers=accept)
    for response in (from_json, from_tensors):
        np.testing.assert_array_equal(picture_of(response), wanted)


def test_seeds_alone_make_pictures_in_a_row(client, expected):
    response = client.post("/v1/generate?seeds=1,2,3&format=png")
    assert response.headers["x-results"] == "3"
    wanted = np.concatenate(list(expected.generate(expected.sample([1, 2, 3]))), axis=1)
    np.testing.assert_array_equal(picture_of(response), wanted)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("alpha=2", "alpha"),
        ("alpha=nan", "alpha"),
        ("seeds=a", "seeds"),
        ("seeds=-1", "seeds"),
        ("layers=x", "layers"),
        ("faces=some", "faces"),
        ("format=exe", "format"),
        ("size=0", "size"),
        ("size=1e9", "size"),
        ("nothing=1", "nothing"),
        ("truncation_layers=1", "truncation"),
    ],
)
def test_an_option_that_is_wrong_is_named(client, query, said):
    response = client.post(f"/v1/run?{query}", content=PICTURE)
    assert response.status_code == 422
    assert said in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "image/png", 422),
        (b"no picture", "image/png", 422),
        (PICTURE[:60], "image/png", 422),
        (b"{", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b'{"image": 5}', "application/json", 422),
        (b'{"image": "!"}', "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"--x", "multipart/form-data", 400),
        (b"--x\r\n", "multipart/form-data; boundary=x", 422),
    ],
)
def test_a_body_that_is_no_request_is_refused_with_a_reason(client, content, kind, status):
    response = client.post("/v1/run", content=content, headers={"content-type": kind})
    assert (response.status_code, "Traceback" in response.text) == (status, False)
    assert response.json()["error"]


def test_a_body_or_a_picture_beyond_the_limits_is_413(engine):
    bomb = file_of(np.zeros((500, 500), np.uint8))
    with TestClient(app_of(engine, body_bytes=10_000, pixels=10_000)) as client:
        assert client.post("/v1/run", content=bytes(10_001)).status_code == 413
        assert client.post("/v1/run", content=iter([bytes(6_000)] * 2)).status_code == 413
        assert len(bomb) < 10_000
        assert client.post("/v1/run", content=bomb).status_code == 413
        assert client.post("/v1/generate?seeds=" + ",".join("1" * 64)).status_code == 200
        many = {"seeds": list(range(60)), "codes": np.zeros((2, tiny_engine.L, tiny_engine.D)).tolist()}
        assert client.post("/v1/generate", json=many).status_code == 413


def test_a_token_guards_what_computes_and_not_the_page(engine):
    with TestClient(app_of(engine, token="secret")) as client:
        assert client.get("/").status_code == 200
        assert client.get("/v1/engines").status_code == 401
        assert client.get("/metrics").status_code == 401
        with_token = {"authorization": "Bearer secret"}
        assert client.get("/v1/engines", headers=with_token).status_code == 200


def test_too_many_requests_of_one_address_are_429(engine):
    with TestClient(app_of(engine, rate=0.1)) as client:
        statuses = [client.get("/v1/engines").status_code for _ in range(3)]
    assert statuses == [200, 429, 429]


def test_beyond_the_queue_clients_are_sent_away_and_later_served(engine):
    with TestClient(app_of(engine, queue=1)) as client, ThreadPoolExecutor(24) as threads:
        wait_until_ready(client)
        statuses = list(threads.map(lambda _: client.post("/v1/run", content=PICTURE).status_code, range(48)))
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) >= 3
        assert client.post("/v1/run", content=PICTURE).status_code == 200


def test_the_server_says_when_it_is_ready_and_what_it_counted(client):
    assert client.get("/livez").status_code == 200
    wait_until_ready(client)
    client.post("/v1/run", content=PICTURE)
    figures = client.get("/metrics").text
    assert 'psp_rt_pictures_total{engine="tiny"} 1.0' in figures
    assert re.search(r'psp_rt_stage_seconds_count\{.*engine="tiny".*stage="encode"\} 1\.0', figures)
    assert 'psp_rt_requests_total{path="/v1/run",status="200"} 1.0' in figures


def wait_until_ready(client):
    for _ in range(300):
        if client.get("/readyz").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("never ready")


def test_the_page_and_no_other_file_of_the_host_is_served(client):
    assert "canvas" in client.get("/").text
    assert client.get("/page/main.js").status_code == 200
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/etc/passwd", "/page/"):
        assert client.get(path).status_code == 404


def test_head_and_unknown_methods_are_answered(client):
    assert client.head("/livez").status_code == 200
    assert client.get("/v1/run").status_code == 405
    assert client.get("/nowhere").json()["error"]


def test_the_description_names_every_route(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/run", "/v1/encode", "/v1/generate", "/v1/engines", "/livez", "/readyz", "/metrics"} == set(
        paths
    )


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_work_finish_and_ends_with_status_0(engine, kind):
    command = [sys.executable, "-m", "psp_rt", "serve", str(engine), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as server:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"{address}/readyz") as response:
                    assert json.load(response)["status"] == "ready"
                    break
            except OSError:
                time.sleep(0.1)
        request = urllib.request.Request(f"{address}/v1/run", data=PICTURE)
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(lambda: urllib.request.urlopen(request).status)
            time.sleep(0.05)
            server.send_signal(kind)
            assert answer.result() == 200
        server.stderr.read()
        assert server.wait(30) == 0


def test_a_port_in_use_and_a_missing_engine_are_messages(engine, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        in_use = [str(engine), "--port", str(taken.getsockname()[1])]
        for arguments, said in ((in_use, "--port"), ([str(tmp_path / "no.engine")], "no.engine")):
            command = [sys.executable, "-m", "psp_rt", "serve", *arguments]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 1
            assert said in run.stderr
            assert "Traceback" not in run.stderr
