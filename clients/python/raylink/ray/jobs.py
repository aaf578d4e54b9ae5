"""Runs as jobs of Ray's: `python -m raylink.ray submit|state|follow|stop`.

The request is a JSON object on standard input, with the address of Ray's dashboard (http://HOST:8265, or
empty for that of RAY_ADDRESS) and, except for `submit`, the submission id. The answer is a line of JSON on
standard output; `follow` prints what the job prints instead.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile

from . import cluster


def client(address):
    ray = cluster.load()
    try:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(address or None)
    except ImportError as error:
        raise cluster.Refused(f"jobs need ray[default]: {error}") from error
    except Exception as error:
        raise cluster.Refused(f"Ray {ray.__version__} found no dashboard at {address or 'the address of RAY_ADDRESS'}: {cluster.words(error)}") from error


def submit(jobs, request):
    """Submits a run. Its executables and this package travel as the job's working directory."""
    with tempfile.TemporaryDirectory(prefix="raylink-") as directory:
        programs = os.path.join(directory, "bin")
        os.mkdir(programs)
        for name, path in request["files"].items():
            shutil.copy2(path, os.path.join(programs, name))
        package = os.path.join(directory, "raylink", "ray")
        shutil.copytree(os.path.dirname(__file__), package, ignore=shutil.ignore_patterns("__pycache__"))
        job = jobs.submit_job(
            entrypoint=request["entrypoint"],
            submission_id=request["submission_id"],
            runtime_env={"working_dir": directory, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", "RAY_USAGE_STATS_ENABLED": "0"}},
            metadata={"raylink": request["name"]},
        )
    return {"job": job, "address": jobs.get_address()}


def state(jobs, request):
    """What has become of a job: running, ended with an exit code, or vanished."""
    try:
        info = jobs.get_job_info(request["job"])
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        return {"state": "vanished"}
    if not info.status.is_terminal():
        return {"state": "running"}
    code = info.driver_exit_code
    if code is not None and code < 0:
        code = 128 - code
    answer = {"state": "ended", "exit": code if code is not None else 0}
    if code is None and info.status != "SUCCEEDED":
        # Of a job that was stopped Ray has no exit code: it is that of SIGTERM.
        answer = {"state": "ended", "exit": 143 if info.status == "STOPPED" else 1, "error": cluster.words(info.message or info.status)}
    return answer


async def follow(jobs, request):
    async for lines in jobs.tail_job_logs(request["job"]):
        sys.stdout.write(lines)
        sys.stdout.flush()


def main(command):
    try:
        request = json.loads(sys.stdin.readline())
        jobs = client(request["address"])
        if command == "submit":
            answer = submit(jobs, request)
        elif command == "follow":
            asyncio.run(follow(jobs, request))
            return 0
        elif command == "stop":
            answer = {"stopped": jobs.stop_job(request["job"])}
        else:
            answer = state(jobs, request)
    except Exception as error:
        text = str(error) if isinstance(error, cluster.Refused) else f"{type(error).__name__}: {cluster.words(error)}"
        print(text, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0
