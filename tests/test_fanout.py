import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from itertools import count
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from offprincipal import compare, fanout
from offprincipal.cli import cli
from offprincipal.errors import InputError, OffprincipalError, UsageError
from offprincipal.fanout import ByName, _start, engine, here, processes, ray_cluster, shard, warm

HERE = str(Path(__file__).parent)


@pytest.fixture
def work(monkeypatch):
    monkeypatch.syspath_prepend(HERE)  # children inherit sys.path
    import fanout_work

    return fanout_work


@pytest.fixture
def forked(work, monkeypatch):
    """Workers for `work` are forked from a new server, which finds it without the tests' own path."""
    forkserver._forkserver._stop()  # none of an earlier test: each has an environment of its own
    monkeypatch.setattr(_start, "_warmed", {work.__name__})
    monkeypatch.setenv("PYTHONPATH", HERE)
    yield
    forkserver._forkserver._stop()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid):
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return children + [each for child in children for each in descendants(child)]


def pids_in(folder):
    """Of the children that run `fanout_work.sleep_with_pid`."""
    return [int(file.name) for file in folder.iterdir() if file.name.isdigit()]


def write_script(folder, *body, before=()):
    """A program whose workers are forked if it is given an argument, else spawned."""
    script = folder / "script.py"
    script.write_text(
        "\n".join(
            (
                f"import os, signal, sys, time; sys.path.insert(0, {HERE!r})",
                "import fanout_work",
                "from offprincipal.fanout import processes, warm",
                *before,
                "if __name__ == '__main__':",
                "    if sys.argv[1:]: warm(sys.argv[1], 2)",
                *(f"    {line}" for line in body),
                "",
            )
        )
    )
    return script


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


class TestEngine:
    def test_every_name(self, work):
        assert dict(engine("here")(work.double, range(3))) == {0: 0, 1: 2, 2: 4}
        assert dict(engine("processes", 1)(work.double, range(3))) == {0: 0, 1: 2, 2: 4}
        assert callable(engine("ray", gpus_per_task=1))

    def test_unknown_name(self):
        message = "^cannot fan out with engine 'dask': there is no such engine; choose one of here, processes, ray$"
        with pytest.raises(UsageError, match=message):
            engine("dask")

    @pytest.mark.parametrize("make", [lambda: engine("processes", 0), lambda: processes(abs, [], 0)])
    def test_no_jobs(self, make):
        with pytest.raises(
            UsageError, match=r"^cannot fan out over processes: 0 jobs were asked for; ask for at least 1$"
        ):
            make()


class TestHere:
    def test_is_lazy(self):
        endless = here(abs, count())
        assert [next(endless) for _ in range(3)] == [0, 1, 2]


class TestShard:
    @given(st.lists(st.floats(0, 1e9), max_size=40), st.integers(1, 9), st.randoms(use_true_random=False))
    def test_disjoint_complete_balanced_and_independent_of_order(self, costs, shards, random):
        work = [(f"t{number}", cost) for number, cost in enumerate(costs)]
        parts = [shard(work, shards, index) for index in range(shards)]
        assert sorted(name for part in parts for name in part) == sorted(name for name, _ in work)
        cost = dict(work)
        loads = [sum(cost[name] for name in part) for part in parts]
        assert max(loads) - min(loads) <= max([*costs, 0]) * (1 + 1e-9)
        for part in parts:
            assert [cost[name] for name in part] == sorted((cost[name] for name in part), reverse=True)
        random.shuffle(work)
        assert [shard(work, shards, index) for index in range(shards)] == parts

    @pytest.mark.parametrize(("shards", "index"), [(0, 0), (2, 2), (2, -1)])
    def test_a_shard_that_does_not_exist(self, shards, index):
        message = (
            rf"^cannot split the work: shard {index} of {shards} was asked for; give --num-shards N of at least 1"
        )
        with pytest.raises(UsageError, match=message):
            shard([], shards, index)


@pytest.fixture(params=["spawned", "forked"])
def start(request):
    if request.param == "forked":
        request.getfixturevalue("forked")
    return request.param


@pytest.fixture
def program(start, tmp_path):
    """Starts a script in a group of its own, as a terminal does."""
    running = []

    def begin(*body, **more):
        command = [sys.executable, write_script(tmp_path, *body), *(["fanout_work"] if start == "forked" else [])]
        running.append(subprocess.Popen(command, start_new_session=True, text=True, **more))
        return running[-1]

    yield begin
    for each in running:
        each.kill()
        each.wait()
        for pipe in (each.stdout, each.stderr):
            if pipe:
                pipe.close()


@pytest.mark.usefixtures("start")
class TestProcesses:
    def test_same_as_here(self, work):
        assert sorted(processes(work.double, range(20), 2)) == sorted(here(work.double, range(20)))

    def test_no_items_and_fewer_items_than_jobs(self, work):
        assert list(processes(work.double, [], 3)) == []
        assert list(processes(work.double, [5], 3)) == [(5, 10)]

    def test_draws_items_only_when_a_process_is_free_and_stops_when_closed(self, work):
        drawn = []
        results = processes(work.double, (drawn.append(i) or i for i in count()), 2)
        assert next(results)[0] in (0, 1)
        assert len(drawn) <= 3
        results.close()

    def test_our_errors_stay_themselves(self, work):
        with pytest.raises(InputError) as caught:
            list(processes(work.fail_on_three, range(6), 2))
        assert str(caught.value) == "cannot read tensor 'w': it is torn; fetch it again"

    def test_other_errors_keep_type_message_and_say_where(self, work):
        with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
            list(processes(work.divide, [1, 0], 2))
        assert "in a worker, on 0:" in caught.value.__notes__[0]
        assert "return 1 / item" in caught.value.__notes__[0]

    def test_errors_that_cannot_travel_are_told_in_words(self, work):
        with pytest.raises(
            OffprincipalError, match=r"^cannot work on [12]: Stubborn: two words; see the message; it came"
        ):
            list(processes(work.stubborn, [1, 2], 2))

    def test_a_killed_process_names_its_item(self, work):
        message = "^cannot work on 3: its process was killed by SIGKILL; if memory ran out, use fewer jobs$"
        with pytest.raises(OffprincipalError, match=message):
            list(processes(work.die_on_three, range(6), 2))

    def test_a_process_that_leaves_names_its_item(self, work):
        message = "^cannot work on 3: its process ended with 7; see what the process printed$"
        with pytest.raises(OffprincipalError, match=message):
            list(processes(work.leave_on_three, range(6), 2))

    def test_threads_are_shared_out_and_the_environment_is_left_alone(self, work):
        before = dict(os.environ)
        share = max(1, len(os.sched_getaffinity(0)) // 2)
        assert set(processes(work.thread_settings, range(2), 2)) == {(share, str(share))}
        assert dict(os.environ) == before

    @pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
    def test_freed_memory_is_kept_unless_the_user_has_settings(self, work, monkeypatch):
        names = sorted(_start.MEMORY_VARIABLES)
        monkeypatch.delenv(names[0], raising=False)
        monkeypatch.setenv(names[1], "7")
        assert sorted(processes(work.variable, names, 2)) == ["0", "7"]
        assert names[0] not in os.environ
        assert os.environ[names[1]] == "7"

    def test_twice_in_one_process_with_other_numbers_of_jobs(self, work):
        for jobs in (2, 3, 2):
            found = list(processes(work.lineage, range(6), jobs))
            assert len({pid for _, pid, _ in found}) == jobs

    def test_in_a_thread(self, work):
        found = []
        thread = threading.Thread(target=lambda: found.extend(processes(work.double, range(4), 2)))
        thread.start()
        thread.join()
        assert sorted(found) == list(here(work.double, range(4)))

    def test_children_see_a_changed_environment(self, work, monkeypatch):
        for value in ("first", "second", None):
            if value:
                monkeypatch.setenv("FANOUT_TEST", value)
            else:
                monkeypatch.delenv("FANOUT_TEST")
            assert list(processes(work.variable, ["FANOUT_TEST"] * 2, 2)) == [value] * 2

    def test_children_have_the_working_directory(self, tmp_path, monkeypatch):
        list(processes(os.path.abspath, ["a"] * 2, 2))
        monkeypatch.chdir(tmp_path)
        assert set(processes(os.path.abspath, ["a"] * 2, 2)) == {str(tmp_path / "a")}

    def test_ctrl_c_ends_the_children_promptly(self, program, tmp_path):
        parent = program(
            "signal.signal(signal.SIGINT, signal.default_int_handler)",  # tests in the background inherit it ignored
            f"list(processes(fanout_work.sleep_with_pid, [{str(tmp_path)!r}] * 2, 2))",
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: len(pids_in(tmp_path)) == 2)
        family = descendants(parent.pid)
        os.killpg(parent.pid, signal.SIGINT)  # what a terminal does: everyone in the foreground group gets it
        _, words = parent.communicate(timeout=10)
        assert words.count("KeyboardInterrupt") == 1  # the parent's own; children stay silent
        assert words.count("Traceback") == 1
        wait_until(lambda: not any(map(alive, family)), 5)

    def test_children_ignore_ctrl_c(self, program, tmp_path):
        program(f"list(processes(fanout_work.sleep_with_pid, [{str(tmp_path)!r}] * 2, 2))")
        wait_until(lambda: len(pids_in(tmp_path)) == 2)
        for pid in pids_in(tmp_path):
            status = Path(f"/proc/{pid}/status").read_text()
            ignored = int(status.split("SigIgn:")[1].split()[0], 16)
            assert ignored >> (signal.SIGINT - 1) & 1

    def test_a_killed_parent_leaves_no_children(self, program):
        parent = program(
            "for _ in processes(fanout_work.double, iter(int, 1), 2): print('.', flush=True)", stdout=subprocess.PIPE
        )
        assert parent.stdout.readline()
        family = descendants(parent.pid)
        assert len(family) >= 2
        parent.kill()
        parent.communicate()
        wait_until(lambda: not any(map(alive, family)), 10)

    def test_a_killed_parent_ends_children_in_the_middle_of_an_item(self, program, tmp_path):
        parent = program(
            f"list(processes(fanout_work.sleep_with_pid, [{str(tmp_path)!r}] * 2, 2))", stderr=subprocess.DEVNULL
        )
        wait_until(lambda: len(pids_in(tmp_path)) == 2, 40)
        parent.kill()
        parent.wait()
        wait_until(lambda: not any(map(alive, pids_in(tmp_path))), 10)


class TestStart:
    def test_a_server_imports_once_for_all_children(self, work, forked):
        found = [each for _ in range(2) for each in processes(work.lineage, range(4), 2)]
        servers = {parent for _, _, parent in found}
        assert {importer for importer, _, _ in found} == servers
        assert len(servers) == 1
        assert os.getpid() not in servers
        assert len({pid for _, pid, _ in found}) == 4

    def test_children_look_for_garbage_though_their_server_did_not(self, work, forked):
        assert list(processes(work.collecting, range(2), 2)) == [True, True]

    def test_a_function_by_its_name_is_imported_by_the_server_alone(self, work, forked):
        found = list(processes(ByName("fanout_work", "lineage"), range(4), 2))
        assert {importer for importer, _, _ in found} == {parent for _, _, parent in found} - {os.getpid()}

    def test_a_name_that_is_not_there_is_told(self, work):
        with pytest.raises(AttributeError, match="no_such"):
            list(processes(ByName("fanout_work", "no_such"), range(2), 2))

    def test_spawned_if_nobody_vouches_for_the_module(self, work):
        assert _start.forkable("offprincipal.measurement")
        assert not _start.forkable("fanout_work")
        assert not _start.forkable("__main__")
        assert {parent for _, _, parent in processes(work.lineage, range(2), 2)} == {os.getpid()}

    @pytest.mark.parametrize("missing", ["method", "system"])
    def test_spawned_where_there_is_no_server(self, work, forked, monkeypatch, missing):
        if missing == "method":
            monkeypatch.setattr(_start, "get_all_start_methods", lambda: ["spawn"])
        else:
            monkeypatch.setattr(sys, "platform", "darwin")
        assert {parent for _, _, parent in processes(work.lineage, range(2), 2)} == {os.getpid()}

    def test_spawned_with_another_environment_then_forked_again(self, work, forked, monkeypatch):
        parents = lambda: {parent for _, _, parent in processes(work.lineage, range(2), 2)}  # noqa: E731
        server = parents()
        assert os.getpid() not in server
        with monkeypatch.context() as patch:
            patch.setenv("FANOUT_TEST", "1")
            assert parents() == {os.getpid()}
        assert parents() == server

    def test_spawned_if_the_server_dies_of_an_import(self, forked, monkeypatch, tmp_path, capfd):
        module = tmp_path / "only_in_children.py"
        module.write_text(
            "import os, sys\nassert 'forkserver' not in sys.orig_argv[-1]\ndef parent(_): return os.getppid()\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(tmp_path)
        import only_in_children

        monkeypatch.setattr(_start, "_warmed", {"only_in_children"})
        assert set(processes(only_in_children.parent, range(2), 2)) == {os.getpid()}
        assert "AssertionError" in capfd.readouterr().err

    def test_children_import_the_copy_that_the_parent_has(self, tmp_path):
        script = write_script(
            tmp_path,
            "assert sorted(processes(fanout_work.double, range(2), 2)) == [(0, 0), (1, 2)]",
        )
        other = tmp_path / "other"
        other.mkdir()
        (other / "fanout_work.py").write_text("def double(_): raise RuntimeError('the wrong copy')")
        environment = {**os.environ, "PYTHONPATH": str(other)}  # the script puts another folder before it
        subprocess.run([sys.executable, script, "fanout_work"], env=environment, check=True, timeout=60)

    def test_the_server_does_not_import_from_the_working_directory(self, tmp_path):
        script = write_script(
            tmp_path,
            "found = set(processes(fanout_work.lineage, range(2), 2))",
            "assert len({(importer, parent) for importer, _, parent in found}) == 1, found",
            "assert 'PYTHONSAFEPATH' not in os.environ",
            "assert list(processes(fanout_work.variable, ['PYTHONSAFEPATH'] * 2, 2)) == [None] * 2",
        )
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "fanout_work.py").write_text("raise SystemExit('the wrong copy')")
        subprocess.run(
            [sys.executable, script, "fanout_work"],
            env={**os.environ, "PYTHONPATH": HERE},
            cwd=elsewhere,
            check=True,
            timeout=60,
        )

    @pytest.mark.parametrize("warmed", [[], ["fanout_work"], ["__main__"]])
    def test_a_function_of_the_script_itself(self, tmp_path, warmed):
        script = write_script(
            tmp_path,
            "print(sorted(processes(double, range(4), 2)))",
            before=["def double(item): return 2 * item"],
        )
        run = subprocess.run([sys.executable, script, *warmed], capture_output=True, text=True, timeout=60, check=True)
        assert (run.stdout, run.stderr) == ("[0, 2, 4, 6]\n", "")


class TestWarm:
    @pytest.fixture
    def slow(self, tmp_path, monkeypatch):
        """A file that says which process imports `slow_import`, a module that takes a server a minute."""
        (tmp_path / "slow_import.py").write_text(
            f"import os, sys, time\nopen(os.path.join({str(tmp_path)!r}, 'importing'), 'w').write(str(os.getpid()))\n"
            "if 'forkserver' in sys.orig_argv[-1]: time.sleep(60)\ndef same(item): return item\n"
        )
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), HERE)))
        return tmp_path / "importing"

    def test_returns_at_once_and_nobody_waits_for_a_server_that_is_not_used(self, slow, tmp_path):
        script = write_script(
            tmp_path,
            "began = time.monotonic()",
            "warm('slow_import', 2)",
            "print(time.monotonic() - began)",
            f"while not os.path.exists({str(slow)!r}): time.sleep(0.01)",
        )
        began = time.monotonic()
        run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
        assert time.monotonic() - began < 10  # to the end of its output
        assert float(run.stdout) < 1
        assert run.stderr == ""
        wait_until(lambda: not alive(int(slow.read_text())), 5)

    def test_ctrl_c_while_the_server_imports(self, slow, tmp_path):
        script = write_script(
            tmp_path,
            "signal.signal(signal.SIGINT, signal.default_int_handler)",
            "import slow_import",
            f"os.remove({str(slow)!r})",
            "warm('slow_import', 2)",
            "list(processes(slow_import.same, range(4), 2))",
        )
        parent = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True, start_new_session=True)
        wait_until(lambda: slow.exists() and slow.read_text() not in ("", str(parent.pid)))
        time.sleep(0.2)  # it has begun to wait for the server
        os.killpg(parent.pid, signal.SIGINT)
        _, words = parent.communicate(timeout=10)
        assert (words.count("KeyboardInterrupt"), words.count("Traceback")) == (1, 1)
        wait_until(lambda: not alive(int(slow.read_text())), 5)

    @pytest.mark.parametrize("jobs", [1, 0, -1])
    def test_not_for_less_than_two_jobs(self, forked, jobs):
        warm("fanout_work", jobs)
        assert forkserver._forkserver._forkserver_pid is None

    def test_then_the_workers_are_forked(self, work, forked, monkeypatch):
        monkeypatch.setattr(_start, "_warmed", set())
        warm("fanout_work", 2)
        assert os.getpid() not in {parent for _, _, parent in processes(work.lineage, range(2), 2)}

    def test_takes_no_import_of_torch(self):
        code = "import sys, offprincipal.fanout; assert not {'torch', 'numba', 'numpy'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
    def test_of_workers_begins_numba_and_no_thread(self):
        """A fork carries no thread over; numba's BLAS, for which it would import scipy.linalg, is there for others."""
        code = (
            "import offprincipal.worker, os, sys; print(len(os.listdir('/proc/self/task')),"
            " 'numba.np.arraymath' in sys.modules, 'scipy.linalg' in sys.modules);"
            "import scipy.linalg.cython_blas"
        )
        own = {**os.environ, **_start.variables(os.cpu_count() or 1)}
        run = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
        assert run.stdout.split() == ["1", "True", "False"]

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("", [None]),
            ("--jobs 3", [3]),
            ("--no-geometry", []),
            ("--device cuda", []),
            ("--engine ray", []),
        ],
    )
    def test_by_a_comparison(self, options, expected, monkeypatch, tmp_path):
        calls = []
        monkeypatch.setattr(fanout, "warm", lambda module, jobs: calls.append((module, jobs)))
        CliRunner().invoke(cli, ["compare", "missing", "missing", "-o", str(tmp_path / "out"), *options.split()])
        assert calls == [("offprincipal.worker", jobs) for jobs in expected]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; the second may be killed."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ray's own: resources of processes that it leaves to the system
        patch.setenv("PYTHONPATH", HERE)  # the nodes find fanout_work
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_health_check_period_ms", "500")  # a lost node is noticed in seconds, not in half a minute
        patch.setenv("RAY_health_check_timeout_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        ray = pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.connect()
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning:ray", "ignore::DeprecationWarning:ray")
class TestRay:
    def test_missing_ray_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        message = r"^cannot fan out over a Ray cluster: ray is not installed; run: pip install 'offprincipal\[ray\]'$"
        with pytest.raises(UsageError, match=message):
            ray_cluster(abs, [1])

    @pytest.mark.slow
    def test_a_comparison_that_loses_a_node_writes_the_bytes_of_a_serial_one(self, cluster, work, tmp_path):
        generator = torch.Generator().manual_seed(0)
        base = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(64, 96, generator=generator) for i in range(24)}
        tuned = {name: weight + 1e-2 * torch.randn(64, 96, generator=generator) for name, weight in base.items()}
        for side, weights in (("base", base), ("tuned", tuned)):
            save_file({name: w.bfloat16() for name, w in weights.items()}, tmp_path / f"{side}.safetensors")
        refs = tmp_path / "base.safetensors", [tmp_path / "tuned.safetensors"]
        compare(*refs, tmp_path / "serial", cache=False)
        second, finished = cluster.add_node(num_cpus=1), []

        def losing_a_node(function, items):
            for result in ray_cluster(partial(work.slowed, function), items):  # slow enough to be lost halfway
                finished.append(result[0])
                if len(finished) == 6:
                    cluster.remove_node(second, allow_graceful=False)
                yield result

        compare(*refs, tmp_path / "ray", cache=False, engine=losing_a_node)
        assert sorted(finished) == sorted(base)
        assert [node["Alive"] for node in sys.modules["ray"].nodes()].count(False) == 1
        for table in ("tensors.parquet", "curves.parquet"):
            assert (tmp_path / "ray" / table).read_bytes() == (tmp_path / "serial" / table).read_bytes()

    @pytest.mark.slow
    def test_errors_retries_and_threads(self, cluster, work, tmp_path):
        assert sorted(ray_cluster(work.double, range(9))) == list(here(work.double, range(9)))
        assert list(ray_cluster(work.lose_its_worker_once, [str(tmp_path / "once")])) == ["once"]
        with pytest.raises(InputError, match=r"^cannot read tensor 'w': it is torn; fetch it again$"):
            list(ray_cluster(work.fail_on_three, range(6)))
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            list(ray_cluster(work.divide, [0]))
        message = r"^cannot work on 3: Ray lost it for good \(WorkerCrashedError: .*\); look at the cluster's memory"
        with pytest.raises(OffprincipalError, match=message):
            list(ray_cluster(work.die_on_three, [3], max_retries=1))
        message = (
            "^cannot fan out over a Ray cluster with 1 CPUs and 1 GPUs per task: the cluster has . CPUs and 0 GPUs"
        )
        with pytest.raises(UsageError, match=message):
            list(ray_cluster(work.double, [1], gpus_per_task=1))
        assert list(ray_cluster(work.thread_settings, [0])) == [(1, "1")]
