"""Processes that train together end together."""

from pathlib import Path

import pytest

from trainer.loop import distributed as team
from trainer.loop.distributed import Interrupted, Team


@pytest.fixture
def events(monkeypatch):
    """Give the calls to torch.distributed, in a team of two that is not really there."""
    called = []
    monkeypatch.setattr(team, "join", lambda device: Team(device=None, size=2))
    monkeypatch.setattr(team.dist, "barrier", lambda: called.append("wait"))
    monkeypatch.setattr(team.dist, "destroy_process_group", lambda: called.append("leave"))
    return called


def test_the_first_to_end_waits_for_the_others(events):
    with team.joined("cpu"):
        events.append("work")
    assert events == ["work", "wait", "leave"]


def test_so_does_one_that_was_stopped_because_all_stop_at_one_step(events):
    with pytest.raises(Interrupted), team.joined("cpu"):
        raise Interrupted(5, Path("latest.pt"))
    assert events == ["wait", "leave"]


def test_what_the_leader_has_is_shared_tensor_by_tensor(monkeypatch):
    sent = []
    monkeypatch.setattr(team.dist, "broadcast", lambda tensor, src: sent.append((tensor, src)))
    Team(device=None, rank=1, size=2).share(iter("ab"))
    Team(device=None).share("c")
    assert sent == [("a", 0), ("b", 0)]


def test_after_an_error_nobody_is_waited_for(events):
    with pytest.raises(ValueError, match="of this process alone"), team.joined("cpu"):
        raise ValueError("of this process alone")
    assert events == ["leave"]
