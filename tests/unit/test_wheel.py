"""The wheel carries the C of the probes, the page, the manual and completions, and puts nothing but intxtrace beside
other packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import intxtrace

ROOT = Path(__file__).parents[2]
CARRIED = ("bpf", "reports")
SHARED = {
    "bash-completion/completions/intxtrace.bash",
    "zsh/site-functions/_intxtrace",
    "fish/vendor_completions.d/intxtrace.fish",
    "man/man1/intxtrace.1",
}
"""What goes into share/ of the prefix."""
PICTURE = "example.png"
"""The README's, in reports/: not for the wheel."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a wheel is made of, so that building leaves nothing in the working tree."""
    copy = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "intxtrace", copy / "intxtrace", symlinks=True, ignore=ignore)
    for name in CARRIED:
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "README.md").write_text("# intxtrace\n")
    (copy / "tests").mkdir()
    (copy / "tests" / "__init__.py").write_text("")
    return copy


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_wheel_is_self_contained(project: Path, tmp_path: Path) -> None:
    carried = {
        f"intxtrace/{path.relative_to(project)}"
        for n in CARRIED
        for path in (project / n).iterdir()
        if path.name != PICTURE
    }
    carried |= {str(path.relative_to(project)) for path in (project / "intxtrace" / "completions").iterdir()}
    modules = {str(path.relative_to(project)) for path in (project / "intxtrace").rglob("*.py")}
    # The wheel is built of the source distribution, so that this is shown to be whole too.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", cwd=project)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = f"intxtrace-{intxtrace.__version__}"
    folders = {"intxtrace", f"{package}.dist-info", f"{package}.data"}
    assert {name.partition("/")[0] for name in names} == folders
    assert {name for name in names if name.startswith("intxtrace/")} == modules | carried | {"intxtrace/py.typed"}
    data = {name.removeprefix(f"{package}.data/") for name in names if name.startswith(f"{package}.data/")}
    assert data == {f"data/share/{name}" for name in SHARED}


def test_editable_install_finds_its_data(project: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    paths = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    # What is installed beside the tests is visible in the new environment, after its own packages.
    Path(sysconfig.get_path("purelib", "venv", paths), "zz.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        *(
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
        ),
        *("--disable-pip-version-check", "-e", project),
        cwd=tmp_path,
    )
    code = (
        "import importlib.resources as r; root = r.files('intxtrace'); print(root.resolve()); "
        f"print(*(sorted(f.name for f in (root / name).iterdir())[0] for name in {CARRIED}))"
    )
    where, data = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert Path(where) == (project / "intxtrace").resolve()
    assert data.split() == [min(path.name for path in (ROOT / name).iterdir()) for name in CARRIED]
    script = tmp_path / "venv" / "bin" / "intxtrace"
    assert run(script, "--version", cwd=tmp_path) == f"intxtrace {intxtrace.__version__}\n"
