import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from offprincipal import compare
from offprincipal.errors import InputError, OffprincipalError, UsageError
from offprincipal.fanout import engine, here, processes, ray_cluster, shard

HERE = str(Path(__file__).parent)


@pytest.fixture
def work(monkeypatch):
    monkeypatch.syspath_prepend(HERE)  # children inherit sys.path
    import fanout_work

    return fanout_work


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


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

    def test_ctrl_c_ends_the_children_promptly(self, work, tmp_path):
        script = tmp_path / "interrupted.py"
        script.write_text(
            f"import signal, sys; sys.path.insert(0, {HERE!r})\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background inherit it ignored
            "import fanout_work\nfrom offprincipal.fanout import processes\n"
            "if __name__ == '__main__':\n"
            f"    list(processes(fanout_work.sleep_with_pid, [{str(tmp_path)!r}] * 2, 2))\n"
        )
        parent = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True, start_new_session=True)
        children = lambda: [int(f.name) for f in tmp_path.iterdir() if f.name.isdigit()]  # noqa: E731
        wait_until(lambda: len(children()) == 2)
        os.killpg(parent.pid, signal.SIGINT)  # what a terminal does: everyone in the foreground group gets it
        _, words = parent.communicate(timeout=10)
        assert words.count("KeyboardInterrupt") == 1  # the parent's own; children stay silent
        wait_until(lambda: not any(map(alive, children())), 5)

    def test_a_killed_parent_leaves_no_children(self, work, tmp_path):
        script = tmp_path / "killed.py"
        script.write_text(
            f"import sys; sys.path.insert(0, {HERE!r})\n"
            "import fanout_work\nfrom offprincipal.fanout import processes\n"
            "if __name__ == '__main__':\n"
            "    for _ in processes(fanout_work.double, iter(int, 1), 2): print('.', flush=True)\n"
        )
        parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, start_new_session=True)
        assert parent.stdout.readline()
        family = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        assert family
        parent.kill()
        parent.communicate()
        wait_until(lambda: not any(map(alive, family)), 10)

    def test_a_killed_parent_ends_children_in_the_middle_of_an_item(self, work, tmp_path):
        script = tmp_path / "killed.py"
        script.write_text(
            f"import sys; sys.path.insert(0, {HERE!r})\n"
            "import fanout_work\nfrom offprincipal.fanout import processes\n"
            "if __name__ == '__main__':\n"
            f"    list(processes(fanout_work.sleep_with_pid, [{str(tmp_path)!r}] * 2, 2))\n"
        )
        parent = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL, start_new_session=True)
        children = lambda: [int(f.name) for f in tmp_path.iterdir() if f.name.isdigit()]  # noqa: E731
        wait_until(lambda: len(children()) == 2, 40)
        parent.kill()
        parent.wait()
        wait_until(lambda: not any(map(alive, children())), 10)


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
