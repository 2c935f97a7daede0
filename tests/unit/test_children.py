"""Children that never outlive the command that started them: real processes, really killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launch.children import Child

ROOT = Path(__file__).parents[2]
LIMIT_S = 10.0
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
FAMILY = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {DEAF!r}])
print("child", child.pid, flush=True)
time.sleep(60)
"""

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start children that are ended with the test."""
    children = []

    def start(script: str, **environment: str) -> Child:
        log = tmp_path / "logs" / "child.log"
        child = Child("child", [sys.executable, "-c", script], log=log, environment=environment)
        children.append(child)
        return child

    yield start
    for child in children:
        child.end(0)


def wait_for_line(child: Child, text: str) -> str:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for line in child.last_lines().splitlines():
            if text in line:
                return line
        time.sleep(0.02)
    raise AssertionError(f"no {text!r} in {child.last_lines()!r}")


def gone(pid: int) -> bool:
    """Wait until a process is gone, or a zombie that nobody here can reap."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_both_outputs_go_to_the_log_which_is_appended_to(start: Start) -> None:
    script = "import os, sys; print(os.environ['WORD']); print('wrong', file=sys.stderr)"
    first = start(script, WORD="one")
    assert first.wait(LIMIT_S) == 0
    second = start(script, WORD="two")
    assert second.wait(LIMIT_S) == 0
    assert sorted(second.last_lines().splitlines()) == ["one", "two", "wrong", "wrong"]
    assert second.last_lines(1) in ("two", "wrong")


def test_the_exit_code_is_none_while_it_runs(start: Start) -> None:
    child = start("import sys, time; time.sleep(0.3); sys.exit(7)")
    assert child.exit_code() is None
    assert child.wait(0.01) is None
    assert child.wait(LIMIT_S) == 7
    assert child.exit_code() == 7


def test_asked_to_stop_it_may_finish_what_it_does(start: Start) -> None:
    child = start(
        "import signal, sys, time\n"
        "def stop(*_): print('saved', flush=True); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop); print('up', flush=True); time.sleep(60)"
    )
    wait_for_line(child, "up")
    child.end(LIMIT_S)
    assert child.exit_code() == 75
    assert child.last_lines().splitlines() == ["up", "saved"]


def test_who_does_not_listen_is_killed_after_the_grace(start: Start) -> None:
    child = start(DEAF)
    wait_for_line(child, "up")
    began = time.monotonic()
    child.end(0.3)
    assert 0.3 <= time.monotonic() - began < LIMIT_S
    assert child.exit_code() == -signal.SIGKILL


def test_nothing_of_the_session_is_left_after_the_end(start: Start) -> None:
    """The grandchild does not listen to SIGTERM and its parent dies of it."""
    child = start(FAMILY)
    pid = int(wait_for_line(child, "child").split()[1])
    wait_for_line(child, "up")
    child.end(0.3)
    assert gone(pid)


def test_nothing_is_left_of_a_child_that_ended_by_itself(start: Start) -> None:
    child = start(FAMILY.replace("time.sleep(60)\n", ""))
    pid = int(wait_for_line(child, "child").split()[1])
    wait_for_line(child, "up")
    assert child.wait(LIMIT_S) == 0
    child.end(0.3)
    assert gone(pid)


def test_ending_twice_or_after_the_end_is_no_error(start: Start) -> None:
    child = start("pass")
    child.wait(LIMIT_S)
    child.ask_to_stop()
    child.end(1)
    child.end(1)
    assert child.exit_code() == 0


def test_ctrl_c_in_the_terminal_does_not_reach_the_child(start: Start) -> None:
    """Ctrl-C goes to the terminal's foreground group; the child is in a session and a group of its own."""
    child = start("import os; print('ids', os.getpid(), os.getsid(0), os.getpgid(0), flush=True)")
    pid, session, group = wait_for_line(child, "ids").split()[1:]
    assert pid == session == group


def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    """By SIGKILL, so that the parent has no chance to end it."""
    parent = f"""
        import sys, time
        from pathlib import Path
        from launch.children import Child
        log = Path({str(tmp_path / "child.log")!r})
        child = Child("child", [sys.executable, "-c", {SLEEP!r}], log=log, environment={{}})
        while "up" not in child.last_lines():
            time.sleep(0.02)
        print(child._process.pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.kill()
        process.wait()
    try:
        assert gone(pid)
    finally:
        if psutil.pid_exists(pid):
            psutil.Process(pid).kill()
