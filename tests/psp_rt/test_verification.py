"""Engines from strangers are tried in a process of their own."""

from __future__ import annotations

import pytest

from psp_rt import FormatError, Translator, verification
from tests.messages import assert_says


def test_a_good_engine_is_run_once(engine_paths):
    assert verification.verify(engine_paths["rgb"]).startswith("test on ")
    with Translator(engine_paths["rgb"], device="cpu", verify=True) as translator:
        assert translator.manifest.task == "test"


def test_a_bad_engine_keeps_its_message(tmp_path):
    (tmp_path / "bad.engine").write_bytes(b"bad")
    with pytest.raises(FormatError) as caught:
        verification.verify(tmp_path / "bad.engine")
    assert_says(caught, "bad.engine", "not a usable engine")


def test_a_death_of_the_child_is_an_error_here(engine_paths, monkeypatch):
    monkeypatch.setattr(verification, "_TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(FormatError) as caught:
        verification.verify(engine_paths["rgb"])
    assert_says(caught, engine_paths["rgb"], "SIGSEGV")


def test_the_limits_hold(engine_paths, monkeypatch):
    with pytest.raises(FormatError) as caught:
        verification.verify(engine_paths["rgb"], memory_mib=64)
    assert_says(caught, "64 MiB")
    monkeypatch.setattr(verification, "_TRIAL", "import time; time.sleep(60)")
    with pytest.raises(FormatError) as caught:
        verification.verify(engine_paths["rgb"], seconds=0.5)
    assert_says(caught, "0.5 seconds")
