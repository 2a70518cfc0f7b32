"""The plain install: small, portable, and every page true to the commands."""

import importlib
import importlib.metadata
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import slideway
from slideway.cli.main import cli

ROOT = Path(__file__).parents[1]
MAX_INSTALL_BYTES = 600_000_000


def plain_distributions() -> set[str]:
    """Slideway and everything its plain install pulls in, by name."""
    found: set[str] = set()
    todo = ["slideway"]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for requirement in importlib.metadata.requires(name) or []:
            wanted, _, marker = requirement.partition(";")
            if "extra" in marker or ("platform" in marker and "linux" not in marker) or "python_version" in marker:
                continue
            wanted_name = re.match(r"[A-Za-z0-9._-]+", wanted)
            assert wanted_name is not None
            try:
                importlib.metadata.distribution(wanted_name[0])
            except importlib.metadata.PackageNotFoundError:
                continue
            todo.append(wanted_name[0])
    return found


def test_the_plain_install_stays_under_600_mb_and_brings_no_torch():
    names = plain_distributions()
    assert {"numpy", "onnxruntime", "tifffile", "openslide-bin"} <= names
    assert not names & {"torch", "timm", "transformers", "pandas", "scipy", "openvino"}
    total = 0
    for name in names:
        for file in importlib.metadata.files(name) or []:
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
    total += sum(f.stat().st_size for f in Path(slideway.__file__).parent.rglob("*") if f.is_file())
    assert total < MAX_INSTALL_BYTES, f"{total / 1e6:.0f} MB"


def test_every_module_imports_where_posix_modules_are_missing():
    modules = [m.name for m in pkgutil.walk_packages(slideway.__path__, "slideway.") if not m.name.endswith("__main__")]
    assert len(modules) > 40
    code = (
        "import sys, importlib\n"
        "for name in ('resource', 'fcntl', 'pwd', 'grp', 'termios'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    preload = (
        "import pytest, click, rich.progress, psutil, webbrowser, importlib.metadata, tempfile, onnxruntime, h5py\n"
    )
    done = subprocess.run([sys.executable, "-c", preload + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_answers_without_loading_an_engine():
    code = (
        "import sys, slideway.cli.main; print(sorted(m for m in ('onnxruntime', 'cv2', 'numpy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_library_leaves_traces_of_its_users_in_their_home(tmp_path):
    """ONNX Runtime writes a lasting device id on import unless it is told not to; Slideway tells it."""
    program = (
        "import slideway.encoders.engines, onnxruntime, time; onnxruntime.get_available_providers(); time.sleep(0.5)"
    )
    told = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in told}
    subprocess.run([sys.executable, "-c", program], check=True, env=kept | {"HOME": str(tmp_path)})
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == []


def test_every_command_stands_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in cli.list_commands(None):
        assert f"slideway {name}" in readme


def test_readme_opens_with_the_two_commands_that_ci_and_just_run():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)\n```", readme, re.DOTALL)
    assert blocks[0] == "pip install . && slideway demo"
    assert blocks[1] in (ROOT / "justfile").read_text(encoding="utf-8")
    assert blocks[1].split(" && ")[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_links_between_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
