"""The example job, the GitHub Action and the pre-commit hook, run as a server runs them; and our own CI."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_tasks
import yaml
from conftest import LONG

import lqconvert
from lqconvert.cli.main import main

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW = yaml.safe_load((ROOT / "docs" / "ci" / "workflow.yml").read_text())
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
INSTALL, CHECK = ACTION["runs"]["steps"]
OPTIONS = {option.removeprefix("--") for each in main.commands["check"].params for option in each.opts}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def environment(**variables):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **variables}


def budgets(folder, **limits):
    """Writes a project's pyproject.toml. A limit of accuracy needs data, and takes some seconds."""
    lines = ["[tool.lqconvert.quantize]", 'scheme = "lsq"', "epochs = 0", "[tool.lqconvert.check]"]
    lines += [f"{name.replace('_', '-')} = {limit}" for name, limit in limits.items()]
    if "min_accuracy" in limits:
        lines = ["[tool.lqconvert]", 'data = "detector.npz"', 'preprocess = "none"', *lines]
    (folder / "pyproject.toml").write_text("\n".join(lines))


def job(folder):
    """The exit code of the example job, and what it wrote into the summary."""
    summary = folder / "summary.md"
    summary.unlink(missing_ok=True)
    command = ["bash", str(ROOT / "docs" / "ci" / "job.sh"), "detector.h5"]
    result = subprocess.run(
        command, cwd=folder, env=environment(GITHUB_STEP_SUMMARY=str(summary)), check=False
    )
    return result.returncode, summary.read_text()


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """A project in which the first job passed."""
    folder = tmp_path_factory.mktemp("project")
    small_tasks.made("detector", folder)
    budgets(folder, max_size=20_000, min_accuracy=0.8)
    code, summary = job(folder)
    assert code == 0
    assert summary.count("✅") == 2
    assert (folder / "out" / "junit.xml").exists()
    return folder


@pytest.fixture
def project(passed, tmp_path):
    return Path(shutil.copytree(passed, tmp_path / "project"))


@pytest.mark.slow
def test_a_byte_too_much_fails_the_job(project):
    size = (project / "out" / "detector.tflite").stat().st_size
    budgets(project, max_size=size - 1)
    code, summary = job(project)
    assert code == 1
    assert f"| ❌ | size | {size:,} bytes, at most {size - 1:,} |" in summary
    assert f"| ✅ | growth | {size:,} bytes, at most {size:,} |" in summary


@pytest.mark.slow
def test_too_low_an_accuracy_fails_the_job(project):
    budgets(project, min_accuracy=0.9999)
    code, summary = job(project)
    assert code == 1
    assert re.search(r"\| ❌ \| accuracy \| \d\d\.\d\d%, at least 99\.99%", summary)


@pytest.mark.slow
def test_a_file_that_grew_fails_the_job_and_is_no_baseline(project):
    file, baseline = project / "out" / "detector.tflite", project / "detector.baseline.json"
    size, before = file.stat().st_size, baseline.read_text()
    file.write_bytes(file.read_bytes() + b"\0")
    budgets(project)
    code, summary = job(project)
    assert code == 1
    assert f"| ❌ | growth | {size + 1:,} bytes, at most {size:,} |" in summary
    assert baseline.read_text() == before


def test_the_actions_inputs_are_options_of_check():
    assert set(ACTION["inputs"]) - {"file"} <= OPTIONS
    variables = {f"INPUT_{name.upper().replace('-', '_')}": name for name in ACTION["inputs"]}
    assert CHECK["env"] == {key: f"${{{{ inputs.{name} }}}}" for key, name in variables.items()}


def test_inputs_are_never_part_of_the_shells_text():
    assert not any("${{" in step["run"] for step in ACTION["runs"]["steps"])


def act(step, folder, inputs):
    """Runs a step of the action as GitHub does. Returns the result and the summary."""
    assert step["shell"] == "bash"
    script, summary = folder / "step.sh", folder / "summary.md"
    script.write_text(step["run"])
    variables = {
        key: inputs.get(value.removeprefix("${{ inputs.").removesuffix(" }}"), "")
        for key, value in step.get("env", {}).items()
    }
    variables |= {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTION_PATH": str(ROOT)}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    result = subprocess.run(
        command, cwd=folder, env=environment(**variables), check=False, capture_output=True, text=True
    )
    return result, summary.read_text() if summary.exists() else ""


@pytest.mark.parametrize(("spare", "code", "mark"), [(0, 0, "✅"), (-1, 1, "❌")])
def test_the_action_writes_the_table_and_fails_over_budget(spare, code, mark, int8, tmp_path):
    size = int8.stat().st_size
    inputs = {"file": str(int8), "max-size": str(size + spare), "save-baseline": "baseline.json"}
    result, summary = act(CHECK, tmp_path, inputs)
    assert result.returncode == code, result.stderr
    assert f"| {mark} | size | {size:,} bytes, at most {size + spare:,} |" in summary
    assert summary in result.stdout
    assert (tmp_path / "baseline.json").exists() == (code == 0)


def test_the_action_reads_the_projects_budgets(int8, tmp_path):
    budgets(tmp_path, max_size=1000)
    result, summary = act(CHECK, tmp_path, {"file": str(int8)})
    assert result.returncode == 1
    assert "at most 1,000" in summary


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"file": "$(touch pwned).tflite", "max-size": "1KB"}, 1),
        ({"file": "`touch pwned`;touch pwned", "max-size": "1KB"}, 1),
        ({"file": "--help", "max-size": "1KB"}, 1),
        ({"file": "m.tflite", "max-size": "1 --help; touch pwned"}, 2),
    ],
)
def test_inputs_are_no_commands(inputs, code, tmp_path):
    result, _ = act(CHECK, tmp_path, inputs)
    assert result.returncode == code
    assert not (tmp_path / "pwned").exists()


def test_the_action_installs_itself(tmp_path):
    """The arguments of pip are right. It is not run, because that needs a network."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    step = {**INSTALL, "run": f'PATH="{tmp_path}:$PATH"\n{INSTALL["run"]}'}
    result, _ = act(step, tmp_path, {})
    *_, what = result.stdout.split()
    assert what == f"{ROOT}[tflm]"


SHADOWED = ("pip", "lqconvert", "click", "numpy", "tensorflow", "sitecustomize")


@pytest.mark.parametrize("path", [None, ".", "", ":/nowhere"])
@pytest.mark.parametrize("what", ["install", "check", "hook"])
def test_nothing_is_imported_from_the_checkout(what, path, int8, tmp_path):
    for name in SHADOWED:
        (tmp_path / name).mkdir()
        for file in ("__init__.py", "__main__.py"):
            (tmp_path / name / file).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "small.tflite").write_bytes(int8.read_bytes())
    variables = {} if path is None else {"PYTHONPATH": path}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        if what == "install":  # of nothing, which takes no network
            step = {**INSTALL, "run": INSTALL["run"].replace("${GITHUB_ACTION_PATH}[tflm]", "/nowhere")}
            result, _ = act(step, tmp_path, {})
            assert "/nowhere" in result.stderr
        elif what == "check":
            result, _ = act(CHECK, tmp_path, {"file": "small.tflite", "max-size": "1MB"})
            assert result.returncode == 0, result.stderr
        else:
            command = [*shlex.split(HOOK["entry"]), "--max-size=1MB", "small.tflite"]
            result = subprocess.run(
                command, cwd=tmp_path, env=environment(), check=False, capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "page", ["action.yml", ".pre-commit-hooks.yaml", "docs/ci/workflow.yml", "docs/ci/job.sh"]
)
def test_python_is_called_without_the_working_folder(page):
    calls = re.findall(r"\bpython[\d.]* .*", (ROOT / page).read_text())
    calls = [call for call in calls if call.split()[1].startswith("-")]
    assert calls
    assert [call for call in calls if not call.startswith("python -I ")] == []


def test_the_example_workflow_is_of_this_version():
    """Its commands parse, and it sets only inputs that the action has."""
    steps = WORKFLOW["jobs"]["model"]["steps"]
    (given,) = (step["with"] for step in steps if step.get("uses", "").startswith("OWNER/lqconvert@"))
    assert set(given) <= set(ACTION["inputs"])
    commands = [shlex.split(step["run"]) for step in steps if step.get("run", "").startswith("lqconvert ")]
    assert [command[1] for command in commands] == ["quantize"]
    for _, name, *arguments in commands:
        main.commands[name].make_context(name, arguments)


def test_the_hook_takes_the_files_that_pre_commit_gives(int8, tmp_path):
    small = tmp_path / "small.tflite"
    small.write_bytes(int8.read_bytes())
    large = tmp_path / "large.tflite"
    large.write_bytes(int8.read_bytes() + b"\0")
    assert all(re.search(HOOK["files"], str(path)) for path in (small, large))
    budgets(tmp_path, max_size=int8.stat().st_size)
    command = [*shlex.split(HOOK["entry"]), *HOOK.get("args", []), "small.tflite", "large.tflite"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), check=False, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "small.tflite:",
        "ok",
        "large.tflite:",
        "FAIL",
    ]


def test_the_recipes_are_of_this_version():
    """In every YAML block of the page, commands parse, and hooks and inputs exist."""
    page = (ROOT / "docs" / "ci.md").read_text()
    github, gitlab, pre_commit = (
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", page, re.S | re.M)
    )
    assert set(github[-1]["with"]) <= set(ACTION["inputs"])
    commands = [shlex.split(line) for line in gitlab["model"]["script"] if line.startswith("lqconvert ")]
    assert [command[1] for command in commands] == ["quantize", "check"]
    for _, name, *arguments in commands:
        main.commands[name].make_context(name, arguments)
    assert pre_commit["repos"][0]["hooks"] == [{"id": HOOK["id"]}]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("lqconvert q", ["quantize"]),
        ("lqconvert check --max-r", ["--max-ram", "--max-rmse", "--max-reconstruction-rmse"]),
        ("lqconvert quantize --target t", ["tflm", "tflm-no-decode"]),
    ],
)
def test_bash_completes(line, found):
    *words, last = line.split(" ")
    script = f"""
        eval "$(_LQCONVERT_COMPLETE=bash_source lqconvert)"
        COMP_WORDS=({" ".join(words)} "{last}") COMP_CWORD={len(words)}
        _lqconvert_completion lqconvert
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    variables = environment(PYTHONPROFILEIMPORTTIME="1")  # lists what is imported, on stderr
    result = subprocess.run(
        ["bash", "--norc", "-c", script], env=variables, check=True, capture_output=True, text=True
    )
    assert sorted(result.stdout.split()) == sorted(found)
    assert "lqconvert.cli" in result.stderr
    assert "tensorflow" not in result.stderr


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())


def test_every_supported_python_is_tested():
    text = (ROOT / "pyproject.toml").read_text()
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert workflow("ci.yml")["jobs"]["all"]["strategy"]["matrix"]["python"] == supported
    first, last = supported[0], int(supported[-1].split(".")[1])
    assert f'requires-python = ">={first},<3.{last + 1}"' in text


@pytest.mark.parametrize(("version", "code"), [(lqconvert.__version__, 0), ("0.0.1", 1)])
def test_a_release_has_the_version_of_its_tag(version, code, tmp_path):
    steps = workflow("release.yml")["jobs"]["build"]["steps"]
    (check,) = (step["run"] for step in steps if "GITHUB_REF_NAME" in step.get("run", ""))
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"lqconvert-{lqconvert.__version__}.tar.gz").touch()
    variables = environment(GITHUB_REF_NAME=f"v{version}")
    assert subprocess.run(["bash", "-c", check], cwd=tmp_path, env=variables, check=False).returncode == code


def test_the_files_to_begin_with_are_there():
    assert [name for name in LONG if not (ROOT / "tests" / f"{name}.py").exists()] == []
