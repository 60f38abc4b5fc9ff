"""The engine file: what is written is read, and no file from a stranger does harm."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from psp_rt import EngineFile, FormatError, Manifest, OutputError, PspError, Translator, write_engine
from psp_rt.engine.writer import add_plans
from psp_rt.files import check_writable
from tests.models import tiny_engine

BACKENDS = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tiny_engine.build(tmp_path / "tiny.engine")


@pytest.fixture
def files() -> dict[str, bytes]:
    return tiny_engine.members()


def refusal(path: Path) -> str:
    """Return the message with which a file is refused, by the reader or when any runtime loads it."""
    reasons = {}
    for backend in BACKENDS:
        with pytest.raises(FormatError) as caught:
            Translator(path, device="cpu", backend=backend)
        reasons[str(caught.value).partition("cannot be loaded:")[0]] = str(caught.value)
    (reason,) = reasons.values()  # they differ at most in what the runtime itself says
    return reason


def entry_at(data: bytes, name: str) -> int:
    """Return where a member's entry in the central directory begins."""
    return data.rindex(name.encode()) - 46


def patched(path: Path, at: int, layout: str, *values: int) -> Path:
    """Overwrite a few bytes of a file."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, at, *values)
    path.write_bytes(data)
    return path


# What is written is read.


def test_an_engine_gives_back_its_manifest_and_members(engine, files):
    with EngineFile.open(engine) as opened:
        assert set(opened.names) == {"manifest.json", *files}
        assert {name: bytes(opened.view(name)) for name in files} == files
        assert Manifest.from_json(opened.manifest.to_json()) == opened.manifest
        assert opened.manifest.input == tiny_engine.spec("rgb")


def test_members_are_stored_at_multiples_of_64_bytes(engine):
    with EngineFile.open(engine) as opened:
        assert [opened.span(name).offset % 64 for name in opened.names] == [0] * len(opened.names)


def test_any_zip_tool_can_take_a_member_out(engine, files):
    with zipfile.ZipFile(engine) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("encoder.weights") == files["encoder.weights"]


def test_an_engine_packed_by_another_zip_tool_runs(tmp_path, files, picture):
    path = tiny_engine.write_raw(tmp_path / "other.engine", files)
    with Translator(path, device="cpu", color="rgb") as translator:
        np.testing.assert_array_equal(translator.encode(picture), tiny_engine.encode(picture[None])[0])


def test_members_and_files_beyond_32_bits_are_read(tmp_path, files, picture, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # as if the weights were larger than 2 GiB
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = tiny_engine.build(tmp_path / "large.engine")
    assert b"PK\6\6" in path.read_bytes()  # a ZIP64 end record
    with EngineFile.open(path) as opened:
        assert bytes(opened.view("encoder.weights")) == files["encoder.weights"]
        assert opened.span("encoder.weights").offset % 64 == 0
    with Translator(path, device="cpu", color="rgb") as translator:
        np.testing.assert_array_equal(translator.encode(picture), tiny_engine.encode(picture[None])[0])


def test_a_member_may_come_from_a_file(tmp_path, files):
    source = tmp_path / "encoder.weights"
    source.write_bytes(files["encoder.weights"])
    write_engine(tmp_path / "a.engine", tiny_engine.manifest(), files | {"encoder.weights": source})
    write_engine(tmp_path / "b.engine", tiny_engine.manifest(), files)
    assert (tmp_path / "a.engine").read_bytes() == (tmp_path / "b.engine").read_bytes()


def test_an_engine_is_found_through_a_link(engine, tmp_path, picture):
    (tmp_path / "cache").mkdir()
    link = tmp_path / "cache" / "link.engine"
    link.symlink_to(engine)
    with Translator(link, device="cpu") as translator:
        assert translator.run(picture).shape == (tiny_engine.OUT_HEIGHT, tiny_engine.OUT_WIDTH, 3)


# Files that are not whole.


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "no.engine")
    assert "is not a file; expected NAME.engine" in refusal(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.engine")
    assert "is not a file" in refusal(tmp_path / "pipe.engine")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.engine").touch()
    assert "is empty; copy or download it again" in refusal(tmp_path / "empty.engine")


@pytest.mark.parametrize("content", [b"x", b"not a zip" * 1000, b"PK\5\6", b"PK\3\4" + bytes(100)])
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "no.engine").write_bytes(content)
    assert "it is no zip, or its end is missing" in refusal(tmp_path / "no.engine")


def test_a_file_cut_off_anywhere_is_refused(engine):
    data = engine.read_bytes()
    for size in [*range(1, len(data), 9973), len(data) - 1]:
        engine.write_bytes(data[:size])
        assert "its end is missing; copy or download it again" in refusal(engine)


def test_a_flipped_bit_is_refused_or_harmless(engine, files):
    data = bytearray(engine.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), 300):
        data[at] ^= 1 << (at % 8)
        engine.write_bytes(data)
        try:
            with EngineFile.open(engine) as opened:
                opened.verify()
                assert {name: bytes(opened.view(name)) for name in files} == files  # it hit padding or a date
        except PspError as error:
            assert isinstance(error, FormatError)  # noqa: PT017
        data[at] ^= 1 << (at % 8)


def test_a_flipped_bit_in_the_weights_is_named(engine, files):
    at = engine.read_bytes().index(files["encoder.weights"])
    patched(engine, at + 1000, "<B", 255)
    assert "encoder.weights does not have the hash" in refusal(engine)


# Files that mean harm.


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "has an absolute path"),
        ("C:/windows", "has an absolute path"),
        ("../../etc/passwd", "leads out of its folder ('..')"),
        ("plans/../../x", "leads out of its folder ('..')"),
        ("plans\\x", "has a backslash"),
        ("a\nb", "is no file name that an engine uses"),
        ("plans/", "is no file name that an engine uses"),
        ("x" * 300, "is no file name that an engine uses"),
    ],
)
def test_a_member_that_leads_elsewhere_is_refused(tmp_path, files, name, reason):
    assert reason in refusal(tiny_engine.write_raw(tmp_path / "bad.engine", files | {name: b"x"}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_member_is_refused(engine):
    with zipfile.ZipFile(engine, "a") as archive:
        archive.writestr("mapping.onnx", b"other")
    assert "it holds 'mapping.onnx' twice" in refusal(engine)


def test_a_link_is_refused(engine):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(engine, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "'link' is a link or a special file" in refusal(engine)


def test_a_compressed_member_is_refused(engine):
    with zipfile.ZipFile(engine, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(10**6))
    assert "'bomb' is compressed; repack with: zip -0" in refusal(engine)


def test_an_encrypted_member_is_refused(engine):
    patched(engine, entry_at(engine.read_bytes(), "mapping.onnx") + 8, "<H", 1)
    assert "'mapping.onnx' is encrypted" in refusal(engine)


def test_a_size_beyond_the_file_is_refused(engine):
    patched(engine, entry_at(engine.read_bytes(), "encoder.weights") + 20, "<II", 2**31, 2**31)
    assert "'encoder.weights' claims 2147483648 bytes, more than the file holds" in refusal(engine)


def test_a_size_of_terabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    path = tiny_engine.build(tmp_path / "vast.engine")
    at = entry_at(path.read_bytes(), "encoder.weights") + 46 + len("encoder.weights")
    assert struct.unpack_from("<HH", path.read_bytes(), at)[0] == 1  # the ZIP64 field comes first
    patched(path, at + 4, "<QQ", 2**45, 2**45)
    assert f"'encoder.weights' claims {2**45} bytes, more than the file holds" in refusal(path)


def test_overlapping_members_are_refused(engine):
    data = engine.read_bytes()
    patched(engine, entry_at(data, "generator.onnx") + 20, "<II", 5000, 5000)
    assert "overlaps another member" in refusal(engine)


def test_too_many_members_are_refused_at_once(tmp_path, files):
    many = {f"x{index}": b"" for index in range(20_000)}
    path = tiny_engine.write_raw(tmp_path / "many.engine", files | many)
    start = time.perf_counter()
    assert "an engine has at most 256" in refusal(path)
    assert time.perf_counter() - start < 1


def test_a_member_that_the_manifest_does_not_know_is_refused(engine):
    with zipfile.ZipFile(engine, "a") as archive:
        archive.writestr("surprise", b"x")
    assert "'surprise' is not listed in the manifest" in refusal(engine)


def test_a_missing_member_is_refused(tmp_path, files):
    del files["mapping.onnx"]
    assert "it has no 'mapping.onnx'" in refusal(tiny_engine.write_raw(tmp_path / "bad.engine", files))


def test_an_engine_replaced_while_it_is_loaded_is_refused(engine, tmp_path):
    other = tiny_engine.build(tmp_path / "other.engine")
    with EngineFile.open(engine) as opened:
        opened.check_unchanged()
        os.replace(other, engine)
        with pytest.raises(FormatError, match="was replaced while it was being loaded; open it again"):
            opened.check_unchanged()


# The manifest.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "zip"}, "format is 'zip'; expected 'psp_rt.engine'"),
        ({"version": 2}, "version is 2, this psp_rt reads version 1; upgrade with: pip install -U psp_rt"),
        ({"version": "1"}, 'version is "1"; expected a whole number'),
        ({"version": True}, "version is true; expected a whole number"),
        ({"task": 3}, "task is 3; expected a text"),
        ({"task": "\x1b[2J"}, "task is"),
        ({"num_styles": 6.5}, "num_styles is 6.5; expected a whole number from 1 to 64"),
        ({"num_styles": 10**9}, "num_styles is 1000000000; expected a whole number from 1 to 64"),
        ({"output": [10, 14]}, "output is [10, 14]; expected an object"),
        ({"output": {"height": 10}}, "output.width is missing"),
        ({"output": {"height": 10, "width": 0}}, "output.width is 0; expected a whole number from 1"),
        ({"input": {"kind": "video"}}, 'input.kind is "video"; expected one of rgb, gray, labels'),
        ({"noise": None}, "noise is null; expected one of const, random, none"),
        ({"parity": {"codes": "good"}}, 'parity.codes is "good"; expected a finite number'),
        ({"parity": {"codes": 10**400}}, "expected a finite number"),
        ({"parity": {"codes": float("nan")}}, "parity.codes is NaN; expected a finite number"),
        ({"provenance": {"source": 1}}, "provenance.source is 1; expected a text"),
        ({"members": {"a": {"sha256": "x", "size": 1}}}, "members.a.sha256 is 'x'; expected 64 hex digits"),
    ],
)
def test_a_manifest_with_a_wrong_field_names_the_field(tmp_path, files, changes, reason):
    assert reason in refusal(tiny_engine.write_raw(tmp_path / "bad.engine", files, **changes))


@pytest.mark.parametrize("field", ["format", "version", "task", "input", "output", "style_dim", "members"])
def test_a_manifest_without_a_field_names_the_field(field):
    fields = json.loads(tiny_engine.manifest().to_json())
    del fields[field]
    with pytest.raises(FormatError, match=f"manifest.json: {field} is missing"):
        Manifest.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"version": ' + b"9" * 9999]
)
def test_a_manifest_that_is_no_json_object_is_refused(text):
    with pytest.raises(FormatError, match=r"manifest\.json (is not valid JSON|holds a list)"):
        Manifest.from_json(text)


def test_a_huge_manifest_is_not_parsed(tmp_path, files):
    path = tmp_path / "huge.engine"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", b" " * (2 << 20))
    assert "its manifest.json has 2097152 bytes; expected at most 1048576" in refusal(path)


def test_fields_of_later_versions_are_ignored():
    fields = json.loads(tiny_engine.manifest().to_json()) | {"later": 1}
    assert Manifest.from_json(json.dumps(fields)) == tiny_engine.manifest()


# Graphs.


def with_encoder(path: Path, files: dict[str, bytes], model: onnx.ModelProto) -> Path:
    return tiny_engine.write_raw(path, files | {"encoder.onnx": model.SerializeToString()})


@pytest.mark.parametrize(
    "location",
    ["../../etc/passwd", "/etc/passwd", "generator.weights", "bad.engine", "", "*/_ORT_MEM_ADDR_/*"],
)
def test_a_graph_that_reads_another_file_is_refused(tmp_path, files, location):
    model, _ = tiny_engine.encoder_graph("rgb", location=location)
    reason = refusal(with_encoder(tmp_path / "bad.engine", files, model))
    assert f"encoder.onnx refers to the file {location!r}; expected its own 'encoder.weights'" in reason


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("offset", "128", "wants bytes 128 to 110720 of encoder.weights, which has 110656"),
        ("length", str(2**50), "of encoder.weights, which has 110656"),
        ("offset", "-64", "has an external tensor whose offset is b'-64'"),
        ("length", "9" * 5000, "has an external tensor whose length is"),
    ],
)
def test_a_graph_that_reads_beyond_its_weights_is_refused(tmp_path, files, key, value, reason):
    model, _ = tiny_engine.encoder_graph("rgb")
    entry = next(entry for entry in model.graph.initializer[-1].external_data if entry.key == key)
    entry.value = value
    assert reason in refusal(with_encoder(tmp_path / "bad.engine", files, model))


def test_a_tensor_with_too_few_bytes_is_refused(tmp_path, files, backend):
    model, _ = tiny_engine.encoder_graph("rgb")
    entry = next(entry for entry in model.graph.initializer[-1].external_data if entry.key == "length")
    entry.value = "4"
    path = with_encoder(tmp_path / "bad.engine", files, model)
    with pytest.raises(FormatError, match=r"encoder\.onnx (cannot be loaded|gives 4 bytes for .matrix.)"):
        Translator(path, device="cpu", backend=backend)


def test_a_model_of_several_graphs_is_refused(tmp_path, files):
    twice = files["mapping.onnx"] * 2  # readers of protobuf would make one graph of them
    reason = refusal(tiny_engine.write_raw(tmp_path / "bad.engine", files | {"mapping.onnx": twice}))
    assert "mapping.onnx is no ONNX model: it has 2 graphs" in reason


def test_a_location_given_twice_is_refused(tmp_path, files):
    model, _ = tiny_engine.encoder_graph("rgb")
    model.graph.initializer[-1].external_data.add(key="location", value="/etc/passwd")
    assert "gives b'location' twice" in refusal(with_encoder(tmp_path / "bad.engine", files, model))


def test_a_hidden_tensor_that_reads_a_file_is_refused(tmp_path, files):
    model, _ = tiny_engine.encoder_graph("rgb")
    hidden = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=hidden))
    reason = refusal(with_encoder(tmp_path / "bad.engine", files, model))
    assert "has external data outside its initializers" in reason


def test_a_loop_is_refused_since_it_might_never_end(tmp_path, files):
    body = helper.make_graph([], "body", [], [])
    for node, reason in (
        (helper.make_node("Loop", ["", ""], ["x"], body=body), "holds a subgraph"),
        (helper.make_node("Identity", ["image"], ["x"], body=body), "holds a subgraph"),
    ):
        model, _ = tiny_engine.encoder_graph("rgb")
        model.graph.node.append(node)
        assert reason in refusal(with_encoder(tmp_path / "bad.engine", files, model))


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("Conv", ["image"], "x")], "has 1 inputs; expected 2 to 3"),
        ([("Add", ["", "image"], "x")], "leaves an input out"),
        ([("Abs", [], "x")], "has 0 inputs; expected 1"),
        ([("Abs", ["y"], "x"), ("Abs", ["x"], "y")], "uses 'y' before it is computed, or in a circle"),
        (
            [("Hardmax", ["image"], "x")],
            "is an operator that our models do not need",
        ),
        ([("Abs", ["image"], f"x{n}") for n in range(2001)], "nodes; expected at most 2000"),
    ],
    ids=["too few", "left out", "none", "circle", "unknown", "thousands"],
)
def test_a_graph_that_a_runtime_could_stumble_over_is_refused(tmp_path, files, nodes, reason):
    """Each crashed or stopped OpenVINO."""
    model, _ = tiny_engine.encoder_graph("rgb")
    model.graph.node.extend(helper.make_node(kind, inputs, [made]) for kind, inputs, made in nodes)
    assert reason in refusal(with_encoder(tmp_path / "bad.engine", files, model))


@pytest.mark.parametrize("version", [0, 6, 1000, 10**6, 2**62])
def test_an_operator_set_of_another_age_is_refused(tmp_path, files, version):
    model, _ = tiny_engine.encoder_graph("rgb")
    model.opset_import[0].version = version
    reason = refusal(with_encoder(tmp_path / "bad.engine", files, model))
    assert f"is for operator set {version}; expected 7 to 30" in reason


def test_an_operator_of_another_library_is_refused(tmp_path, files):
    model, _ = tiny_engine.encoder_graph("rgb")
    model.graph.node.append(helper.make_node("EPContext", [], ["x"], domain="com.microsoft"))
    reason = refusal(with_encoder(tmp_path / "bad.engine", files, model))
    assert "uses operators of b'com.microsoft'; expected standard ONNX only" in reason


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x3a\xff\xff\xff\xff\x07", b"\xff" * 100, b"\x0b"])
def test_a_member_that_is_no_graph_is_refused(tmp_path, files, content):
    reason = refusal(tiny_engine.write_raw(tmp_path / "bad.engine", files | {"encoder.onnx": content}))
    assert re.search(r"encoder\.onnx (is no ONNX model|cannot be loaded)", reason)


def test_a_graph_of_millions_of_fields_is_refused_in_time(tmp_path, files):
    path = tiny_engine.write_raw(tmp_path / "bad.engine", files | {"encoder.onnx": b"\x08\x08" * 1_000_000})
    start = time.process_time()  # our own time: others may be at work
    assert "encoder.onnx has more than 200000 fields" in refusal(path)
    assert time.process_time() - start < 5


def test_a_graph_with_another_input_shape_names_both(tmp_path, files):
    model, weights = tiny_engine.encoder_graph("rgb", height=32)
    reason = refusal(with_encoder(tmp_path / "bad.engine", files | {"encoder.weights": weights}, model))
    assert "encoder.onnx has the input image uint8 [N, 32, 12, 3]" in reason
    assert "the manifest expects image uint8 [N, 16, 12, 3]" in reason


def test_a_graph_with_a_name_that_is_no_text_is_refused(tmp_path, files):
    broken = files["mapping.onnx"].replace(b"\n\x01z", b"\n\x01\xf9")
    reason = refusal(tiny_engine.write_raw(tmp_path / "bad.engine", files | {"mapping.onnx": broken}))
    assert "name is not text" in reason


def test_a_graph_with_a_frozen_batch_is_refused(tmp_path, files):
    model, _ = tiny_engine.encoder_graph("rgb", batch=1)
    assert "image uint8 [1, 16, 12, 3]" in refusal(with_encoder(tmp_path / "bad.engine", files, model))


def test_a_manifest_that_does_not_fit_the_graphs_is_refused(tmp_path, files):
    reason = refusal(tiny_engine.write_raw(tmp_path / "bad.engine", files, num_styles=7))
    assert "encoder.onnx has the output codes float32 [N, 6, 8]" in reason
    assert "the manifest expects codes float32 [N, 7, 8]" in reason


# Writing.


def test_an_output_that_cannot_be_written_is_an_error_before_any_work(tmp_path):
    with pytest.raises(OutputError, match=r"no/a\.engine cannot be written: No such file or directory"):
        check_writable(tmp_path / "no" / "a.engine")
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        check_writable(tmp_path)
    check_writable(tmp_path / "a.engine")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_engine_and_no_half_file(engine, tmp_path):
    before = engine.read_bytes()
    script = (
        "import resource, sys; from pathlib import Path; import psp_rt\n"
        "from tests.models import tiny_engine\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # no file may grow beyond this
        "try: tiny_engine.build(Path(sys.argv[1]))\n"
        "except psp_rt.OutputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(engine)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == f"{engine} cannot be written: File too large\n"
    assert engine.read_bytes() == before
    assert list(tmp_path.iterdir()) == [engine]


def test_a_file_that_nobody_could_open_never_takes_the_place_of_a_good_one(tmp_path, engine_paths):
    path = tmp_path / "a.engine"
    path.write_bytes(engine_paths["rgb"].read_bytes())
    before = path.read_bytes()
    many = {f"file{number}": b"" for number in range(300)}
    with pytest.raises(OutputError, match=r"a\.engine is not written: what would be written .*at most 256"):
        add_plans(path, "sm90", many)
    with pytest.raises(OutputError, match=r"a\.engine is not written: "):
        add_plans(path, "..", {"encoder.plan": b""})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.engine"]


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_an_output_without_a_name_is_a_message(name):
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        check_writable(name)


def test_a_checkpoint_is_told_how_to_become_an_engine(tmp_path):
    (tmp_path / "sketch.pt").write_bytes(b"PK")
    with pytest.raises(
        FormatError, match=r"looks like a checkpoint; .* python -m export .*sketch\.pt --output sk"
    ):
        EngineFile.open(tmp_path / "sketch.pt")
