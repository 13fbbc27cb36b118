"""The wheel has everything that the program needs, and works where nothing of the checkout is."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path) -> str:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OFFBOARD", "VIRTUAL"))
    }
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = (
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    )
    run(sys.executable, "-m", "pip", *build, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel; its dependencies are the ones that are installed here."""
    place = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    binaries = place / "venv" / "bin"
    install = ("install", "--quiet", "--no-deps", "--no-index", str(wheel))
    run(sys.executable, "-m", "pip", "--python", binaries / "python", *install, cwd=place)
    (site,) = (place / "venv" / "lib").glob("python*/site-packages")
    # A folder on the path, not a site folder: the editable checkout's own .pth there isn't read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return binaries


def test_the_wheel_has_all_code_and_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("offboard_worker", "connectors")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names
    assert {
        "offboard_worker/py.typed",
        "offboard_worker/store/migrations/env.py",
        "offboard_worker/demo/world.py",
    } <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"offboard_worker", "connectors"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_program_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    found = run(installed / "python", "-c", "import offboard_worker; print(offboard_worker.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(installed.parent)
    assert "denylist" in run(installed / "offboard", "--help", cwd=tmp_path)


def test_the_installed_program_makes_a_store_and_checks_a_configuration(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data_dir: data\nredis: redis://127.0.0.1:6379/0\n")
    run(installed / "offboard", "check", "--offline", cwd=tmp_path)
    assert run(installed / "offboard", "case", "list", "--json", cwd=tmp_path).strip() == "[]"
    assert (tmp_path / "data" / "store.db").exists()


def test_the_installed_program_plays_the_demo(installed: Path, tmp_path: Path) -> None:
    assert "All of it happened: 11 of 11 claims came true" in run(installed / "offboard", "demo", cwd=tmp_path)
