"""How large an installation is: a fresh environment with the plain wheel, and one with every extra. In MB (10⁶ bytes).

    python -m benchmarks.install_size [--extras aws,okta]

Versions are the locked ones, compiled bytecode is counted, and pip isn't, which a virtual environment may do without.
To reach: without the SDK extras at most 150 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TO_REACH = 150


def size_of(folder: Path) -> float:
    """What the files below a folder take up, in MB; a file that has two names counts once."""
    seen = {(stat.st_dev, stat.st_ino): stat.st_size for stat in (path.lstat() for path in folder.rglob("*"))}
    return sum(seen.values()) / 1e6


def installed(wheel: Path, extras: str, room: Path) -> Path:
    """Install the wheel with these extras into a fresh environment and return its site-packages."""
    place = room / f"with-{extras or 'nothing'}".replace(",", "-")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    wanted = f"{wheel}[{extras}]" if extras else str(wheel)
    constraints = room / "constraints.txt"
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    constraints.write_text("\n".join(line.split(" \\")[0] for line in lines if "==" in line and line[0].isalnum()))
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--system-certs", "--link-mode", "copy",
         "--compile-bytecode", "--python", str(python), "--constraint", str(constraints), wanted],
        check=True,
    )  # fmt: skip
    return next((place / "lib").glob("python*/site-packages"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="all", help="compared with the plain wheel")
    extras = parser.parse_args().extras
    with tempfile.TemporaryDirectory(prefix="offboard-size-") as folder:
        room = Path(folder)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "-w",
                folder,
                str(ROOT),
            ],
            check=True,
        )
        wheel = next(room.glob("*.whl"))
        print(f"{'the wheel itself':28}{wheel.stat().st_size / 1e6:8.2f} MB")
        plain = size_of(installed(wheel, "", room))
        print(f"{'installed, no extras':28}{plain:8.1f} MB   (to reach: at most {TO_REACH} MB)")
        site = room / "with-nothing"
        for part, size in sorted(
            ((p.name, size_of(p)) for p in next((site / "lib").glob("python*/site-packages")).iterdir() if p.is_dir()),
            key=lambda pair: -pair[1],
        )[:6]:
            print(f"{'':4}{part:24}{size:8.1f} MB")
        whole = size_of(installed(wheel, extras, room))
        print(f"{f'installed, [{extras}]':28}{whole:8.1f} MB   {whole / plain:.1f} × the plain one")


if __name__ == "__main__":
    main()
