"""Which part of a job a node has, and what the nodes tell each other in the work directory they share."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from models.errors import ConfigError, LaunchError
from tasks.nodes import Launch, Nodes
from tasks.ports import free_port
from tasks.settings import Settings


def nodes(folder: Path, *, count: int = 2, index: int = 0) -> Nodes:
    return Nodes(count, index, "127.0.0.1", free_port(), folder)


def launch_of(run: Path, num_ranks: int = 2) -> Launch:
    return Launch("some.module", str(run), num_ranks, num_threads=1, began=1.0)


def test_the_others_see_a_launch_only_while_it_lasts(tmp_path: Path) -> None:
    first, second = nodes(tmp_path), nodes(tmp_path, index=1)
    launch = launch_of(tmp_path / "run")
    assert second.read_launch() is None
    with first.shared(launch):
        assert second.read_launch() == launch
        with pytest.raises(LaunchError, match="another stage"), first.shared(launch):
            pass
    assert second.read_launch() is None


def test_a_launch_of_one_who_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    first, second = nodes(tmp_path), nodes(tmp_path, index=1)
    (tmp_path / "launch.json").write_text(json.dumps(asdict(launch_of(tmp_path / "before"))))
    with first.shared(launch_of(tmp_path / "run")):
        assert second.read_launch() == launch_of(tmp_path / "run")
    assert second.read_launch() is None


def test_a_job_that_is_started_again_forgets_what_the_earlier_try_has_told(tmp_path: Path) -> None:
    first, second = nodes(tmp_path), nodes(tmp_path, index=1)
    (tmp_path / "launch.json").write_text(json.dumps(asdict(launch_of(tmp_path / "before"))))
    first.end()
    assert second.have_ended()
    first.begin()
    assert not second.have_ended()
    assert second.read_launch() is None
    with first.shared(launch_of(tmp_path / "run")):
        nodes(tmp_path).begin()  # of another job, by mistake
        assert second.read_launch() == launch_of(tmp_path / "run")


def test_one_rank_and_one_node_are_nobody_elses_business(tmp_path: Path) -> None:
    with nodes(tmp_path).shared(launch_of(tmp_path, num_ranks=1)):
        assert nodes(tmp_path, index=1).read_launch() is None
    with nodes(tmp_path, count=1).shared(launch_of(tmp_path)):
        assert list(tmp_path.iterdir()) == []


def test_ranks_are_shared_evenly_or_refused(tmp_path: Path) -> None:
    launcher = nodes(tmp_path, index=1).launcher(8)
    assert launcher[launcher.index("--nproc-per-node") + 1] == "4"
    assert launcher[launcher.index("--node-rank") + 1] == "1"
    with pytest.raises(ConfigError, match="3 ranks on 2 nodes"):
        nodes(tmp_path).launcher(3)


@pytest.mark.parametrize("text", ["2", "0@host:1", "2@host", "two@host:1"])
def test_nodes_that_cannot_be_read_are_refused(
    text: str, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_R3_NODES", text)
    with pytest.raises(ConfigError, match="COUNT@HOST:PORT"):
        Nodes.of(Settings.read())


def test_a_silence_that_a_busy_host_keeps_too_is_refused(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_R3_NODE_SILENCE", "9")
    with pytest.raises(ConfigError, match=r"is 9.* at least 10 s, or 0"):
        Nodes.of(Settings.read())
