"""Processes with limits: what goes wrong in one is a message here, and the others go on."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from sagittal.errors import GeometryError, ReadError, ResourceError, SagittalError
from sagittal.guard import limited, limits, wire
from sagittal.guard.limited import run_limited
from sagittal.guard.limits import check_file

PROBES = """
import ctypes, os, signal, sys, time
import numpy as np
from sagittal.errors import GeometryError, ReadError

def echo(item):
    return item

def pid(item):
    return os.getpid()

def do(item):
    what, value = item
    if what == "crash":
        ctypes.string_at(0)
    elif what == "hang":
        time.sleep(value)
    elif what == "fill":
        return int(np.ones(value, np.uint8).sum())
    elif what == "exit":
        os._exit(value)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "print":
        os.write(1, b"noise" * 1000)
        os.write(2, b"noise" * 1000)
    elif what == "refuse":
        raise GeometryError("no place")
    elif what == "fail":
        raise KeyError("a name that nobody may see")
    elif what == "lie":
        return object()
    return value

def ones(item):
    return np.ones(item, np.uint16)
"""


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """A module of functions that go wrong, which the processes of this module may call."""
    folder = tmp_path_factory.mktemp("probes")
    (folder / "probes.py").write_text(PROBES)
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(folder))
    patch.setattr(limited, "ALLOWED", ("sagittal", "probes"))
    limited.stop()
    yield
    limited.stop()
    patch.undo()


def results(address, items, **terms):
    return dict(limited.run(address, items, **terms))


# ---- what travels


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.builds(Path, st.just("a/b")),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
)


def same(a, b):
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@settings(max_examples=60)
@given(VALUES)
def test_plain_values_arrive_as_they_were(value):
    parts = wire.encode(value)
    assert same(wire.decode(parts.header, b"".join(parts.blobs)), value)


@given(
    of_numpy.arrays(
        of_numpy.scalar_dtypes().filter(lambda d: d.kind in "biufc"), of_numpy.array_shapes(min_dims=0, min_side=0)
    )
)
def test_arrays_and_scalars_arrive_as_they_were(array):
    parts = wire.encode([array, array.T, array.dtype.type(1)])
    found = wire.decode(parts.header, b"".join(parts.blobs))
    for a, b in zip(found, [array, array.T, array.dtype.type(1)], strict=True):
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


def test_what_is_not_plain_does_not_travel():
    for value in (object(), {1, 2}, np.array([object()]), np.array(["text"]), len):
        with pytest.raises(TypeError, match="does not travel"):
            wire.encode(value)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[",
        b"{}",
        b"[1,[-1]]",
        b"[1,[99]]",
        b'[{"array":0,"dtype":"|O","shape":[1]},[8]]',
        b'[{"array":0,"dtype":"<u2","shape":[9]},[8]]',
        b'[{"array":0,"dtype":"<u2","shape":[-4]},[8]]',
        b'[{"array":1,"dtype":"<u2","shape":[4]},[8]]',
        b'[{"array":0,"dtype":"import os","shape":[4]},[8]]',
        b'[{"other":0},[8]]',
        b"[" * 100_000,
    ],
)
def test_a_damaged_message_is_an_error(header):
    with pytest.raises(ValueError, match="damaged"):
        wire.decode(header, bytes(8))


# ---- results


def test_every_item_has_its_result(probes):
    items = [{"n": n, "values": np.arange(n, dtype=np.int16)} for n in range(50)]
    found = results("probes:echo", items, workers=2)
    assert sorted(found) == list(range(50))
    for n, item in enumerate(items):
        assert found[n]["n"] == n
        np.testing.assert_array_equal(found[n]["values"], item["values"])


def test_long_items_and_results_pass(probes):
    items = [np.full(n, n % 251, np.uint8) for n in (10, 3_000_000, 20, 2_000_000, 1_500_000, 0, 70_000)]
    found = results("probes:echo", items, workers=2)
    for n, item in enumerate(items):
        np.testing.assert_array_equal(found[n], item)


def test_items_are_taken_as_results_are(probes):
    taken = []

    def endless():
        n = 0
        while True:
            taken.append(n)
            yield n
            n += 1

    running = limited.run("probes:echo", endless(), workers=2)
    assert sorted(next(running)[1] for _ in range(20))[:10] == list(range(10))
    assert len(taken) < 30
    running.close()


def test_large_results_come_through_shared_memory(probes):
    for number, values in limited.run("probes:ones", [100_000, 5, 50_000] * 20, workers=2, room=200_000):
        assert values.sum() == [100_000, 5, 50_000][number % 3]
        assert values.flags.owndata is False
    with pytest.raises(ValueError, match="in a room of"):
        list(limited.run("probes:echo", [bytes(10**6)], room=1000))
    # A result that does not fit takes the pipe.
    ((_, values),) = limited.run("probes:ones", [10**6], room=1000)
    assert values.sum() == 10**6


def test_a_function_of_the_package_is_called_by_name(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    found = dict(run_limited(check_file, [tmp_path / "a", tmp_path / "b"]))
    assert found[0] == 3
    assert isinstance(found[1], ReadError)
    assert "does not exist" in str(found[1])


@pytest.mark.parametrize("function", [os.getcwd, lambda item: item, limits.inflate.__call__, subprocess.run])
def test_other_functions_are_not(function):
    with pytest.raises((TypeError, AttributeError)):
        run_limited(function, [1])


def test_the_process_itself_refuses_other_packages():
    (found,) = results("os:getcwd", [1]).values()
    assert isinstance(found, ReadError)
    assert "not foreseen (ValueError" in str(found)


# ---- what goes wrong


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (("crash", 0), ReadError, r"the decoder crashed \(SIGSEGV\); the file is damaged, or made to do harm"),
        (("hang", 60), ReadError, r"needed more than 0.5 s, and was stopped"),
        (("fill", 2**28), ReadError, r"needed more than 64 MiB of memory"),
        (("exit", 3), ReadError, r"crashed \(code 3\)"),
        (("kill", 0), ReadError, r"ended by the system, probably for want of memory"),
        (("refuse", 0), GeometryError, r"^no place$"),
        (("fail", 0), ReadError, r"^reading failed in a way that was not foreseen \(KeyError in .*probes.py:\d+\)$"),
        (("lie", 0), ReadError, r"not foreseen \(TypeError"),
    ],
)
def test_a_failure_is_a_result_and_the_others_go_on(probes, wrong, kind, message):
    items = [("give", n) for n in range(12)]
    items[5] = wrong
    found = results("probes:do", items, workers=2, memory_bytes=2**26, timeout_s=0.5)
    assert type(found[5]) is kind
    with pytest.raises(kind, match=message):
        raise found[5]
    assert [found[n] for n in range(12) if n != 5] == [n for n in range(12) if n != 5]


def test_memory_below_the_cap_is_given(probes):
    assert results("probes:do", [("fill", 2**24)], memory_bytes=2**26) == {0: 2**24}


def test_what_a_decoder_prints_is_no_answer(probes, capfd):
    assert results("probes:do", [("print", 1), ("give", 2)]) == {0: 1, 1: 2}
    assert capfd.readouterr() == ("", "")


def test_each_crash_of_many_is_told(probes):
    found = results("probes:do", [("crash", 0), ("give", 1)] * 4, workers=2)
    assert [isinstance(found[n], ReadError) for n in range(8)] == [True, False] * 4


# ---- processes


def test_processes_are_kept_and_replaced(probes, monkeypatch):
    first = set(results("probes:pid", range(20), workers=2).values())
    assert set(results("probes:pid", range(20), workers=2).values()) == first
    monkeypatch.setattr(limited, "_JOBS_OF_A_LIFE", 5)
    results("probes:pid", range(40), workers=2)
    assert not set(results("probes:pid", range(20), workers=2).values()) & first


def test_leaving_early_ends_what_is_at_work(probes):
    running = limited.run("probes:do", [("give", 1), ("hang", 60)], workers=2, timeout_s=100)
    assert next(running) == (0, 1)
    pids = [worker.process.pid for worker in limited._LIVE]
    running.close()
    alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert len(alive) == len(limited._POOL.idle) < len(pids)


def test_threads_have_processes_of_their_own(probes):
    found = {}

    def work(name):
        found[name] = results("probes:echo", [(name, n) for n in range(30)], workers=2)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "abc":
        assert found[name] == {n: (name, n) for n in range(30)}
    assert len(limited._POOL.idle) <= 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own_and_leaves_the_parents_alone(probes):
    ours = set(results("probes:pid", range(20), workers=2).values())
    running = limited.run("probes:echo", range(100), workers=2)
    next(running)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, where pytest has some
        child = os.fork()
    if child == 0:
        status = 1
        try:
            running.close()
            theirs = set(results("probes:pid", range(20), workers=2).values())
            limited.stop()
            gc.collect()
            status = 0 if theirs and not theirs & ours else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(running)) == 99
    assert set(results("probes:pid", range(20), workers=2).values()) <= ours


def _in_child(queue):
    queue.put(results("probes:echo", [1, 2, 3]))


def test_a_daemonic_process_may_have_them_too(probes):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(target=_in_child, args=(queue,), daemon=True)
        process.start()
    assert queue.get() == {0: 1, 1: 2, 2: 3}
    process.join()
    assert process.exitcode == 0


SCRIPT = """
import os, sys, warnings
warnings.simplefilter("error")
from sagittal.guard import limited
from sagittal.guard.limits import check_size
print(sorted(limited.run("sagittal.guard.limits:check_file", [__import__("pathlib").Path(__file__)] * 8, workers=2))[0][1] > 0)
print(*[worker.process.pid for worker in limited._LIVE], flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["return", "kill"])
def test_they_end_with_their_parent(tmp_path, end):
    (tmp_path / "a.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-X", "dev", tmp_path / "a.py", end], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (-signal.SIGKILL if end == "kill" else 0), done.stderr
    said, pids = done.stdout.splitlines()
    assert said == "True"
    assert done.stderr == ""
    until = time.monotonic() + 5
    while any(_runs(pid) for pid in pids.split()) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in pids.split())


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_hang_ends_even_when_the_parent_is_gone(probes):
    """The alarm that each job sets in its own process ends it without help."""
    list(limited.run("probes:echo", [1], workers=1))
    worker = limited._POOL.take()
    parts = wire.encode(["probes:do", 0, -4.5, ("hang", 60)])  # five seconds are added to the parent's measure
    worker.send(limited._Job(0, parts), limited._Terms(0, 60.0, 0))
    assert worker.process.wait(timeout=10) == -signal.SIGALRM
    worker.close()


def test_a_folder_with_modules_of_standard_names_is_not_searched(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    limited.stop()
    assert results("sagittal.guard.limits:check_file", [tmp_path / "a"]) == {0: 1}


def test_no_process_is_a_clear_error(monkeypatch):
    limited.stop()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ResourceError, match="no process for decoding can be started"):
        results("sagittal.guard.limits:check_file", [Path("a")])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ResourceError, match=r"it ended with code 1"):
        results("sagittal.guard.limits:check_file", [Path("a")])


def test_within_limits_work_is_done_in_place(monkeypatch):
    monkeypatch.setattr(limits, "within_limits", True)
    monkeypatch.setattr(limited, "_Worker", lambda: pytest.fail("a process was started"))
    found = dict(run_limited(check_file, [Path("nowhere")]))
    assert isinstance(found[0], SagittalError)


def test_where_pipes_cannot_be_watched_one_answers_after_the_other(probes, monkeypatch):
    limited.stop()
    monkeypatch.setattr(limited, "_POSIX", False)
    monkeypatch.setattr(limited, "_SHARES", False)
    items = [("give", 1), ("crash", 0), ("hang", 60), ("give", 2)]
    found = results("probes:do", items, workers=2, timeout_s=0.5)
    assert (found[0], found[3]) == (1, 2)
    with pytest.raises(ReadError, match="crashed"):
        raise found[1]
    with pytest.raises(ReadError, match="more than 0.5 s"):
        raise found[2]
    limited.stop()


def test_memory_of_processes_stays_flat(probes):
    ((_, pid),) = limited.run("probes:pid", [0], workers=1)

    def resident():
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096

    list(limited.run("probes:do", [("fail", 0)] * 200, workers=1))
    before = resident()
    list(limited.run("probes:do", [("fail", 0)] * 2000, workers=1))
    assert resident() - before < 2**21
