"""CUDA graphs of ONNX Runtime: real sessions on the CPU, in a stand-in that replays what it has recorded."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter

import numpy as np
import pytest

from psp_rt import BackendError, DeviceArray, DeviceError, EngineFile, StyleMix, Translator
from psp_rt.backends import onnx_binding, onnx_runtime, open_backend
from psp_rt.backends.onnx_graphs import GRAPH_ID, NO_GRAPH, RECORDING_RUNS, RecordedGraphs
from psp_rt.engine.manifest import Manifest
from psp_rt.hardware.choose import Choice
from tests.models.tiny_engine import HEIGHT, WIDTH
from tests.stand_ins import gpu as fake_gpu

pytest.importorskip("onnxruntime")


class ReplayingSession:
    """A session that records the first run with each number and, as a CUDA graph does, repeats that."""

    def __init__(self, session):
        self._session, self.recorded, self.replays, self.threads = session, {}, 0, set()
        self.first = {}  # results, by number
        self.fault = ""
        self.warm_ups, self.warmed_up = 0, Counter()

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self, *given):
        raise AssertionError("a plain run would record under the number that is ONNX Runtime's own")

    def run_with_iobinding(self, binding, options):
        self.threads.add(threading.get_ident())
        number = options.get_run_config_entry(GRAPH_ID)
        assert number != "0"
        if number in self.recorded:
            self.replays += 1
            binding = self.recorded[number]
            if self.fault == "does nothing":
                return
            if self.fault == "keeps its inputs":
                binding.get_outputs()[0].update_inplace(self.first[number])
                return
        elif number != NO_GRAPH:
            self.warmed_up[number] += 1
            if self.warmed_up[number] > self.warm_ups:
                self.recorded[number] = binding
        self._session.run_with_iobinding(binding)
        self.first.setdefault(number, np.array(binding.get_outputs()[0].numpy()))


@pytest.fixture
def plain(engine_paths):
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", color="rgb") as opened:
        yield opened


@pytest.fixture
def sessions(plain):
    return {name: ReplayingSession(plain._backend._sessions[name]) for name in ("encoder", "generator")}


@pytest.fixture
def translator(engine_paths, library, sessions, monkeypatch):
    """A translator that believes to be on CUDA with graphs; its memory on the GPU is the CPU's."""
    monkeypatch.setattr(onnx_binding, "_place", lambda device: ("cpu", 0))
    with Translator(engine_paths["rgb"], device="cpu", backend="onnxruntime", color="rgb") as opened:
        backend = opened._backend
        backend.device = "cuda:0"
        recorded = RecordedGraphs(sessions=sessions, manifest=opened.manifest, device="cuda:0")
        backend._recorded = recorded
        real = library.cuda.holds
        library.cuda.holds = lambda at, size, *kind: at in addresses(recorded) or real(at, size, *kind)
        yield opened


def addresses(recorded):
    """Return the addresses of the memory that graphs were recorded on."""
    values = [value for run in recorded._runs.values() for value in (*run.inputs.values(), run.output)]
    return {value.data_ptr() for value in values}


def pixels(*count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*count, HEIGHT, WIDTH, 3), dtype=np.uint8)


STYLES = [
    None,
    StyleMix.random(1, layers="2-"),
    StyleMix.random([1, 2], layers="2-"),
    StyleMix.random(list(range(8)), layers="2-"),  # in two parts
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_pictures_on_the_host_give_the_same_as_without_graphs(translator, plain, count, style):
    for seed in range(3):  # recorded, and replayed with other pictures
        given = pixels(count, seed=seed)
        np.testing.assert_array_equal(translator.run(given, style=style), plain.run(given, style=style))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("count", [1, 4, 6])
def test_pictures_on_the_gpu_give_the_same(translator, plain, library, count, style):
    for seed in range(2):
        given = pixels(count, seed=seed)
        found = translator.run(library.array(given), style=style)
        assert isinstance(found, DeviceArray)
        np.testing.assert_array_equal(found.to_host(), plain.run(given, style=style))


def test_encode_and_generate_are_recorded_too(translator, plain, sessions):
    for seed in range(3):
        codes = translator.encode(pixels(2, seed=seed))
        np.testing.assert_array_equal(codes, plain.encode(pixels(2, seed=seed)))
        np.testing.assert_array_equal(translator.generate(codes), plain.generate(codes))
    assert sessions["encoder"].replays == sessions["generator"].replays == RECORDING_RUNS + 2


def test_a_number_of_rows_is_recorded_once_and_then_replayed(translator, sessions):
    for count in (1, 2, 1, 2, 1):
        translator.run(pixels(count))
    assert sorted(sessions["encoder"].recorded) == sorted(sessions["generator"].recorded) == ["1", "2"]
    assert sessions["encoder"].replays == 2 * RECORDING_RUNS + 3  # with the comparisons; those afterwards


def test_memory_stays_where_it_was_recorded(translator):
    translator.run(pixels(2))
    before = addresses(translator._backend._recorded)
    for seed in range(3):
        translator.run(pixels(2, seed=seed), style=STYLES[1])
    assert addresses(translator._backend._recorded) == before
    assert len(before) == 5  # images, codes, reference, weights and pictures: codes are shared


def test_results_are_the_callers_to_keep(translator):
    first, codes = translator.run(pixels(1)), translator.encode(pixels(1))
    kept = first.copy(), codes.copy()
    translator.run(pixels(1, seed=1))
    translator.encode(pixels(1, seed=2))
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(codes, kept[1])


def test_all_runs_are_in_one_thread_whoever_calls(translator, plain, sessions):
    found = {}

    def work(user, seed):
        found[seed] = user.run(pixels(1, seed=seed))

    with translator.clone() as clone:
        threads = [threading.Thread(target=work, args=(user, 2 * at + number))
                   for at in range(4) for number, user in enumerate((translator, clone))]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    streamed = list(translator.stream([pixels(seed=seed) for seed in range(4)]))
    for seed, result in [*found.items(), *((seed, picture[None]) for seed, picture in enumerate(streamed))]:
        np.testing.assert_array_equal(result, plain.run(pixels(1, seed=seed)))
    (thread,) = sessions["encoder"].threads | sessions["generator"].threads
    assert thread != threading.get_ident()


def test_thread_and_memory_end_with_the_last_user(translator, sessions):
    clone, recorded = translator.clone(), translator._backend._recorded
    translator.run(pixels(1))
    (thread,) = sessions["encoder"].threads
    translator.close()
    clone.run(pixels(1))
    clone.close()
    assert thread not in [alive.ident for alive in threading.enumerate()]
    assert addresses(recorded) == set()


@pytest.mark.parametrize("warm_ups", [0, 2])
@pytest.mark.parametrize("fault", ["does nothing", "keeps its inputs"])
@pytest.mark.parametrize("name", ["encoder", "generator"])
def test_a_replay_that_gives_something_else_is_refused(translator, sessions, name, fault, warm_ups):
    sessions[name].fault, sessions[name].warm_ups = fault, warm_ups
    for _ in range(2):
        with pytest.raises(
            BackendError, match=f"of the {name} gives other results .* without onnx_cuda_graphs"
        ):
            translator.run(pixels(2))


def test_a_failing_run_is_a_backend_error(translator, sessions, monkeypatch):
    def broken(*given):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(sessions["generator"], "run_with_iobinding", broken)
    with pytest.raises(BackendError, match="failed in the generator on cuda:0: operation not permitted"):
        translator.run(pixels(1))


# What is asked for.


def test_graphs_are_asked_for_by_name_and_told(engine_paths, monkeypatch):
    asked, real = {}, onnx_runtime._session

    def watch(engine, name, device, threads, *, cuda_graph):
        (_, settings), _ = onnx_runtime._providers(device, cuda_graph)
        asked[name] = settings["enable_cuda_graph"]
        return real(engine, name, "cpu", threads, cuda_graph=cuda_graph)

    monkeypatch.setattr(onnx_runtime, "_session", watch)
    monkeypatch.setattr(onnx_runtime, "_left_on_cpu", lambda sessions: "")
    choice = Choice(device="cuda:0", backend="onnxruntime", precision="fp32", reason="asked for")
    with EngineFile.open(engine_paths["rgb"]) as engine:
        opened = open_backend(engine, choice, onnx_cuda_graphs=True)
        assert asked == {"encoder": "1", "generator": "1", "mapping": "0"}
        assert opened.description.endswith("with CUDA graphs")
        assert open_backend(engine, choice).description.endswith("without CUDA graphs")
        assert set(asked.values()) == {"0"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_graphs_on_another_backend_are_refused(engine_paths, backend):
    pytest.importorskip(backend)
    message = f"needs ONNX Runtime on CUDA, and this is {backend} on cpu; leave it out"
    with pytest.raises(DeviceError, match=message):
        Translator(engine_paths["rgb"], device="cpu", backend=backend, onnx_cuda_graphs=True)


def test_graphs_of_tensorrt_are_its_own(monkeypatch, tmp_path):
    fake_gpu.install(monkeypatch)
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    with pytest.raises(DeviceError, match=r"this is tensorrt on cuda:0; leave it out \(TensorRT records"):
        Translator(path, onnx_cuda_graphs=True)


def test_drawn_noise_is_refused_since_a_replay_would_repeat_it(engine_paths, monkeypatch):
    choice = Choice(device="cuda:0", backend="onnxruntime", precision="fp32", reason="asked for")
    with EngineFile.open(engine_paths["rgb"]) as engine:
        manifest: Manifest = dataclasses.replace(engine.manifest, noise="random")
        monkeypatch.setattr(engine, "manifest", manifest)
        with pytest.raises(DeviceError, match="would give the same noise at every run"):
            open_backend(engine, choice, onnx_cuda_graphs=True)


def test_a_graph_that_cannot_be_recorded_says_how_to_open_the_engine(engine_paths, monkeypatch):
    import onnxruntime

    def refuse(*given, **settings):
        raise RuntimeError("not all nodes have been partitioned to the CUDA EP")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with (
        EngineFile.open(engine_paths["rgb"]) as engine,
        pytest.raises(Exception, match=r"partitioned to the CUDA EP; open it without onnx_cuda_graphs"),
    ):
        onnx_runtime._session(engine, "encoder", "cuda:0", 1, cuda_graph=True)
