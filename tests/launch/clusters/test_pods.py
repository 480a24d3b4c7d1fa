"""launch.pods: the exact commands, and what it does when gcloud, sbatch and kubectl fail as they do in life.

The commands are golden texts in commands/; PARADIGM_GOLDEN=1 writes them anew. The clouds are a program on the PATH
that answers from a script and notes what it was asked.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).parents[3]
GOLDEN = pathlib.Path(__file__).parent / "commands"
TRAIN = ["--", "--gin_file=runs/t5_xxl_c4.gin", "--workdir=/mnt/paradigm/mine", "--gin_param=TextData.source = '/x'"]
TPU = ["--name=mine", "--zone=us-west4-a"]
POD = [*TPU, "--topology=v5e:16x16"]
CASES = {
    "tpu_create": ["create", *POD, "--spot", "--project=p"],
    "tpu_create_slices": ["create", *TPU, "--topology=v6e:16x16", "--slices=4", "--reserved"],
    "tpu_create_cube": ["create", *TPU, "--topology=v5p:4x4x4"],
    "tpu_run": ["run", *POD, "--spot", "--nfs=10.0.0.2:/share", *TRAIN],
    "tpu_logs": ["logs", *TPU, "--worker=all"],
    "tpu_status": ["status", *TPU],
    "tpu_delete": ["delete", *TPU],
    "slurm_run": ["run", "--cluster=slurm", "--name=mine", "--topology=h100:64", "--partition=gpu", *TRAIN],
    "slurm_status": ["status", "--cluster=slurm", "--name=mine"],
    "slurm_delete": ["delete", "--cluster=slurm", "--name=mine"],
    "gke_run": ["run", "--cluster=gke", "--name=mine", "--topology=v5e:16x16", "--slices=2", "--spot",
                "--nfs=10.0.0.2:/share", "--image=gcr.io/p/paradigm:1", *TRAIN],
    "gke_logs": ["logs", "--cluster=gke", "--name=mine"],
    "gke_delete": ["delete", "--cluster=gke", "--name=mine", "--namespace=team"],
}  # fmt: skip


def pods(*words, path=None, cwd=REPO):
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    if path is not None:
        environment["PATH"] = str(path)  # nothing else: a real gcloud must never be found
    command = [sys.executable, "-m", "launch.pods", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120)


@pytest.mark.parametrize("name", CASES)
def test_the_exact_commands(name):
    verb, *rest = CASES[name]
    done = pods(verb, "--dry_run", *rest)
    assert done.returncode == 0, done.stderr
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PARADIGM_GOLDEN"):
        path.write_text(done.stdout)
    assert done.stdout == path.read_text(), "if the change is meant: PARADIGM_GOLDEN=1"


def test_every_golden_text_has_its_case():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def test_the_manifest_is_yaml_and_the_scripts_are_bash(tmp_path):
    yaml = pytest.importorskip("yaml")
    text = (GOLDEN / "gke_run.txt").read_text()
    manifest = yaml.safe_load(text[text.index("apiVersion") : text.rindex("END")])
    job = manifest["spec"]["replicatedJobs"][0]
    assert job["replicas"] == 2 and job["template"]["spec"]["parallelism"] == 64
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1] == "--gin_param=TextData.source = '/x'"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    for name in ("tpu_run", "slurm_run"):
        subprocess.run(["bash", "-n", str(GOLDEN / f"{name}.txt")], check=True)


CLOUD = """#!{python}
import json, pathlib, sys
here = pathlib.Path({here!r})
words = sys.argv[1:]
with open(here / "asked.jsonl", "a") as file:
    file.write(json.dumps([pathlib.Path(sys.argv[0]).name, *words]) + "\\n")
script = json.loads((here / "script.json").read_text())
for pattern, answers in script:
    if all(word in " ".join(words) for word in pattern.split("&")):
        code, said, complaint = answers[0]
        if len(answers) > 1:
            answers.pop(0)
        (here / "script.json").write_text(json.dumps(script))
        print(said, end="")
        print(complaint, end="", file=sys.stderr)
        sys.exit(code)
"""


@pytest.fixture
def cloud(tmp_path):
    """Puts gcloud, sbatch and kubectl on a PATH of their own; script: [(pattern, [(code, stdout, stderr), ...])]."""
    here = tmp_path / "cloud"
    here.mkdir()
    for name in ("bash", "git", "tar", "gzip"):
        (here / name).symlink_to(shutil.which(name))
    for name in ("gcloud", "sbatch", "squeue", "scancel", "kubectl"):
        program = here / name
        program.write_text(CLOUD.format(python=sys.executable, here=str(here)))
        program.chmod(0o755)

    def call(script, *words):
        (here / "script.json").write_text(json.dumps(script))
        done = pods(*words, path=here)
        path = here / "asked.jsonl"
        asked = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return done, asked

    return call


def verbs(asked):
    """What gcloud was asked, in short: the verb, and for ssh whether it sets up, starts or looks."""
    found = []
    for _, *words in asked:
        verb, command = words[3], words[-1]
        if verb == "ssh":
            verb = "setup" if "uv pip" in command else "start" if "setsid" in command else "look"
        if not found or found[-1] != verb:
            found.append(verb)
    return found


STATES = lambda *names: ("describe", [(1, "", "ERROR: NOT_FOUND: no such queued resource\n")] * (names[0] == "") + [
    (0, f"{name}\n", "") for name in names if name])  # fmt: skip
QUICK = [*POD, "--poll=0.01", *TRAIN]


def test_a_run_from_nothing_to_its_end(cloud):
    looks = ("ssh&paradigm.code 2", [(0, "running\n", ""), (0, "0\n0\n", "")])
    script = [STATES("", "", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"), looks]
    script[0][1].insert(0, script[0][1][0])
    done, asked = cloud(script, "run", *QUICK)
    assert done.returncode == 0, done.stderr
    assert verbs(asked) == ["describe", "create", "describe", "scp", "setup", "start", "describe", "look",
                            "describe", "look"]  # fmt: skip
    assert "mine is WAITING_FOR_RESOURCES" in done.stdout and "the run is done" in done.stdout


def test_what_is_preempted_is_asked_for_again(cloud):
    # As the run finds it: there; after the start active, then gone. It deletes, creates, and starts once more.
    states = STATES("ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED")
    states[1].extend([(1, "", "ERROR: (gcloud) NOT_FOUND: gone\n"), (0, "ACTIVE\n", "")])
    looks = ("ssh&paradigm.code 2", [(0, "0\n", "")])
    done, asked = cloud([states, looks], "run", *QUICK)
    assert done.returncode == 0, done.stderr
    short = verbs(asked)
    assert short.index("delete") < short.index("create") and short.count("start") == 2
    assert "was taken away; asking for it again" in done.stdout


def test_a_run_that_ends_badly_says_so(cloud):
    done, _ = cloud([STATES("ACTIVE"), ("ssh&paradigm.code 2", [(0, "running\n2\n", "")])], "run", *QUICK)
    assert done.returncode == 2
    assert done.stderr == "error: the run ended with exit code 2; its end: launch.pods logs --name=mine\n"


def test_a_host_that_does_not_answer_once_is_asked_again(cloud):
    refused = (255, "", "ssh: connect to host 10.0.0.9 port 22: No route to host\n")
    looks = ("ssh&paradigm.code 2", [refused, (0, "0\n", "")])
    done, asked = cloud([STATES("ACTIVE"), looks], "run", *QUICK)
    assert done.returncode == 0, done.stderr
    assert verbs(asked)[-1] == "look"


@pytest.mark.parametrize("complaint, hint", [
    ("ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' "
     "has been exceeded. Limit: 0 in region us-west4.", "ask for more quota in that zone"),
    ("ERROR: (gcloud.compute.tpus.queued-resources.create) You do not currently have an active account selected.",
     "log in: gcloud auth login"),
    ("ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource 'mine' already exists",
     "delete it first (launch.pods delete), or take another --name"),
    ("ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied",
     "roles/tpu.admin"),
    ("ERROR: gcloud crashed (TypeError)", "gcloud crashed (TypeError)"),
])  # fmt: skip
def test_a_failure_is_one_line_with_what_to_do(cloud, complaint, hint):
    done, asked = cloud([("create", [(1, "", f"{complaint}\n")])], "create", *POD)
    assert done.returncode == 2 and len(asked) == 1  # it would only fail again
    assert done.stderr.startswith("error: gcloud compute tpus queued-resources create mine failed (1): ERROR")
    assert hint in done.stderr and len(done.stderr.splitlines()) == 1


def test_what_passes_is_tried_again(cloud):
    busy = (1, "", "ERROR: (gcloud) UNAVAILABLE: The service is currently unavailable.\n")
    done, asked = cloud([("create", [busy, busy, (0, "", "")])], "create", *POD, "--patience=0.01")
    assert done.returncode == 0 and len(asked) == 3, done.stderr
    done, asked = cloud([("create", [busy])], "create", *POD, "--patience=0.01")
    assert done.returncode == 2 and len(asked) == 4 and "UNAVAILABLE" in done.stderr


def test_slurm_submits_a_script(cloud, tmp_path):
    words = ["--cluster=slurm", "--name=mine", "--topology=h100:8", *TRAIN]
    (tmp_path / "cloud" / "script.json").write_text("[]")
    done = pods("run", *words, path=tmp_path / "cloud", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "mine.sbatch").read_text()
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=8" in text and f"cd {REPO}" in text
    refused = "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    (tmp_path / "cloud" / "script.json").write_text(json.dumps([("mine.sbatch", [(1, "", refused)])]))
    done = pods("run", *words, path=tmp_path / "cloud", cwd=tmp_path)
    assert done.returncode == 2 and "Invalid partition name specified" in done.stderr


@pytest.mark.parametrize("words, text", [
    (["start", "--name=x"], "'start' is not something to do with a pod: give one of create, run, logs, status, delete"),
    (["run", "--name=My Pod"], "--name=My Pod must be small letters, digits and hyphens"),
    (["run", *TPU], "--topology is required"),
    (["run", *POD, "--nfs=10.0.0.2", *TRAIN], "--nfs=10.0.0.2 must be SERVER:/SHARE, as in --nfs=10.0.0.2:/share"),
    (["run", *POD, "--", "--gin_file=runs/demo.gin"], "--workdir is missing: the flags of launch.train stand after --"),
    (["run", *POD, "--", "--gin_file=runs/none.gin", "--workdir=/x"], "none.gin"),
    (["run", *POD, *TRAIN, "--gin_param=Experiment.batch_sise=8"], "Experiment has no parameter 'batch_sise'"),
    (["run", *POD, *TRAIN, "--gin_param", "Experiment.keep=0"], "Experiment.keep=0 must be at least 1"),
    (["run", *POD, *TRAIN, "--process=1"], "launch.pods tells the processes of each other"),
    (["create", "--name=x", "--topology=v5e:16x16"], "--zone is required"),
    (["create", *TPU, "--topology=h100:8"], "--cluster=slurm for GPUs"),
    (["run", "--cluster=slurm", "--name=x", "--topology=v5e:16x16", *TRAIN], "--cluster=slurm takes GPUs"),
    (["run", "--cluster=slurm", "--name=x", "--topology=h100:12", *TRAIN], "whole nodes of 8 GPUs, as in h100:8"),
    (["run", "--cluster=gke", "--name=x", "--topology=v5e:4x4", *TRAIN], "--image is required"),
])  # fmt: skip
def test_bad_input_is_one_line(words, text):
    done = pods(words[0], "--dry_run", *words[1:])
    assert done.returncode == 2 and text in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_cloud_that_is_not_installed(tmp_path):
    done = pods("create", *POD, path=tmp_path)
    assert done.returncode == 2 and "gcloud not found on PATH: install it, or use --dry_run" in done.stderr


def test_the_restarting_script(tmp_path):
    """It goes on after a signal's 75 and a dead peer's 3, and ends with what a restart cannot change."""
    from launch.clusters import restarting

    (tmp_path / "train").write_text(
        "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) > n; set -- 75 3 137 2; shift $n; exit $1"
    )
    done = subprocess.run(["bash", "-c", restarting("bash train", 9, pause=0) + "exit $code"], cwd=tmp_path)
    assert done.returncode == 2 and (tmp_path / "n").read_text() == "4\n"
    (tmp_path / "train").write_text("echo x >> m; exit 1")
    subprocess.run(["bash", "-c", restarting("bash train", 2, pause=0)], cwd=tmp_path, check=True)
    assert (tmp_path / "m").read_text() == "x\n" * 3
