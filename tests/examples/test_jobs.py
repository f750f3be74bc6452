"""Jobs that are shared out among processes."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from examples.imdb import jobs
from examples.imdb.jobs import Job, finish

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(jobs, "PAUSE", 0.01)


def make_jobs(folder, done, needs):
    files = {name: folder / f"{name}.json" for name in needs}

    def compute(name):
        done.append(name)
        return {"name": name}

    return [
        Job(name, files[name], lambda name=name: compute(name), [files[one] for one in others])
        for name, others in needs.items()
    ]


def test_jobs_wait_for_what_they_need(tmp_path):
    done = []
    todo = make_jobs(tmp_path, done, {"student": ["teacher"], "teacher": [], "other": []})
    assert finish(todo) == []
    assert done == ["teacher", "student", "other"]
    assert finish(todo) == []
    assert len(done) == 3  # nothing twice


def test_a_job_that_fails_leaves_the_others(tmp_path, capsys):
    done = []
    todo = make_jobs(tmp_path, done, {"teacher": [], "student": ["teacher"], "other": []})

    def fail():
        raise RuntimeError("out of memory")

    todo[0] = Job("teacher", todo[0].file, fail)
    assert [job.title for job in finish(todo)] == ["teacher", "student"]
    assert done == ["other"]
    assert "out of memory" in capsys.readouterr().err


def test_what_another_process_computes_is_waited_for(tmp_path):
    done = []
    todo = make_jobs(tmp_path, done, {"teacher": [], "student": ["teacher"]})
    lock = FileLock(f"{todo[0].file}.lock")
    lock.acquire()

    def end():
        todo[0].file.write_text("{}")
        lock.release()

    threading.Timer(0.2, end).start()
    assert finish(todo) == []
    assert done == ["student"]


def test_processes_share_the_work(tmp_path):
    program = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "src")!r}]
        from examples.imdb.jobs import Job, finish
        folder = Path({str(tmp_path)!r})
        def compute(n):
            time.sleep(0.1)
            print(n, flush=True)
            return {{"n": n}}
        finish([Job("a job", folder / f"{{n}}.json", lambda n=n: compute(n)) for n in range(6)])
    """)
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    computed = [line for lines in printed for line in lines if line.isdigit()]
    assert sorted(computed) == list("012345")  # each once
