"""Threads follow the container's CPU quota, which control groups of both versions state."""

from __future__ import annotations

import pytest

from psp_rt.hardware import probe
from psp_rt.hardware.probe import cpu_quota, default_threads


def groups(tmp_path, text, **files):
    (tmp_path / "groups").write_text(text)
    for name, content in files.items():
        path = tmp_path / "root" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return cpu_quota(tmp_path / "root", tmp_path / "groups")


def test_version_2_takes_the_least_of_a_group_and_those_above_it(tmp_path):
    found = groups(tmp_path, "0::/a/b\n", a__cpu_dot_max="150000 100000", a__b__cpu_dot_max="max 100000")
    assert found == 1.5


def test_version_2_in_a_container_reads_its_root(tmp_path):
    assert groups(tmp_path, "0::/\n", cpu_dot_max="400000 100000") == 4


def test_version_1_reads_its_two_files(tmp_path):
    names = ("cpu,cpuacct__a__cpu_dot_cfs_quota_us", "cpu,cpuacct__a__cpu_dot_cfs_period_us")
    text = "5:memory:/a\n4:cpu,cpuacct:/a\n"
    assert groups(tmp_path, text, **dict(zip(names, ("200000", "100000"), strict=True))) == 2
    assert groups(tmp_path, text, **dict(zip(names, ("-1", "100000"), strict=True))) is None


@pytest.mark.parametrize("text", ["", "junk\n", "0::/none\n", "1:name=systemd:/x\n"])
def test_no_statement_is_no_limit(tmp_path, text):
    assert groups(tmp_path, text) is None
    assert cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("quota", "threads"), [(0.5, 1), (1.9, 1), (1e6, None), (None, None)])
def test_threads_are_whole_cpus_of_the_quota(monkeypatch, quota, threads):
    monkeypatch.setattr(probe, "cpu_quota", lambda: None)
    without = default_threads()
    monkeypatch.setattr(probe, "cpu_quota", lambda: quota)
    assert default_threads() == (threads or without)
